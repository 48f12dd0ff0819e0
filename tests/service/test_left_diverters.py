"""Diverters without a supervisor: those that deny are left alone, or ended by order; of dead ones nothing stays."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import machine
import pytest
from divert_ground import Ground, ground, stat_of

from mitmsec.core.messages import Ready, Role
from mitmsec.core.model import OnFailure, Quic
from mitmsec.service import left_diverters
from mitmsec.service.children import ChildProcess
from mitmsec.service.divert_backend import spawn
from mitmsec.service.divert_messages import FROM_DIVERTER, DiverterSettings
from mitmsec.service.state import State
from mitmsec_redirect import expected_flows
from mitmsec_redirect.pulse import Pulse

pytestmark = pytest.mark.root


@pytest.fixture
def state(tmp_path: Path) -> State:
    made = State(tmp_path / "state")
    made.make()
    return made


@pytest.fixture
def place(state: State) -> Iterator[Ground]:
    with machine.alone(machine.SWEPT), ground(state.identity()) as made:
        yield made


def orphan(place: Ground, on_failure: OnFailure) -> int:
    """A diverter whose supervisor ends without a word. Its pid."""

    async def story() -> int:
        settings = DiverterSettings(
            cgroup=str(place.cgroup.path),
            gate_port=8085,
            local_ports=(61000, 62999),
            on_failure=on_failure,
            quic=Quic.BYPASS,
        )
        child = ChildProcess(Role.DIVERTER, partial(spawn, place.cgroup.path.name, place.network), print, FROM_DIVERTER)
        teller, told = expected_flows.channel()
        heartbeat = Pulse.new()
        answer = await child.start(settings, heartbeat, teller.fileno())
        assert isinstance(answer, Ready), answer
        with teller, told, contextlib.closing(child.channel):
            os.close(heartbeat)
        return child.pid

    return asyncio.run(story())


def reaped(pid: int, within_s: float = 10) -> bool:
    """It has ended in that time, and is waited for."""
    deadline_s = time.monotonic() + within_s
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)
    return True


def test_where_failures_open_it_ends_with_its_supervisor(state: State, place: Ground) -> None:
    pid = orphan(place, OnFailure.OPEN)
    assert reaped(pid, within_s=20)
    assert place.programs() == 0
    assert left_diverters.reap(state) == []


def test_where_they_close_it_stays_as_long_as_the_command_and_no_longer(state: State, place: Ground) -> None:
    pid = orphan(place, OnFailure.CLOSED)
    assert not reaped(pid, within_s=1)
    assert list(left_diverters.alive(state)) == [(pid, place.cgroup.path.name)]
    assert left_diverters.reap(state, ends=lambda label: label != place.cgroup.path.name) == []
    assert place.programs() > 0
    place.sleeper.kill()
    place.sleeper.wait()
    assert reaped(pid, within_s=20)
    assert place.programs() == 0


def test_by_order_it_ends_at_once(state: State, place: Ground) -> None:
    pid = orphan(place, OnFailure.CLOSED)
    assert left_diverters.remaining(state) == [f"diverter {pid}"]
    assert left_diverters.reap(state) == [(f"{place.cgroup.path.name}, process {pid}", "")]
    assert reaped(pid, within_s=0)
    assert place.programs() == 0
    assert left_diverters.remaining(state) == []


def test_one_that_does_not_answer_is_killed_and_swept_up(
    state: State, place: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(left_diverters, "END_S", 0.5)
    pid = orphan(place, OnFailure.CLOSED)
    os.kill(pid, signal.SIGSTOP)
    (ended, _), (swept, problem) = left_diverters.reap(state)
    assert ended == f"{place.cgroup.path.name}, process {pid}"
    assert (swept.endswith("programs and qdiscs of dead diverters"), problem) == (True, "")
    assert reaped(pid, within_s=0)
    assert stat_of(pid) == ""
    assert place.programs() == 0


def test_a_killed_ones_programs_are_found_by_its_runs_folder(state: State, place: Ground) -> None:
    pid = orphan(place, OnFailure.CLOSED)
    os.kill(pid, signal.SIGKILL)
    assert reaped(pid)
    assert left_diverters.reap(state) == [], "no run of this state had one"
    folder = state.session_folder("gone")
    folder.mkdir()
    left_diverters.mark(folder)
    assert place.programs() > 0
    assert len(left_diverters.reap(state)) == 1
    assert place.programs() == 0
    assert left_diverters.reap(state) == []
