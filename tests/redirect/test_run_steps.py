"""Who is in the cgroup of a run is told by the cgroup itself: a program made of these steps alone, on real cgroups."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from redirect_sandbox import Agent

from mitmsec_redirect import bpf, run_steps
from mitmsec_redirect.assembler import Assembler
from mitmsec_redirect.bpf import Attach
from mitmsec_redirect.cgroup import SessionCgroup
from mitmsec_redirect.run_steps import DEPTH_LIMIT
from mitmsec_redirect.runs import RunCgroups

pytestmark = pytest.mark.root
CONNECT = "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('127.0.0.1', 9))"
DENY, ALLOW = 0, 1


def refusing_all_but(runs: int) -> bytes:
    """connect() fails with EPERM outside the runs."""
    asm = Assembler()
    run_steps.unless_in_run(asm, runs, -8, "run")
    asm.exit(DENY)
    asm.label("run")
    asm.exit(ALLOW)
    return asm.code()


@pytest.fixture
def cgroup() -> Iterator[SessionCgroup]:
    made = SessionCgroup.create("steps", f"{os.getpid()}")
    yield made
    made.remove()


@pytest.fixture
def runs(cgroup: SessionCgroup) -> Iterator[RunCgroups]:
    with contextlib.ExitStack() as held:
        made = RunCgroups()
        held.callback(made.close)
        program = bpf.load_program(refusing_all_but(made.fd), Attach.CONNECT4, "ms_test")
        held.callback(os.close, program)
        folder = os.open(cgroup.path, os.O_RDONLY)
        held.callback(os.close, folder)
        held.callback(os.close, bpf.attach_to_cgroup(program, folder, Attach.CONNECT4))
        yield made


def is_member(folder: Path) -> bool:
    """Whoever runs there."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(Agent(folder)) as agent:
        told = agent(CONNECT)
    assert told in ({"answer": None}, {"error": "EPERM"})
    return told == {"answer": None}


@pytest.mark.parametrize("above", ["", "a", "a/b/c"])
def test_how_deep_a_run_lies_need_not_be_known(cgroup: SessionCgroup, runs: RunCgroups, above: str) -> None:
    run = cgroup.path / above
    run.mkdir(parents=True, exist_ok=True)
    assert not is_member(run), "nothing is a run yet"
    runs.are([run])
    assert is_member(run)
    assert is_member(run / "its/own")
    assert not above or not is_member(run.parent)


def test_what_lies_beside_a_run_is_none(cgroup: SessionCgroup, runs: RunCgroups) -> None:
    run = cgroup.path / "a" / "run"
    run.mkdir(parents=True)
    runs.are([run])
    assert not is_member(run.parent / "beside")
    assert not is_member(cgroup.path / "run")


@pytest.mark.parametrize(("depth", "found"), [(DEPTH_LIMIT // 2, True), (2 * DEPTH_LIMIT, False)])
def test_a_run_is_looked_for_down_to_a_depth(cgroup: SessionCgroup, runs: RunCgroups, depth: int, found: bool) -> None:
    run = cgroup.path.joinpath(*["a"] * (depth - 1))
    run.mkdir(parents=True)
    runs.are([run])
    assert is_member(run / "its/own") is found
