"""A program that starts thousands of children a second: all of its connections are on record, whose they are is told
rightly or not at all, what we keep of it is bounded, and others are served meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Mitmsec, Network, status_of

from mitmsec.core.model import Confidence

pytestmark = [pytest.mark.root, pytest.mark.slow]

CALLERS, NOISE = 60, 6_000  # children that connect; that each of two shells starts meanwhile
GROWTH_LIMIT_KIB = 64_000  # the history of 65,536 processes takes about half of that
STORM = f"""
import json, os, socket, sys, time

def call(waits):
    connection = socket.create_connection(("203.0.113.10", 80), 30)
    connection.sendall(b"GET /hello HTTP/1.0\\r\\n\\r\\n")
    if waits:
        while connection.recv(4096): pass
    os._exit(0)

began = time.monotonic()
loop = "i=0; while [ $i -lt {NOISE} ]; do (:); i=$((i+1)); done"
shells = [os.posix_spawn("/bin/dash", ["dash", "-c", loop], os.environ) for _ in range(2)]
callers = []
for number in range({CALLERS}):
    time.sleep(0.02)
    pid = os.fork()
    if not pid: call(number % 2)
    callers.append(pid)
for pid in shells: os.waitpid(pid, 0)
took = time.monotonic() - began
for pid in callers: os.waitpid(pid, 0)
print(json.dumps({{"rate": 2 * {NOISE} / took, "callers": callers}}), flush=True)
"""
BYPASS = '[defaults]\naction = "bypass"\n'


def resident_kib(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0])


def is_told_rightly_or_not_at_all(seen: list[dict[str, Any]], callers: list[int], path: str) -> int:
    """How many are told by their program."""
    assert len(callers) == CALLERS
    known = 0
    for process in (event["process"] for event in seen):
        if process["exe"] is None:
            assert process["confidence"] in (Confidence.INFERRED, Confidence.UNKNOWN)
        else:
            assert (process["exe"], process["pid"] in callers) == (path, True)
            known += 1
    assert len({event["process"]["pid"] for event in seen} - {0}) == len([e for e in seen if e["process"]["pid"]])
    return known


@pytest.mark.joined
def test_under_run_a_storm_of_children_is_told_for_what_it_is(origin: Network, mitmsec: Mitmsec) -> None:
    policy = mitmsec.policy(BYPASS)
    run = mitmsec.start("--policy", policy, "--", sys.executable, "-S", "-c", STORM)
    told, said = run.communicate(timeout=110)
    assert run.returncode == 0, said
    storm = json.loads(told)
    seen = mitmsec.of_kind("connection")
    assert len(seen) == CALLERS
    known = is_told_rightly_or_not_at_all(seen, storm["callers"], os.path.realpath(sys.executable))
    print(f"run: {storm['rate']:.0f} children a second, {known} of {CALLERS} callers known")
    assert known >= CALLERS // 2, "those who wait for their answer are known"
    assert known == sum(event["process"]["pid"] > 0 for event in seen), "and all whose connection was still there"


def test_under_the_service_a_storm_of_children_is_bounded_and_others_are_served(
    origin: Network, mitmsec: Mitmsec, tmp_path: Path
) -> None:
    tmp_path.chmod(0o755)
    python = tmp_path / "selected-python"
    shutil.copy(os.path.realpath(sys.executable), python)
    application = f'[[application]]\nname = "ours"\npath = ["{python}"]\n'
    ordered(mitmsec, "start", "--policy", mitmsec.policy(BYPASS + application))
    try:
        supervisor = status_of(mitmsec).supervisor
        before_kib = resident_kib(supervisor)
        environment = os.environ | {"PYTHONHOME": sys.base_prefix}
        command = mitmsec.network.inside(str(python), "-S", "-c", STORM)
        storm = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        slowest_s = 0.0
        while storm.poll() is None:
            began = time.monotonic()
            curl = mitmsec.network.inside("curl", "-sS", "--max-time", "20", "http://203.0.113.10/hello")
            assert subprocess.run(curl, capture_output=True, text=True).stdout.startswith("hello")
            slowest_s = max(slowest_s, time.monotonic() - began)
            time.sleep(0.3)
        told = json.loads(storm.communicate()[0])
        growth_kib = resident_kib(supervisor) - before_kib
        faults = [event["what"] for event in mitmsec.of_kind("fault")]
        ordered(mitmsec, "stop")
    finally:
        ordered(mitmsec, "stop", check=False)
    seen = mitmsec.of_kind("connection")
    known = is_told_rightly_or_not_at_all(seen, told["callers"], str(python))
    print(
        f"service: {told['rate']:.0f} children a second, {known} of {len(seen)} recorded and {CALLERS} callers known, "
        f"supervisor grew by {growth_kib} KiB, an unselected curl took {slowest_s:.2f} s at most, faults {faults}"
    )
    assert len(seen) == CALLERS
    assert growth_kib < GROWTH_LIMIT_KIB
    assert slowest_s < 5


def ordered(mitmsec: Mitmsec, order: str, *arguments: str, check: bool = True) -> None:
    command = mitmsec.command(order, "--state", str(mitmsec.state), *arguments)
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, env=mitmsec.environment())
    assert not check or done.returncode == 0, done.stderr
