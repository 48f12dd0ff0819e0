"""`mitmsec clean`: remove what dead owners left, and prove it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import click
import msgspec

from mitmsec.service.options import EXIT_NOT_SO, EXIT_USAGE, debug_option, fail, json_option, need_root, state_option
from mitmsec.service.state import State, StateBusy

ENDING_S = 5.0  # for a supervisor whose last run has just returned


@click.command()
@state_option
@json_option
@debug_option
@click.option("--purge", is_flag=True, help="Remove the log and the CA's keys too. There is no way back.")
def clean(state_folder: Path, *, as_json: bool, purge: bool) -> None:
    """Remove what killed runs left in the kernel.

    Hooks, cgroups, mounts and sockets go, and a second look proves it. The log and the keys stay unless --purge. A run
    that is alive is not touched. Exit status 1 if something could not be removed.
    """
    from mitmsec.service import leftovers

    need_root("clean")
    state = State(state_folder)
    if not state.run.is_dir():
        click.echo(f"nothing to clean: {state.folder} holds nothing of mitmsec", err=True)
        if as_json:
            click.echo(json.dumps({"removed": 0, "left": []}))
        return
    lock = _lock(state)
    try:
        removed = leftovers.clean(state, purge=purge)
        left = leftovers.remaining(state)
    finally:
        os.close(lock)
    for item in removed:
        _tell(item, as_json=as_json)
    if left:
        fail(f"still there: {', '.join(left)}", "the lines above say why", EXIT_NOT_SO)
    if as_json:
        click.echo(json.dumps({"removed": len(removed), "left": left}))
    else:
        click.echo("nothing of mitmsec is left in the kernel" + ("" if removed else "; nothing had to be removed"))


def _lock(state: State) -> int:
    """The state's lock; a supervisor that is just ending is waited for."""
    deadline = time.monotonic() + ENDING_S
    while True:
        try:
            return state.hold()
        except StateBusy:
            if time.monotonic() > deadline:
                fail(
                    f"a run is alive under {state.folder}", "end it first; `clean` never touches the living", EXIT_USAGE
                )
            time.sleep(0.05)


def _tell(item: msgspec.Struct, *, as_json: bool) -> None:
    fields = msgspec.to_builtins(item)
    if as_json:
        click.echo(json.dumps(fields))
        return
    problem = f" could not be removed: {fields['problem']}" if fields["problem"] else " removed"
    click.echo(f"{fields['what']:>14}  {fields['name']}{problem}")
