"""Sessions that began and whose end is on no record: their supervisor was killed.

    opened ── begin ──► STATE/run/SESSION.open ── end ──► removed, once run_ended or service_stopped is on disk
                                │
                                └── left, at the next start ──► a fault, once

A file beside the session's folder, for that may stay (survivors read in it) or go (`clean`) on other grounds.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from mitmsec.core.model import OnFailure, Value
from mitmsec.service.state import State

ENDING = ".open"


class Begun(Value, frozen=True):
    """What has to be known of a session once nobody is left who could tell."""

    session: str
    program: str = ""
    on_failure: OnFailure | None = None  # None: what was written did not reach the disk


def begin(state: State, begun: Begun) -> None:
    """The session is about to open. Raises OSError."""
    _path(state, begun.session).write_bytes(msgspec.json.encode(begun))


def end(state: State, session: str) -> None:
    """Its end is on record."""
    with contextlib.suppress(OSError):
        _path(state, session).unlink(missing_ok=True)


def left(state: State) -> list[Begun]:
    """Those of earlier supervisors. Call with the state's lock held."""
    return [_read(path) for path in sorted(state.run.glob(f"*{ENDING}"))]


def _path(state: State, session: str) -> Path:
    return state.run / f"{session}{ENDING}"


def _read(path: Path) -> Begun:
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode(path.read_bytes(), type=Begun)
    return Begun(session=path.name.removesuffix(ENDING))
