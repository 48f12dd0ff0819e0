"""Why nothing could be started, as the operator is told: whose fault it is, and what to do next.

A process that cannot start says a short word and a sentence, `log_damaged: event 7 does not follow …`. What has no such
word may be this machine's lack, which `doctor` finds; what is left is a fault of ours.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import NamedTuple

from mitmsec.service.called import program, with_state
from mitmsec.service.state import State

MACHINE, OURS = 3, 125  # exit statuses
HARMLESS = ("pid namespace",)  # names of processes are wrong in another one, but everything starts
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
ROOM_BYTES = 64 << 10  # with less, nothing can be started
_FULL_WORDS = (*map(os.strerror, sorted(FULL)), "database or disk is full")


class CannotRun(Exception):
    """The command was not started. `status` says whose fault that is (see INTERFACE in docs)."""

    def __init__(self, error: str, remedy: str, status: int) -> None:
        super().__init__(error)
        self.error, self.remedy, self.status = error, remedy, status


class Told(NamedTuple):
    """An error, its remedy, and the exit status that says whose it is."""

    error: str
    remedy: str
    status: int


def of_start(said: str, state: State) -> Told:
    """`said` is what the process that did not start has said."""
    what, _, detail = said.partition(": ")
    if any(words in said for words in _FULL_WORDS) or _is_full(state):
        return no_room(f"the disk is full: {detail if what in _WORDS else said}", state)
    words = _WORDS.get(what)
    if words is None:
        return of_machine(said, f"read {state.supervisor_log}; `mitmsec doctor` checks this machine")
    error, remedy = words
    return Told(f"{error}: {detail}", remedy.format(mitmsec=program(), state=with_state(state), log=state.log), MACHINE)


def _is_full(state: State) -> bool:
    """SQLite calls it an I/O error where it is its index that finds no room."""
    with contextlib.suppress(OSError):
        disk = os.statvfs(state.folder)
        return disk.f_bavail * disk.f_frsize < ROOM_BYTES
    return False


def of_machine(error: str, otherwise: str, status: int = OURS) -> Told:
    """With what this machine lacks, if it does; else `otherwise` is the remedy, and `status` stands."""
    from mitmsec_redirect.probe import checks

    lack = next((check for check in checks() if not check.ok and check.name not in HARMLESS), None)
    if lack is None:
        return Told(error, otherwise, status)
    return Told(f"{error}; {lack.name}: {lack.detail}", lack.remedy or "`mitmsec doctor` says more", MACHINE)


def no_room(error: str, state: State) -> Told:
    return Told(error, f"make room on the disk of {state.folder}, or name another place with --state", MACHINE)


_NEW_LOG = (
    "`{mitmsec} audit verify{state}` says what is wrong; keep a copy of {log}, then move it away: a new log begins"
)
_WORDS = {
    "log_damaged": ("the audit log is broken", _NEW_LOG),
    "log_key_refused": ("the key of the audit log cannot be used", "put that right; nothing runs unsigned"),
    "log_unwritable": ("the audit log cannot be written", "put that right; nothing runs unrecorded"),
    "ca_refused": (
        "the CA cannot be used",
        "put that right, or drop the CA (the log stays), and the next run makes one: {mitmsec} clean --purge-ca{state}",
    ),
}
