"""One budget for all depths: each limit, what it is told as, and that it stays spent."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mitmsec_addons import unpack_budget
from mitmsec_addons.unpack_budget import CALL_S, DEPTH, ENTRIES, FREE_BYTES, RATIO, TOTAL_BYTES, Budget, Spent


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_expansion_counts_from_what_came_in() -> None:
    budget = Budget(Clock())
    budget.begins(1000)
    budget.unpacked(FREE_BYTES + RATIO * 1000)
    with pytest.raises(Spent, match="more than 100 times its size"):
        budget.unpacked(1)


def entries(budget: Budget) -> None:
    for _ in range(ENTRIES + 1):
        budget.entry(1)


def too_long(budget: Budget) -> None:
    budget._clock.now_s += CALL_S + 0.1  # type: ignore[attr-defined]
    budget.unpacked(1)


def large(budget: Budget) -> None:
    budget.begins(TOTAL_BYTES)
    budget.unpacked(TOTAL_BYTES + 1)


@pytest.mark.parametrize(
    ("use", "why"),
    [
        (entries, "has more than 10000 entries"),
        (lambda budget: budget.entry(DEPTH + 1), "is packed more than 8 times"),
        (too_long, "takes more than 0.6 s to unpack"),
        (large, "unpacks to more than 536870912 bytes"),
    ],
)
def test_each_limit_says_what_there_is_too_much_of_and_stays_spent(use: Callable[[Budget], None], why: str) -> None:
    budget = Budget(Clock())
    with pytest.raises(Spent, match=why):
        use(budget)
    budget.begins(1 << 20)
    with pytest.raises(Spent, match=why):
        budget.unpacked(0)


def test_each_call_has_its_own_time() -> None:
    clock = Clock()
    budget = Budget(clock)
    for _ in range(5):
        budget.begins(1)
        clock.now_s += unpack_budget.CALL_S * 0.9
        budget.check()


def test_it_is_told_once() -> None:
    budget = Budget(Clock())
    assert [budget.told(), budget.told(), budget.told()] == [False, True, True]
