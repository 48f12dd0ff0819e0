"""Floods of faults become few events."""

from __future__ import annotations

from mitmsec.audit.event import FaultSeen
from mitmsec.core.model import OnFailure
from mitmsec.gate.faults import Faults


def test_the_first_is_told_at_once_and_repetitions_are_counted() -> None:
    told: list[FaultSeen] = []
    faults = Faults(told.append, "s")
    for number in range(5):
        faults.saw("stranger", detail=f"from {number}", flow=f"f{number}")
    assert told == [FaultSeen(what="stranger", detail="from 0", flow="f0", session="s")]
    faults.tick()
    assert told[1:] == [FaultSeen(what="stranger", detail="from 4", session="s", count=4)]
    faults.saw("stranger")
    faults.tick()
    assert told[2:] == [FaultSeen(what="stranger", session="s", count=1)]


def test_after_a_quiet_second_the_next_is_a_first_again() -> None:
    told: list[FaultSeen] = []
    faults = Faults(told.append, "s")
    faults.saw("x")
    faults.tick()
    faults.saw("x")
    assert [seen.count for seen in told] == [1, 1]


def test_ways_to_fail_are_told_apart() -> None:
    told: list[FaultSeen] = []
    faults = Faults(told.append, "s")
    for failed in OnFailure:
        faults.saw("no_worker", failed)
    assert {seen.failed for seen in told} == {"open", "closed"}
