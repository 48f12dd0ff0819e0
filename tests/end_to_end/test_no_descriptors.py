"""A process of ours has no descriptor left: it does not spin, what it cannot do is recorded, and it goes on."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from client_stage import Client, client
from conftest import Mitmsec, Network
from test_deaths import OURS, assert_verified, until

pytestmark = pytest.mark.root

RESET = "ConnectionResetError"
WATCHED_S, SHARE = 2.0, 0.2  # of a core, within that time


@contextlib.contextmanager
def no_descriptor_left(pid: int, but: int) -> Iterator[None]:
    """Those it has it keeps; `but` so many it gets no more."""
    had = at_rest(pid)
    lowest = next(number for number in range(len(had) + 1) if number not in had)
    most = hard_limit(pid)
    limit(pid, lowest + but)
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError, subprocess.CalledProcessError):  # it has ended
            limit(pid, most)


def at_rest(pid: int) -> set[int]:
    """Its descriptors, without those of a connection that is just being ended."""
    before, deadline_s = set[int](), time.monotonic() + 10
    while (now := {int(name) for name in os.listdir(f"/proc/{pid}/fd")}) != before:
        assert time.monotonic() < deadline_s, now
        before = now
        time.sleep(0.3)
    return now


def hard_limit(pid: int) -> int:
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return next(int(line.split()[4]) for line in lines if line.startswith("Max open files"))


def limit(pid: int, descriptors: int) -> None:
    """As its own user: not every root may do so to others."""
    status = Path(f"/proc/{pid}/status").read_text()
    uid, gid = (status.partition(f"{what}:\t")[2].split()[0] for what in ("Uid", "Gid"))
    who = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
    subprocess.run([*who, "prlimit", f"--pid={pid}", f"--nofile={descriptors}:"], check=True)


def used_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def tried(program: Client, role: str, left: int = 0) -> tuple[float, str]:
    """A connection while the process of that role has so many descriptors left: its CPU time, and what came of it."""
    pid = program.pid_of(role)
    with no_descriptor_left(pid, but=left):
        before, until_s = used_s(pid), time.monotonic() + WATCHED_S
        program.begins()
        spent = 0.0
        while time.monotonic() < until_s and Path(f"/proc/{pid}/cwd").is_symlink():
            with contextlib.suppress(OSError):  # it may end
                spent = used_s(pid) - before
            time.sleep(0.1)
    return spent, program.said()


def test_who_has_no_descriptor_left_does_not_spin_and_goes_on_when_there_is_one(
    origin: Network, mitmsec: Mitmsec
) -> None:
    """A recorder needs none. At the gate who comes waits; with one left the flow is cut. A worker ends."""
    with client(mitmsec, "open") as program:
        assert OURS in program.tries()
        for role, left, answer in (
            ("recorder", 0, OURS), ("gate", 0, OURS), ("gate", 1, RESET), ("worker", 0, RESET),
        ):  # fmt: skip
            spent, said = tried(program, role, left)
            assert spent < SHARE * WATCHED_S, (role, left, spent)
            assert answer in said, (role, left, said)
            until(program, OURS)
        program.end()
    faults = {(one["what"], one.get("failed")) for one in mitmsec.of_kind("fault")}
    faults.discard(("no_worker", "open"))  # while the next one begins, if somebody comes then
    assert faults == {("no_descriptors", None), ("not_dialled", "closed"), ("worker_died", None)}
    cut = [one["error"] for one in mitmsec.of_kind("connection") if one["outcome"] == "fault"]
    assert sorted(set(cut) - {"no_worker"}) == ["not_dialled", "worker_died"]
    assert_verified(mitmsec)
