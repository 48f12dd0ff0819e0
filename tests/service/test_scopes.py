"""Whom a session's hook covers."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import time
from collections.abc import Iterator

import pytest

from mitmsec.core.model import Process
from mitmsec.core.policy import Application, Policy
from mitmsec.service.scopes import CommandScope, StandingScope
from mitmsec_redirect.cgroup import SessionCgroup
from mitmsec_redirect.processes import ProcessTable
from mitmsec_redirect.verdicts import Verdict

pytestmark = pytest.mark.root
SLEEP = os.path.realpath("/usr/bin/sleep")


def policy(**criteria: tuple[str, ...]) -> Policy:
    return Policy(applications=(Application(name="a", **criteria),))


@pytest.fixture
def sleeper() -> Iterator[int]:
    process = subprocess.Popen([SLEEP, "60"])
    yield process.pid
    process.kill()
    process.wait()


@pytest.fixture
def table() -> Iterator[ProcessTable]:
    made = ProcessTable()
    yield made
    made.close()


def test_a_command_is_its_cgroup_whatever_the_policy_names() -> None:
    scope = CommandScope(SessionCgroup.create("test", f"scope-{os.getpid()}"))
    assert scope.selects(Process(pid=1))
    assert scope.selection is None
    assert (scope.pids(), scope.is_populated()) == ([], False)
    assert asyncio.run(scope.release(None)) == 0
    assert not scope.path.exists()


def test_running_programs_are_judged_at_once_and_again_under_another_policy(sleeper: int, table: ProcessTable) -> None:
    scope = StandingScope(policy(path=(SLEEP,)), table)
    try:
        assert scope.selected.said(sleeper) == Verdict.SELECTED
        assert scope.selected.said(os.getpid()) is None
        scope.govern(policy(path=("/opt/*",)))
        assert scope.selected.said(sleeper) is None
        scope.govern(policy(path=("*",)))
        assert scope.selection.everything
    finally:
        scope.selected.close()


def test_who_begins_and_ends_is_followed(table: ProcessTable) -> None:
    scope = StandingScope(policy(path=(SLEEP,)), table)
    try:
        process = subprocess.Popen([SLEEP, "60"])
        scope.look()
        assert scope.selected.said(process.pid) == Verdict.SELECTED
        process.kill()
        process.wait()
        scope.look()
        assert scope.selected.said(process.pid) is None
    finally:
        scope.selected.close()


def test_a_program_is_undecided_until_its_hash_is_there(sleeper: int, table: ProcessTable) -> None:
    with open(SLEEP, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    scope = StandingScope(policy(sha256=(digest,)), table)
    try:
        until = time.monotonic() + 20
        while scope.selected.said(sleeper) == Verdict.UNDECIDED and time.monotonic() < until:
            time.sleep(0.05)
            scope.look()
        assert scope.selected.said(sleeper) == Verdict.SELECTED
    finally:
        scope.selected.close()


def test_ours_stay_ours(sleeper: int, table: ProcessTable) -> None:
    scope = StandingScope(policy(path=("/opt/*",)), table)
    try:
        scope.own(sleeper)
        scope.govern(policy(path=(SLEEP,)))
        assert scope.selected.said(sleeper) == Verdict.OWN_TRAFFIC
    finally:
        scope.selected.close()


def test_who_cannot_be_judged_counts_as_selected(table: ProcessTable) -> None:
    scope = StandingScope(policy(path=("/opt/*",)), table)
    try:
        assert scope.selects(Process(pid=1))
        assert not scope.selects(Process(pid=1, exe="/usr/bin/curl"))
    finally:
        scope.selected.close()
