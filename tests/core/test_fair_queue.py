"""Whoever has much to wait for holds up nobody else."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core.fair_queue import FairQueue

WAITING = st.lists(st.sampled_from("abc"), max_size=12)


def test_keys_take_turns_and_each_keeps_its_order() -> None:
    queue = FairQueue[str]()
    for one in ("a1", "a2", "a3", "b1", "c1"):
        queue.add(one[0], one)
    assert [queue.pop() for _ in range(len(queue))] == ["a1", "b1", "c1", "a2", "a3"]
    with pytest.raises(LookupError):
        queue.pop()


@given(WAITING)
def test_nobody_waits_for_more_than_one_of_each_other_for_each_of_its_own(keys: list[str]) -> None:
    queue = FairQueue[tuple[str, int]]()
    counts: dict[str, int] = defaultdict(int)
    for key in keys:
        queue.add(key, (key, counts[key]))
        counts[key] += 1
    popped = [queue.pop() for _ in keys]
    assert sorted(popped) == sorted((key, number) for key, count in counts.items() for number in range(count))
    for place, (key, number) in enumerate(popped):
        before = popped[:place]
        assert [own for own in before if own[0] == key] == [(key, earlier) for earlier in range(number)]
        assert all(sum(1 for own in before if own[0] == other) <= number + 1 for other in counts)


@given(WAITING, st.data())
def test_what_is_withdrawn_is_never_next(keys: list[str], data: st.DataObject) -> None:
    queue = FairQueue[tuple[str, int]]()
    waiting = [(key, number) for number, key in enumerate(keys)]
    for one in waiting:
        queue.add(one[0], one)
    gone = data.draw(st.lists(st.sampled_from(waiting), unique=True)) if waiting else []
    for one in [*gone, *gone, ("z", 0)]:
        queue.discard(one[0], one)
    assert len(queue) == len(waiting) - len(gone)
    assert {queue.pop() for _ in range(len(queue))} == {*waiting} - {*gone}
