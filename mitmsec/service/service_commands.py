"""`mitmsec start`, `stop`, `reload`, `status`, `on` and `off`: the service, by its control socket."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from textwrap import fill
from typing import Any, NoReturn

import click
import msgspec
from rich.text import Text

from mitmsec.channel import Channel, ChannelBroken
from mitmsec.core.model import Action
from mitmsec.core.policy import Policy
from mitmsec.core.policy_packing import packed
from mitmsec.core.selection import Selection
from mitmsec.service import control, notices
from mitmsec.service.called import as_root, program, with_state
from mitmsec.service.joining import START_DEADLINE_S, join
from mitmsec.service.options import (
    EXIT_FAULT,
    EXIT_NOT_SO,
    EXIT_PRIVILEGE,
    EXIT_USAGE,
    debug_option,
    fail,
    json_option,
    need_root,
    state_option,
)
from mitmsec.service.origin_roots import origin_roots
from mitmsec.service.policy_loading import Loaded, flaws_told, load
from mitmsec.service.prepared import prepared_for
from mitmsec.service.refusals import CannotRun
from mitmsec.service.run import SI_KERNEL, WORKERS_LIMIT, memory_file, plan_policy
from mitmsec.service.service_status import told
from mitmsec.service.state import State
from mitmsec.service.terminal import console, shown, tell
from mitmsec.service.unmatched import unmatched
from mitmsec_certs.bundle import roots_as_used

POLICY_FILE = Path("/etc/mitmsec/policy.toml")
ORDER_DEADLINE_S = 60.0
ASKED_S = 5.0
BACKENDS = (
    control.BackendChoice.AUTO,
    control.BackendChoice.CONNECT_HOOK,
    control.BackendChoice.WINDIVERT,
)  # rules of nftables cannot select single programs
HEARD = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}  # in the foreground
NO_SERVICE = "no service runs on this state"

policy_option = click.option(
    "--policy",
    "policy_file",
    type=click.Path(path_type=Path),
    default=POLICY_FILE,
    show_default=True,
    metavar="FILE",
    help="The policy, whose [[application]]s say which programs are selected.",
)


@click.command()
@state_option
@policy_option
@debug_option
@click.option("--workers", type=click.IntRange(1, 64), help="Worker processes. Default: one a core, at most 4.")
@click.option(
    "--backend",
    type=click.Choice([choice.value for choice in BACKENDS]),
    default=control.BackendChoice.AUTO.value,
    help="What diverts. Default: connect_hook; windivert, on Linux, is for tests.",
)
@click.option(
    "--foreground",
    is_flag=True,
    help="Stay until Ctrl-C or SIGTERM, and stop the service then. SIGHUP reads the policy again.",
)
def start(state_folder: Path, policy_file: Path, workers: int | None, backend: str, *, foreground: bool) -> None:
    """Start the service, which diverts what the policy selects.

    Programs that its [[application]]s name are diverted, whoever starts them and whenever. Those that run
    already are selected too, from their next connection on. Returns once the service is at work.
    """
    need_root("start")
    loaded = _loaded(policy_file)
    channel = _joined(State(state_folder), loaded.policy)
    order = control.StartService(
        policy_file=str(policy_file.absolute())[:1024],
        policy_sha256=plan_policy(loaded.text),
        workers=workers or min(WORKERS_LIMIT, len(os.sched_getaffinity(0))),
        bound=foreground,
        backend=control.BackendChoice(backend),
        keys=loaded.keys is not None,
    )
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HEARD) if foreground else set()
    network = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    answer = _answer(
        channel, order, network, *_memory_files(loaded, policy_file, State(state_folder)), deadline_s=START_DEADLINE_S
    )
    if not isinstance(answer, control.ServiceStarted):
        _refused(answer)
    click.echo(f"mitmsec: the service is at work under {shown(policy_file)}", err=True)
    of = with_state(State(state_folder))
    click.echo(f"  {program()} status{of} shows what it does; {program()} stop{of} ends it", err=True)
    if _may_decrypt(loaded.policy) and not _is_trusted(State(state_folder)):
        click.echo(
            f"  no store of this machine was given its CA yet, and programs will refuse it: {program()} ca trust{of}",
            err=True,
        )
    if foreground:
        _stay(channel, policy_file, State(state_folder), before)


def _stay(channel: Channel, policy_file: Path, state: State, mask: set[Any]) -> None:
    """Until somebody wants an end, or the terminal has gone; then the service's own."""
    while (told := signal.sigwaitinfo(HEARD)).si_signo == signal.SIGHUP and told.si_code != SI_KERNEL:
        with contextlib.suppress(SystemExit):  # what is wrong has been said, and the policy in force stays
            _reload(channel, _loaded(policy_file), policy_file, state)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    for number in HEARD:
        signal.signal(number, signal.SIG_IGN)
    click.echo(f"mitmsec: stopping ({signal.Signals(told.si_signo).name})", err=True)
    _tell_stopped(_answer(channel, control.StopService(), deadline_s=ORDER_DEADLINE_S))


def _may_decrypt(policy: Policy) -> bool:
    said = [(rule.action, rule.page) for rule in policy.rules]
    return policy.action is Action.DECRYPT or any(action is Action.DECRYPT or page for action, page in said)


def _is_trusted(state: State) -> bool:
    """As far as is recorded. Who cannot tell says nothing."""
    from mitmsec.service.trust_work import entries

    try:
        return bool(entries(state))
    except (OSError, msgspec.MsgspecError):
        return True


@click.command()
@state_option
@debug_option
def stop(state_folder: Path) -> None:
    """End the service.

    Nothing is diverted any more, live flows get two seconds, every event is committed.
    """
    need_root("stop")
    channel = _connected(State(state_folder))
    _tell_stopped(_answer(channel, control.StopService(), deadline_s=ORDER_DEADLINE_S))


def _tell_stopped(answer: object) -> None:
    if not isinstance(answer, control.RunClosed):
        _refused(answer)
    if not answer.committed:
        fail("the recorder did not confirm that every event is on disk", "read the supervisor's log", EXIT_FAULT)
    cut = f"; {answer.cut} had to be cut" if answer.cut else ""
    recorded = f"{answer.connections} connection{'' if answer.connections == 1 else 's'} recorded"
    click.echo(f"mitmsec: the service has stopped; {recorded}{cut}", err=True)


@click.command("reload")
@state_option
@policy_option
@debug_option
def reload_policy(state_folder: Path, policy_file: Path) -> None:
    """Give the service another policy.

    New connections are decided under it at once; live ones keep what they were decided under. A policy with errors
    changes nothing.
    """
    need_root("reload")
    loaded = _loaded(policy_file)
    state = State(state_folder)
    _reload(_connected(state), loaded, policy_file, state)


def _reload(channel: Channel, loaded: Loaded, policy_file: Path, state: State) -> None:
    order = control.ReloadService(
        policy_file=str(policy_file.absolute())[:1024],
        policy_sha256=plan_policy(loaded.text),
        keys=loaded.keys is not None,
    )
    answer = _answer(channel, order, *_memory_files(loaded, policy_file, state), deadline_s=ORDER_DEADLINE_S)
    if not isinstance(answer, control.ServiceReloaded):
        _refused(answer)
    click.echo(f"mitmsec: new connections are decided under {shown(policy_file)}", err=True)


@click.command()
@state_option
@debug_option
def off(state_folder: Path) -> None:
    """Throw the kill switch: decrypt nothing.

    What would be decrypted is bypassed, and connections that are being decrypted are cut. Block and capture stay.
    Holds for the service and for every run of this state, until `mitmsec on`.
    """
    _switch(State(state_folder), off=True)


@click.command()
@state_option
@debug_option
def on(state_folder: Path) -> None:
    """Take the kill switch back.

    New connections are decrypted again where the policy says so.
    """
    _switch(State(state_folder), off=False)


def _switch(state: State, *, off: bool) -> None:
    need_root("off" if off else "on")
    answer = _answer(_connected(state), control.SwitchService(off=off), deadline_s=ORDER_DEADLINE_S)
    if not isinstance(answer, control.ServiceSwitched):
        _refused(answer)
    what = (
        f"nothing is decrypted any more; {answer.cut} connection{'' if answer.cut == 1 else 's'} cut"
        if off
        else "decrypting goes on"
    )
    click.echo(f"mitmsec: {what}", err=True)


@click.command()
@click.option("--user", "for_user", is_flag=True, help="Say in plain language what is inspected here, and why.")
@state_option
@json_option
@debug_option
def status(state_folder: Path, *, for_user: bool, as_json: bool) -> None:
    """Say what is at work.

    The service, runs, live flows and processes; with --user, what that means for whoever uses this machine, whom
    anybody may ask.

    Exit status 1 if neither service nor run is.
    """
    if for_user:
        return _tell_notice(State(state_folder), as_json=as_json)
    answer = _status(State(state_folder))
    if as_json:
        facts = msgspec.to_builtins(answer) if answer is not None else {"supervisor": None}
        click.echo(msgspec.json.encode({name: fact for name, fact in facts.items() if name != "type"}))
    elif answer is None:
        click.echo("nothing of mitmsec is at work on this state")
    else:
        tell(console(), told(answer))
    if answer is None:
        sys.exit(EXIT_NOT_SO)


def _tell_notice(state: State, *, as_json: bool) -> None:
    notice = notices.hanging(state)
    if as_json:
        click.echo(msgspec.json.encode(notice))
        return
    out = console()
    for section in notice.sections:
        tell(out, Text(section.title, style="bold"))
        for line in section.lines:
            tell(out, Text(fill(shown(line), min(out.width, 100), initial_indent="  ", subsequent_indent="  ")))


def _status(state: State) -> control.StatusAnswer | None:
    """None: nobody listens."""
    try:
        channel = Channel(control.connect(state.control), control.FROM_SUPERVISOR)
    except PermissionError:
        fail("only root and the group mitmsec may ask what is at work", f"try: {as_root()}", EXIT_PRIVILEGE)
    except OSError:
        return None
    answer = _answer(channel, control.StatusQuestion(), deadline_s=ASKED_S)
    if not isinstance(answer, control.StatusAnswer):
        _refused(answer)
    return answer


# -- what they share ---------------------------------------------------------------------------------------------------
def _loaded(policy_file: Path) -> Loaded:
    """The policy, if it is one that a service can keep, and a warning where it selects nobody."""
    loaded = load(policy_file)
    _warn_of_selection(loaded.policy, policy_file)
    return loaded


def _warn_of_selection(policy: Policy, policy_file: Path) -> None:
    """A selection that selects nobody is a mistake, or will be one."""
    if Selection(policy.applications).is_empty:
        fail(
            f"{policy_file} names no [[application]], so the service would select no program",
            'name some, or all: [[application]] name = "everything", path = ["*"]',
            EXIT_USAGE,
        )
    for sentence in unmatched(policy):
        click.echo(f"mitmsec: {sentence}", err=True)


def _memory_files(loaded: Loaded, policy_file: Path, state: State) -> tuple[int, ...]:
    """Policy, roots and the keys of services, for the supervisor. Roots are the system's, and those that it names."""
    try:
        roots = origin_roots(roots_as_used({}), loaded.policy, loaded.roots)
        with flaws_told(policy_file):
            policy = packed(loaded.policy, prepared_for(loaded.policy, state, loaded.rules))
    except CannotRun as error:
        fail(error.error, error.remedy, error.status)
    keys = () if loaded.keys is None else (loaded.keys,)
    return memory_file("policy", policy), memory_file("roots", roots), *keys


def _joined(state: State, policy: Policy) -> Channel:
    try:
        return join(state, worker=policy.needs_workers)
    except CannotRun as error:
        fail(error.error, error.remedy, error.status)


def _connected(state: State) -> Channel:
    try:
        return Channel(control.connect(state.control), control.FROM_SUPERVISOR)
    except OSError:
        fail(NO_SERVICE, f"start one: {program()} start --policy FILE", EXIT_NOT_SO)


def _answer(channel: Channel, message: Any, *fds: int, deadline_s: float) -> object:
    """The supervisor's; None where it has none. The descriptors go."""
    received = None
    with contextlib.suppress(OSError, TimeoutError, ChannelBroken):
        received = channel.exchange(message, *fds, timeout_s=deadline_s)
    for descriptor in fds:
        os.close(descriptor)
    return received[0] if received is not None else None


def _refused(answer: object) -> NoReturn:
    if isinstance(answer, control.Refused):
        fail(answer.error, answer.remedy, answer.status)
    fail("the supervisor did not answer", "STATE/run/supervisor.log says more", EXIT_FAULT)
