"""What the hook saw and could not or must not divert, as events: one for each program and endpoint, with a count.

A program may try a thousand times a second, and to a thousand places. What is the same within one collection is one
event; beyond EVENTS_LIMIT different ones the rest of a reason is one event that says how many. What the policy refuses
(QUIC) is a blocked connection; anything else is a fault.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable

from msgspec.structs import replace

from mitmsec.audit.event import ConnectionSeen, FaultSeen, Outcome, Seen
from mitmsec.core.model import Action, Caller, Endpoint, Process
from mitmsec_redirect.records import Missed, Reason

EVENTS_LIMIT = 16  # of one collection, of which there are ten a second

type _Who = tuple[int, Caller | None, int, Reason]


class Misses:
    """Of one session: taken often, for who made an attempt may end at any moment; told seldom, for they are many."""

    def __init__(self, whose: Callable[[Missed], Process], session: str) -> None:
        self._whose, self._session = whose, session
        self.policy = ""
        """The fingerprint of the policy in force, for the record."""
        self._missed: list[Missed] = []
        self._owners: dict[_Who, Process] = {}

    def take(self, missed: Iterable[Missed]) -> None:
        """Whose they are is asked at once, for each process, user and reason."""
        for one in missed:
            self._missed.append(one)
            if _who(one) not in self._owners:
                self._owners[_who(one)] = self._whose(one)

    def told(self) -> list[Seen]:
        """The events of what was taken since the last time."""
        missed, owners = self._missed, self._owners
        self._missed, self._owners = [], {}
        found = events(missed, lambda one: owners[_who(one)], self._session)
        return [replace(event, policy=self.policy) if isinstance(event, ConnectionSeen) else event for event in found]


def _who(one: Missed) -> _Who:
    """Of processes that are not known, all have pid 0, but not all the same user."""
    return one.pid, one.caller, one.uid, one.reason


def events(missed: Iterable[Missed], whose: Callable[[Missed], Process], session: str) -> list[Seen]:
    """`whose` is asked once for each process, user and reason."""
    counts: Counter[tuple[_Who, Endpoint, bool]] = Counter()
    first: dict[tuple[_Who, Endpoint, bool], Missed] = {}
    rest: Counter[tuple[Reason, bool]] = Counter()
    beyond: dict[Reason, Missed] = {}
    known: dict[_Who, Process] = {}

    def process(one: Missed) -> Process:
        if _who(one) not in known:
            known[_who(one)] = whose(one)
        return known[_who(one)]

    for one in missed:
        key = (_who(one), one.remote, one.denied)
        if key in first or len(first) < EVENTS_LIMIT:
            first.setdefault(key, one)
            counts[key] += 1
        else:
            rest[one.reason, one.denied] += 1
            beyond.setdefault(one.reason, one)
    found = [_event(one, counts[key], process(one), session) for key, one in first.items()]
    for (reason, denied), count in rest.items():
        if reason is Reason.QUIC_REFUSED:
            one = beyond[reason]
            found.append(refused_quic(one, process(one), session, count, "to this and other places"))
        else:
            found.append(_rest(reason, count, session, denied=denied))
    return found


def _rest(reason: Reason, count: int, session: str, *, denied: bool) -> FaultSeen:
    return FaultSeen(
        what=reason,
        detail="more attempts, to other places or by other processes",
        failed="closed" if denied else "open",
        session=session,
        count=count,
    )


def _event(missed: Missed, count: int, process: Process, session: str) -> Seen:
    if missed.reason is Reason.QUIC_REFUSED:
        return refused_quic(missed, process, session, count)
    return FaultSeen(
        what=missed.reason,
        detail=f"{process.exe or missed.comm or 'a program'} to {missed.remote}",
        failed="closed" if missed.denied else "open",
        session=session,
        pid=missed.pid or None,
        count=count,
    )


def refused_quic(missed: Missed, process: Process, session: str, count: int, where: str = "") -> ConnectionSeen:
    """The event of refused QUIC attempts: the program falls back to TCP."""
    words = [f"{count} attempts"] * (count > 1) + [where] * bool(where)
    often = f" ({', '.join(words)})" if words else ""
    return ConnectionSeen(
        flow=f"{session}-quic-{time.time_ns():x}",
        process=process,
        protocol="quic",
        local=missed.remote.of("::" if missed.remote.is_v6 else "0.0.0.0", 0),  # noqa: S104 - not bound yet
        remote=missed.remote,
        action=Action.BLOCK,
        rule="defaults",
        reason=f"QUIC is refused: the program is to fall back to TCP{often}",
        bytes_sent=0,
        bytes_received=0,
        duration_ms=0,
        outcome=Outcome.BLOCKED,
        session=session,
    )
