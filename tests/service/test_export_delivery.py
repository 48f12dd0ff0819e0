"""At least once and in order: what was not settled is taken once more, and nothing is kept before it was settled."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.audit.export.cursor import BEGINNING, Position
from mitmsec.service.export_delivery import POLL_S, Batch, Delivery, Undelivered

EVENTS, BATCH = 40, 4


class Log:
    """Forty events in batches of four, each second of which has nothing to write."""

    def __init__(self, size: int = EVENTS) -> None:
        self.size = size

    def after(self, at: Position) -> Batch | None:
        seqs = range(at.seq + 1, min(at.seq + 1 + BATCH, self.size))
        if not seqs:
            return None
        records = tuple(b"%d" % seq for seq in seqs if seq in WANTED)
        return Batch(records, Position(seqs[-1], "x"))


WANTED = [seq for seq in range(EVENTS) if not (seq // BATCH) % 2]


class Place:
    """A sink that fails at the attempts named, in taking or in settling; what was not settled is then lost."""

    def __init__(self, fails: Sequence[int] = (), settles_after: int = 1, within_s: float = 1e9) -> None:
        self.fails, self.settles_after, self.settles_within_s = set(fails), settles_after, within_s
        self.attempts, self.held, self.safe = 0, list[int](), list[int]()

    def take(self, records: Sequence[bytes]) -> None:
        self._attempt()
        self.held += map(int, records)

    def settle(self) -> None:
        self._attempt()
        self.safe += self.held
        self.held = []

    def _attempt(self) -> None:
        self.attempts += 1
        if self.attempts in self.fails:
            self.held = []
            raise Undelivered("the line broke")


class Time:
    """Passes only where somebody waits; after so many pauses Ctrl-C is pressed."""

    def __init__(self, pauses: int = 1000) -> None:
        self.now, self.left, self.spans = 0.0, pauses, list[float]()

    def now_s(self) -> float:
        return self.now

    def pause(self, span_s: float) -> None:
        self.spans.append(span_s)
        self.now += span_s
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def test_everything_is_settled_once_and_kept_behind() -> None:
    place, kept = Place(), list[int]()

    def keep(at: Position) -> None:
        kept.append(at.seq)
        assert place.safe == [seq for seq in WANTED if seq <= at.seq]

    Delivery(Log().after, place, keep, Time()).run(BEGINNING, follow=False)
    assert place.safe == WANTED
    assert kept == list(range(BATCH - 1, EVENTS, BATCH))


def test_a_window_is_settled_when_it_is_full_and_at_the_end() -> None:
    place, kept = Place(settles_after=10), list[int]()
    Delivery(Log().after, place, lambda at: kept.append(at.seq), Time()).run(BEGINNING, follow=False)
    assert place.safe == WANTED
    assert kept == [19, 23, 39]  # twelve records; then a batch without any; the rest at the end


def test_who_does_not_follow_ends_at_the_first_failure() -> None:
    kept: list[int] = []
    with pytest.raises(Undelivered):
        Delivery(Log().after, Place([5]), lambda at: kept.append(at.seq), Time()).run(BEGINNING, follow=False)
    assert kept == [3, 7, 11, 15]


@given(st.lists(st.integers(1, 40), max_size=12), st.integers(1, 20), st.integers(-1, EVENTS - 1))
def test_who_follows_delivers_each_at_least_once_and_in_order(fails: list[int], window: int, start: int) -> None:
    place, kept = Place(fails, window, within_s=3), [start]

    def keep(at: Position) -> None:
        assert at.seq >= kept[-1]
        assert set(place.safe) >= {seq for seq in WANTED if start < seq <= at.seq}
        kept.append(at.seq)

    delivery = Delivery(Log().after, place, keep, Time(pauses=40))
    with pytest.raises(KeyboardInterrupt):
        delivery.run(Position(start, ""), follow=True)
    assert place.safe == [seq for seq in WANTED if seq > start]  # this place loses what it had not settled
    assert kept[-1] == EVENTS - 1


def test_waiting_doubles_until_it_goes_well_and_is_told() -> None:
    time, told = Time(pauses=12), list[str]()
    delivery = Delivery(Log(BATCH).after, Place(range(1, 9)), lambda at: None, time, told.append)
    with pytest.raises(KeyboardInterrupt):
        delivery.run(BEGINNING, follow=True)
    assert time.spans == [1, 2, 4, 8, 16, 32, 60, 60, POLL_S, POLL_S, POLL_S, POLL_S]
    assert told[0] == "the line broke; trying again in 1 s"
    assert told[-1] == "delivered again"


def test_what_is_old_is_settled_though_it_is_little() -> None:
    place, kept = Place(settles_after=1000, within_s=2), list[int]()
    with pytest.raises(KeyboardInterrupt):
        Delivery(Log(BATCH).after, place, lambda at: kept.append(at.seq), Time(pauses=2)).run(BEGINNING, follow=True)
    assert place.held == []
    assert kept[-1] == BATCH - 1


def test_ctrl_c_settles_what_was_sent_and_a_place_that_fails_then_is_not_waited_for() -> None:
    place, kept = Place(settles_after=1000), list[int]()
    with pytest.raises(KeyboardInterrupt):
        Delivery(Log().after, place, lambda at: kept.append(at.seq), Time(pauses=1)).run(BEGINNING, follow=True)
    assert (place.safe, kept) == (WANTED, [EVENTS - 1])
    place, kept = Place(fails=range(6, 99), settles_after=1000), []
    with pytest.raises(KeyboardInterrupt):
        Delivery(Log().after, place, lambda at: kept.append(at.seq), Time(pauses=1)).run(BEGINNING, follow=True)
    assert kept == []
