"""The map of runs' cgroups; what the hook makes of it is seen in test_connect_hook_selection."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mitmsec_redirect.bpf import Map
from mitmsec_redirect.cgroup import SessionCgroup, cgroup2_root
from mitmsec_redirect.runs import RunCgroups, RunMembers

pytestmark = pytest.mark.root


def test_it_holds_those_that_were_named_last(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    numbers = [folder.stat().st_ino.to_bytes(8, "little") for folder in folders]
    runs = RunCgroups()
    seen = Map(runs.fd, 8, 4)
    try:
        runs.are(folders[:2])
        assert sorted(seen.keys()) == sorted(numbers[:2])
        folders[0].rmdir()  # a run that has gone is left out by number
        runs.are(folders[1:])
        assert sorted(seen.keys()) == sorted(numbers[1:])
        runs.are([tmp_path / "gone"])
        assert list(seen.keys()) == []
    finally:
        runs.close()


def test_whoever_is_in_a_run_or_below_one_is_a_member_however_deep_that_lies() -> None:
    outer = SessionCgroup.create("runs", f"{os.getpid()}")
    run, below = outer.path / "container" / "run", outer.path / "container" / "run" / "a" / "b"
    below.mkdir(parents=True)
    runs = RunCgroups()
    members = RunMembers(runs.fd)
    try:
        runs.are([run])
        assert [members.hold(path.stat().st_ino) for path in (run, run / "a", below)] == [True] * 3
        assert not any(members.hold(path.stat().st_ino) for path in (cgroup2_root(), outer.path, run.parent))
        number = below.stat().st_ino
        below.rmdir()
        assert members.hold(number), "it is remembered where it lay"
        assert not members.hold(0)
        outer.remove()
        assert not members.hold(number)
    finally:
        runs.close()
        outer.remove()
