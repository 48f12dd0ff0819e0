"""A front-end's way to the supervisor of its state: the one that listens, else one that it starts."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time

from mitmsec.channel import Channel
from mitmsec.service import control, refusals
from mitmsec.service.refusals import CannotRun
from mitmsec.service.state import State, StateRefused

START_DEADLINE_S = 45.0
BUSY_PAUSE_S = 0.2
SUPERVISOR = (sys.executable, "-P", "-m", "mitmsec.service", "supervisor")


def made(state: State) -> None:
    """The folders of `state` are there, each its owner's. Raises CannotRun."""
    try:
        state.make()
    except StateRefused as error:
        raise CannotRun(error.reason, error.remedy, 2) from None
    except OSError as error:
        said = f"--state: {state.folder} cannot be used: {error.strerror}"
        told = refusals.no_room(said, state) if error.errno in refusals.FULL else None
        raise CannotRun(*told or refusals.of_machine(said, "name a folder that root can write", 2)) from None


def join(state: State, *, worker: bool) -> Channel:
    """A channel to the supervisor of `state`, started if none listens; then, with `worker`, with one that will be used.

    Raises CannotRun.
    """
    made(state)
    deadline = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            return Channel(control.connect(state.control), control.FROM_SUPERVISOR)
        _start_supervisor(state, worker=worker)
    raise CannotRun(
        "the supervisor did not start", f"read {state.supervisor_log}; `mitmsec doctor` checks this machine", 125
    )


def _start_supervisor(state: State, *, worker: bool) -> None:
    """Start one and wait until it serves; one that finds another alive ends at once. Raises CannotRun."""
    reading, writing = os.pipe()
    with open(state.supervisor_log, "ab", opener=_private) as log, open(os.devnull, "rb") as nothing:
        subprocess.Popen(
            [*SUPERVISOR, str(state.folder), str(writing), *(["worker"] if worker else [])],
            stdin=nothing,
            stdout=log,
            stderr=log,
            pass_fds=(writing,),
            start_new_session=True,
            cwd="/",
        )
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.readline().decode(errors="replace").strip()
    if said == "busy":
        time.sleep(BUSY_PAUSE_S)  # another one is starting or ending
    elif said != "ready":
        raise CannotRun(*refusals.of_start(said or "the supervisor ended without a word", state))


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)
