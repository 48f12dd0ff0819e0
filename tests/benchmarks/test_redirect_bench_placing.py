"""A gate is measured on each core; whoever is none is left where it is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from benchmarks.redirect import placing

WAITS = "import sys; print('up', flush=True); sys.stdin.read()"


@pytest.fixture
def programs() -> Iterator[tuple[int, int]]:
    """A gate, and somebody else."""
    started = [
        subprocess.Popen([sys.executable, "-c", WAITS, word], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for word in ("gate", "recorder")
    ]
    try:
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
        yield started[0].pid, started[1].pid
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_only_a_gate_is_held_and_only_for_as_long(programs: tuple[int, int]) -> None:
    gate, other = programs
    free = os.sched_getaffinity(0)
    assert placing.gates(programs) == [gate]
    for core in placing.cores():
        with placing.held(programs, core):
            assert os.sched_getaffinity(gate) == {core}
            assert os.sched_getaffinity(other) == free
    assert os.sched_getaffinity(gate) == free


def test_a_row_without_a_gate_or_whose_gate_has_gone_is_no_trouble(programs: tuple[int, int]) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with placing.held([programs[1], ended.pid], placing.cores()[0]):
        assert os.sched_getaffinity(programs[1]) == os.sched_getaffinity(0)
