"""What commands do to trust stores, each step on record; and what the journal says of them, for who looks.

ca trust ──┐                        ┌─► a `ca` event: trusted, untrusted
ca untrust ├─► keeper, under the journal's lock ─┤
clean ─────┘                        └─► what became of it, told
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial

from mitmsec.audit.event import CaSeen
from mitmsec.core.model import Value
from mitmsec.service import ca_journal
from mitmsec.service.state import State
from mitmsec_certs.truststore.host import Host
from mitmsec_certs.truststore.journal import Entry, Journal, Phase
from mitmsec_certs.truststore.keeper import Became, Done, Keeper, NotDone
from mitmsec_certs.truststore.plan import Root, Store

CHANGED = (Became.ADDED, Became.GONE, Became.REMOVED, Became.RESTORED)


class Standing(StrEnum):
    """How a store stands to one of our roots: as recorded, and as read back."""

    HALF_DONE = "half_done"
    LOST = "lost"  # recorded as ours, and somebody has taken it out
    NOT_TRUSTED = "not_trusted"
    TRUSTED = "trusted"
    TRUSTED_BY_OTHERS = "trusted_by_others"  # with another store of ours, or by somebody else's hand
    UNKNOWN = "unknown"


class Row(Value, frozen=True):
    """One root in one store, as a list shows it."""

    store: str
    place: str
    user: str
    state: Standing
    subject: str
    sha256: str
    not_after: str
    since: str = ""
    problem: str = ""


class _NothingDone(Exception):
    """Nothing is to go on record."""

    def __init__(self, done: Done) -> None:
        super().__init__()
        self.done = done


def trust(state: State, stores: Sequence[Store], roots: Sequence[Root], user: str) -> Iterator[Done | NotDone]:
    """Each root into each store, what became of it as it becomes. Raises OSError."""
    with held(state) as (keeper, _):
        for store in stores:
            for root in roots:
                yield _recorded(state, "trusted", store, root, user, partial(keeper.trust, store, root))


def untrust(state: State, entries: Iterable[Entry], user: str) -> Iterator[Done | NotDone]:
    """Out of each store, the last one first. Raises OSError."""
    with held(state) as (keeper, journal):
        wanted = {entry.number for entry in entries}
        for entry in reversed(journal.entries()):
            if entry.number in wanted:
                store, root = entry.store, entry.root
                yield _recorded(state, "untrusted", store, root, user, partial(keeper.untrust, entry))
        journal.vanish()


def entries(state: State) -> list[Entry]:
    """What is recorded as ours. Raises OSError, msgspec.MsgspecError."""
    return Journal(state.trust).entries()


def ended(entry: Entry) -> bool:
    """The root's time is over: nobody can need it any more."""
    return entry.root.not_after < now()


def listed(state: State, stores: Sequence[Store], roots: Sequence[Root]) -> Iterator[Row]:
    """Each of our roots in each store: as recorded, and as read back now."""
    recorded = entries(state)
    keeper = _keeper(state)
    pairs = [(entry.store, entry.root) for entry in recorded]
    pairs += [(store, root) for store in stores for root in roots]
    for store, root in dict.fromkeys(pairs):
        entry = next((one for one in recorded if (one.store, one.root) == (store, root)), None)
        try:
            standing, problem = _standing(entry, keeper.holds(store, root)), ""
        except NotDone as error:
            standing, problem = Standing.UNKNOWN, str(error)
        yield Row(
            store=store.name,
            place=store.place,
            user=store.user,
            state=standing,
            subject=root.subject,
            sha256=root.sha256,
            not_after=root.not_after,
            since=entry.since if entry is not None else "",
            problem=problem,
        )


def now() -> str:
    """RFC 3339, UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _standing(entry: Entry | None, holds: bool) -> Standing:
    if entry is None:
        return Standing.TRUSTED_BY_OTHERS if holds else Standing.NOT_TRUSTED
    if entry.phase is not Phase.TRUSTED:
        return Standing.HALF_DONE
    return Standing.TRUSTED if holds else Standing.LOST


@contextlib.contextmanager
def held(state: State) -> Iterator[tuple[Keeper, Journal]]:
    """Who changes stores: one at a time. Raises OSError."""
    journal = Journal(state.trust)
    with journal.held():
        yield _keeper(state), journal


def _keeper(state: State) -> Keeper:
    return Keeper(Journal(state.trust), Host(), now)


def _recorded(
    state: State, operation: str, store: Store, root: Root, user: str, work: Callable[[], Done]
) -> Done | NotDone:
    """What `work` did goes on record, unless it changed nothing."""
    seen = CaSeen(
        operation=operation,
        subject=root.subject,
        sha256=root.sha256,
        not_after=root.not_after,
        detail=str(store),
        user=user,
    )
    try:
        with ca_journal.noted(state, seen):
            done = work()
            if done.became not in CHANGED:
                raise _NothingDone(done)
            return done
    except _NothingDone as nothing:
        return nothing.done
    except NotDone as error:
        return error
