"""The demo is the first thing that anyone sees: it passes, leaves nothing, and fails when something is amiss."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
from pathlib import Path

import pytest
from conftest import MITMSEC

from mitmsec.service.demo_tour import STEPS, Evidence

pytestmark = pytest.mark.root


def test_the_tour_shows_everything_and_leaves_nothing(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run([*MITMSEC, "demo", "--keep"], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("✔") == len(STEPS) == 6
    assert "All of it happened" in done.stdout
    for word in ("decrypt", "bypass", "block", "capture", "finding", "whole: 17 events"):
        assert word in done.stdout
    assert "\x1b" not in done.stdout
    assert [line for line in done.stdout.splitlines() if line != line.rstrip()] == []
    (kept,) = tmp_path.iterdir()
    assert f"What --keep keeps is in {kept}; nothing else of it is left on this machine.\n" in done.stdout
    next_one = next(line for line in done.stdout.splitlines() if "audit list --state" in line)
    assert len(subprocess.run(shlex.split(next_one), capture_output=True, check=True).stdout) > 1000
    identity = (kept / "state" / "run" / "identity").read_text().strip()
    assert list(Path("/sys/fs/cgroup").rglob(f"mitmsec-{identity}-*")) == []
    assert not processes_of(kept)
    again = subprocess.run([*MITMSEC, "demo"], capture_output=True, text=True, env=environment, check=False)
    assert again.returncode == 0
    assert "Nothing of it is left on this machine.\n" in again.stdout
    assert "--state" not in again.stdout.partition("Next:")[2]
    assert list(tmp_path.iterdir()) == [kept]


def processes_of(folder: Path) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(folder) in (line := entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")):
                found.append(line)
    return found


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_no_step_counts_without_evidence(step: object) -> None:
    nothing = Evidence(events=[], printed={one.name: "status=0" for one in STEPS}, capture_bytes=0)
    assert step.check(nothing) is not None  # type: ignore[attr-defined]


def test_a_tour_that_goes_wrong_says_so(tmp_path: Path) -> None:
    """With a curl that never gets anything, the demo ends with status 1 and marks the steps."""
    broken = tmp_path / "curl"
    broken.write_text("#!/bin/sh\necho broken\nexit 1\n")
    broken.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([*MITMSEC, "demo"], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1, done.stdout
    assert done.stdout.count("✘") == 4
    assert "Not all of it happened" in done.stdout
