"""Owners that are known without a question: read before the connection began, or named a moment ago by the supervisor.

    Ask ──► find ──┬─ its process was read, all of it, while it waited in connect() ─────► OwnerKnown, at once
                   ├─ the same caller, the same program, not REMEMBERED_S ago ───────────► OwnerKnown, at once
                   └─ else ──► supervisor ──► learn ──► OwnerKnown

Who calls is what the kernel said at connect(): the process by its start, the program by its file, the user, the
thread's name. Only answers that are certain and whole are remembered, and none across a change of the policy. So what
a remembered owner may lack is what changes without any of these: its cgroup, for as long.
"""

from __future__ import annotations

from collections.abc import Hashable

from mitmsec.core.model import Confidence, Process, Value
from mitmsec.gate.signals import Origin, OwnerKnown

REMEMBERED_S = 1.0
OWNERS_LIMIT = 1024


class _Told(Value, frozen=True):
    owner: OwnerKnown
    until_s: float


class Owners:
    """The newest OWNERS_LIMIT of them. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._told: dict[Hashable, _Told] = {}

    def find(self, origin: Origin, now_s: float) -> OwnerKnown | None:
        """Whose it is, if its process was told with it, or to us of the same caller."""
        if origin.told is not None and origin.selected and _is_whole(origin.told):
            return OwnerKnown(origin.told)
        told = self._told.get(_caller(origin))
        return told.owner if told is not None and now_s < told.until_s else None

    def learn(self, origin: Origin, process: Process, now_s: float, *, selected: bool) -> OwnerKnown:
        """The supervisor's answer, and remembered where it can be."""
        owner, caller = OwnerKnown(process, selected), _caller(origin)
        if caller is not None and _is_whole(process):
            self._told.pop(caller, None)
            self._told[caller] = _Told(owner, now_s + REMEMBERED_S)
            if len(self._told) > OWNERS_LIMIT:
                del self._told[next(iter(self._told))]
        return owner

    def forget(self) -> None:
        """Another policy asks other things, and may select others."""
        self._told.clear()


def _is_whole(process: Process) -> bool:
    """Certain, and nothing of it is still to come."""
    return process.confidence is Confidence.KERNEL and process.sha256 is not None and not process.unread


def _caller(origin: Origin) -> Hashable:
    """What tells one caller from all others; None: the kernel has not said that."""
    if origin.caller is None or not origin.pid:
        return None
    return origin.pid, origin.uid, origin.comm, origin.caller, origin.selected
