"""Owners that are remembered for a moment."""

from __future__ import annotations

import pytest
from gate_house import CURL
from msgspec.structs import replace

from mitmsec.core.model import Caller, Confidence, Endpoint, Process
from mitmsec.gate.owners import OWNERS_LIMIT, REMEMBERED_S, Owners
from mitmsec.gate.signals import Origin, OwnerKnown

REMOTE = Endpoint(address="192.0.2.1", port=443)
CALLER = Caller(start_ns=10**9, parent=1, parent_start_ns=5, device=7, inode=8, ctime_ns=9)
ORIGIN = Origin(remote=REMOTE, pid=4711, uid=1000, comm="curl", connected_ns=1, caller=CALLER)
KNOWN = replace(CURL, sha256="00" * 32, confidence=Confidence.KERNEL)


def test_who_calls_again_is_known_wherever_it_calls() -> None:
    owners = Owners()
    assert owners.find(ORIGIN, 0.0) is None
    told = owners.learn(ORIGIN, KNOWN, 0.0, selected=True)
    again = replace(ORIGIN, remote=Endpoint(address="192.0.2.2", port=80), connected_ns=99)
    assert owners.find(again, REMEMBERED_S / 2) == told
    assert (told.process, told.selected) == (KNOWN, True)


@pytest.mark.parametrize(
    "other",
    [
        replace(ORIGIN, pid=4712),
        replace(ORIGIN, uid=0),
        replace(ORIGIN, comm="wget"),
        replace(ORIGIN, selected=True),
        replace(ORIGIN, caller=None),
        replace(ORIGIN, caller=replace(CALLER, start_ns=10**9 + 1)),
        replace(ORIGIN, caller=replace(CALLER, inode=88)),
        replace(ORIGIN, caller=replace(CALLER, device=77)),
        replace(ORIGIN, caller=replace(CALLER, ctime_ns=99)),
        replace(ORIGIN, caller=replace(CALLER, parent=2)),
    ],
)
def test_another_process_program_or_user_is_asked_for(other: Origin) -> None:
    owners = Owners()
    owners.learn(ORIGIN, KNOWN, 0.0, selected=True)
    assert owners.find(other, 0.0) is None


@pytest.mark.parametrize(
    "process",
    [
        replace(KNOWN, confidence=Confidence.INFERRED),
        replace(KNOWN, confidence=Confidence.TABLE),
        replace(KNOWN, sha256=None),
        Process(pid=4711),
    ],
)
def test_an_answer_that_may_become_better_is_not_remembered(process: Process) -> None:
    owners = Owners()
    assert owners.learn(ORIGIN, process, 0.0, selected=True).process == process
    assert owners.find(ORIGIN, 0.0) is None


TOLD = replace(ORIGIN, caller=None, told=KNOWN, selected=True)


def test_whose_process_was_read_before_it_began_is_known_at_once_and_not_for_later() -> None:
    owners = Owners()
    assert owners.find(TOLD, 0.0) == OwnerKnown(KNOWN, selected=True)
    assert owners.find(replace(TOLD, told=None), 0.0) is None


@pytest.mark.parametrize(
    "other",
    [
        replace(TOLD, selected=False),
        replace(TOLD, told=replace(KNOWN, sha256=None)),
        replace(TOLD, told=replace(KNOWN, confidence=Confidence.TABLE)),
        replace(TOLD, told=Process(pid=4711)),
    ],
)
def test_one_that_is_not_yet_judged_or_not_wholly_read_is_asked_for(other: Origin) -> None:
    assert Owners().find(other, 0.0) is None


def test_nobody_is_known_by_a_pid_alone() -> None:
    owners, bare = Owners(), replace(ORIGIN, caller=None)
    owners.learn(bare, KNOWN, 0.0, selected=True)
    assert owners.find(bare, 0.0) is None


def test_it_is_a_moment_and_a_newer_answer_takes_the_place_of_an_older_one() -> None:
    owners = Owners()
    owners.learn(ORIGIN, KNOWN, 0.0, selected=True)
    assert owners.find(ORIGIN, REMEMBERED_S) is None
    newer = owners.learn(ORIGIN, KNOWN, REMEMBERED_S, selected=False)
    assert owners.find(ORIGIN, REMEMBERED_S) == newer


def test_as_many_are_remembered_as_there_is_room_for_the_newest_of_them() -> None:
    owners = Owners()
    callers = [replace(ORIGIN, pid=pid) for pid in range(1, OWNERS_LIMIT + 3)]
    for caller in callers:
        owners.learn(caller, KNOWN, 0.0, selected=True)
    known = [owners.find(caller, 0.0) is not None for caller in callers]
    assert known == [False, False, *[True] * OWNERS_LIMIT]


def test_under_another_policy_everybody_is_asked_for_anew() -> None:
    owners = Owners()
    owners.learn(ORIGIN, KNOWN, 0.0, selected=True)
    owners.forget()
    assert owners.find(ORIGIN, 0.0) is None
