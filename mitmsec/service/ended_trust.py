"""Roots of ours in trust stores whose time is over: seen at each start, taken out by a process of its own.

The supervisor starts them, and it loads nothing that handles certificates. So here a note is read for its date alone.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from datetime import UTC, datetime

import msgspec

from mitmsec.service.state import State

PROGRAM = "mitmsec.service.left_trust"
DEADLINE_S = 300.0


class _Root(msgspec.Struct):
    not_after: str


class _Entry(msgspec.Struct):
    root: _Root


def withdraw_ended(state: State) -> list[tuple[str, str]]:
    """Names of stores whose root had ended, each with what went wrong ("": nothing)."""
    if not _has_ended(state):
        return []
    command = [sys.executable, "-P", "-m", PROGRAM, str(state.folder)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=DEADLINE_S, cwd="/", stdin=subprocess.DEVNULL)
        return msgspec.json.decode(done.stdout, type=list[tuple[str, str]])
    except (OSError, subprocess.TimeoutExpired, msgspec.MsgspecError) as error:
        return [(str(state.trust), f"the process that should have done it failed: {error}")]


def _has_ended(state: State) -> bool:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    for note in state.trust.glob("[0-9]*/entry.json"):
        with contextlib.suppress(OSError, msgspec.MsgspecError):  # `clean` says what is wrong with it
            if msgspec.json.decode(note.read_bytes(), type=_Entry).root.not_after < now:
                return True
    return False
