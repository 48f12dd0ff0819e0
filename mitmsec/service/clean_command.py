"""`mitmsec clean`: remove what dead owners left, and prove it."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from mitmsec.channel import Channel, ChannelBroken
from mitmsec.service import control
from mitmsec.service.called import program, with_state
from mitmsec.service.options import EXIT_NOT_SO, EXIT_USAGE, debug_option, fail, json_option, need_root, state_option
from mitmsec.service.state import State, StateBusy
from mitmsec.service.terminal import shown

if TYPE_CHECKING:
    from mitmsec.service.leftovers import Removed

ENDING_S = 5.0  # for a supervisor whose last run has just returned
SILENT_S = 0.3  # of them without a word
ASKED_S = 2.0  # for its answer
PIDS_TOLD = 3


@click.command()
@state_option
@json_option
@debug_option
@click.option("--purge-ca", is_flag=True, help="Remove the CA too, and keep the log. The next run makes another CA.")
@click.option("--purge", is_flag=True, help="Remove everything, the audit log too. There is no way back.")
@click.option("--yes", is_flag=True, help="Do not ask before --purge, as a terminal is asked.")
def clean(state_folder: Path, *, as_json: bool, purge_ca: bool, purge: bool, yes: bool) -> None:
    """Remove what killed runs left, and the CA from trust stores.

    Hooks, tables of rules, cgroups, mounts and sockets go, and each store that `ca trust` has changed is what it was; a
    second look proves it. The log and the keys stay unless --purge. A run that is alive is not touched. Exit status 1
    if something could not be removed.
    """
    from mitmsec.service import leftovers
    from mitmsec.service.ca_orders import who

    need_root("clean")
    state = State(state_folder)
    if state.trust.is_dir() and not state.run.is_dir():
        state.make()  # somebody has removed the rest: stores may trust us all the same
    if not state.run.is_dir():
        click.echo(f"nothing to clean: {state.folder} holds nothing of mitmsec", err=True)
        if as_json:
            _tell_count(0, [])
        return
    if purge and not yes:
        _ask(state)
    lock = _lock(state)
    try:
        with _on_record(state) if purge_ca and not purge else contextlib.nullcontext():
            removed = leftovers.clean(state, purge=purge, purge_ca=purge_ca, user=who())
        left = leftovers.remaining(state)
        if purge and not left:
            removed += leftovers.vanish(state)
    finally:
        os.close(lock)
    for item in removed:
        _tell(item, as_json=as_json)
    if left:
        fail(f"still there: {', '.join(left)}", "the lines above say why", EXIT_NOT_SO)
    if as_json:
        _tell_count(sum(1 for item in removed if not item.kept), left)
    else:
        left_where = "nothing of mitmsec is left in the kernel, and no trust store trusts it by our hand"
        click.echo(left_where + ("" if removed else "; nothing had to be removed"))


def _on_record(state: State) -> contextlib.AbstractContextManager[None]:
    """That the CA was removed, in the log that stays."""
    from mitmsec.service import ca_orders, ca_work

    return ca_work.removing(state, ca_orders.who(), int(time.time()))


def _ask(state: State) -> None:
    """The log is evidence. Where nobody is there to be asked, the order is enough."""
    if sys.stdin is None or not sys.stdin.isatty():
        return
    click.echo(f"This removes the audit log {state.log} and the CA {state.ca}; there is no way back.", err=True)
    if not click.confirm("Remove them?", err=True):
        fail("nothing was removed", "--purge-ca removes the CA alone, and keeps the log", EXIT_NOT_SO)


def _tell_count(removed: int, left: list[str]) -> None:
    click.echo(msgspec.json.encode({"removed": removed, "left": left}))


def _lock(state: State) -> int:
    """The state's lock; a supervisor that is just ending is waited for."""
    began = time.monotonic()
    is_told = False
    while True:
        try:
            return state.hold()
        except StateBusy:
            waited_s = time.monotonic() - began
            if waited_s > ENDING_S:
                what = f"alive under {state.folder}: {_alive(state)}"
                fail(what, _how_to_end(state), EXIT_USAGE)
            if waited_s > SILENT_S and not is_told:
                is_told = True
                click.echo(f"mitmsec: waiting, {ENDING_S:.0f} s at most, for the end of {_alive(state)}", err=True)
            time.sleep(0.05)


def _how_to_end(state: State) -> str:
    stop = f"{program()} stop{with_state(state)}"
    return f"end it first (a service by `{stop}`); `clean` never touches the living"


def _alive(state: State) -> str:
    """Who holds the lock: its runs by session, command and pids, as its supervisor says."""
    answer = None
    with contextlib.suppress(OSError, TimeoutError, ChannelBroken):
        channel = Channel(control.connect(state.control), control.FROM_SUPERVISOR)
        try:
            answer = channel.exchange(control.StatusQuestion(), timeout_s=ASKED_S)
        finally:
            channel.close()
    status = answer[0] if answer is not None else None
    if not isinstance(status, control.StatusAnswer):
        return "a supervisor that does not answer"
    runs = [_run(*row) for row in status.sessions]
    return ", ".join(runs) if runs else f"a supervisor that is ending, pid {status.supervisor}"


def _run(session: str, command: str, cgroup: str) -> str:
    if command == control.SERVICE:
        return f"the service, {session}"  # its cgroup is everybody's
    pids = ""
    with contextlib.suppress(OSError):
        pids = ", ".join((Path(cgroup) / "cgroup.procs").read_text().split()[:PIDS_TOLD])
    return f"run {session} ({shown(command)}{f', pid {pids}' if pids else ', ending'})"


def _tell(item: Removed, *, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode(item))
        return
    became = f"could not be removed: {item.problem}" if item.problem else "removed"
    became = f"stays: {item.kept}" if item.kept else became
    click.echo(f"{item.what:>14}  {item.name} {became}")
