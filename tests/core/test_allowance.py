"""A token bucket: a burst, and then a rate."""

from __future__ import annotations

from mitmsec.core.allowance import Allowance


def test_an_allowance_refills_with_time_up_to_its_burst() -> None:
    allowance = Allowance(2.0, 3.0, 100.0)
    assert [allowance.spend(100.0) for _ in range(4)] == [True, True, True, False]
    assert [allowance.spend(100.5) for _ in range(2)] == [True, False]
    assert [allowance.spend(900.0) for _ in range(4)] == [True, True, True, False]
