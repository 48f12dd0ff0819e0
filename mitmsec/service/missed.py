"""What the hook saw and could not or must not divert, as events: one for each program and endpoint, with a count.

A program may try a thousand times a second, and to a thousand places. What is the same within one collection is one
event; beyond EVENTS_LIMIT different ones the rest of a reason is one event that says how many.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable

from mitmsec.audit.event import ConnectionSeen, FaultSeen, Outcome, Seen
from mitmsec.core.model import Action, Endpoint, Process
from mitmsec_redirect.records import Missed, Reason

EVENTS_LIMIT = 16  # of one collection, of which there are ten a second


def events(missed: Iterable[Missed], whose: Callable[[Missed], Process], session: str) -> list[Seen]:
    """`whose` is asked once for each process and reason."""
    counts: Counter[tuple[int, Endpoint, Reason, bool]] = Counter()
    first: dict[tuple[int, Endpoint, Reason, bool], Missed] = {}
    rest: Counter[tuple[Reason, bool]] = Counter()
    for one in missed:
        key = (one.pid, one.remote, one.reason, one.denied)
        if key in first or len(first) < EVENTS_LIMIT:
            first.setdefault(key, one)
            counts[key] += 1
        else:
            rest[one.reason, one.denied] += 1
    found = [_event(one, counts[key], whose(one), session) for key, one in first.items()]
    found += [
        FaultSeen(
            what=reason,
            detail="more attempts, to other places or by other processes",
            failed="closed" if denied else "open",
            session=session,
            count=count,
        )
        for (reason, denied), count in rest.items()
    ]
    return found


def _event(missed: Missed, count: int, process: Process, session: str) -> Seen:
    if missed.reason is Reason.QUIC_REFUSED:
        return refused_quic(missed, process, session, count)
    return FaultSeen(
        what=missed.reason,
        detail=f"{process.exe or missed.comm} to {missed.remote}",
        failed="closed" if missed.denied else "open",
        session=session,
        pid=missed.pid,
        count=count,
    )


def refused_quic(missed: Missed, process: Process, session: str, count: int) -> ConnectionSeen:
    """The event of refused QUIC attempts: the program falls back to TCP."""
    often = f" ({count} attempts)" if count > 1 else ""
    return ConnectionSeen(
        flow=f"{session}-quic-{time.time_ns():x}",
        process=process,
        protocol="quic",
        local=missed.remote.of("::" if missed.remote.is_v6 else "0.0.0.0", 0),  # noqa: S104 - not bound yet
        remote=missed.remote,
        action=Action.BLOCK,
        rule="defaults",
        reason=f'quic = "refuse": the program is to fall back to TCP{often}',
        bytes_sent=0,
        bytes_received=0,
        duration_ms=0,
        outcome=Outcome.BLOCKED,
    )
