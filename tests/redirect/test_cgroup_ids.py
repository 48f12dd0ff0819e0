"""Cgroups by the id that the kernel tells."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mitmsec_redirect.cgroup import SessionCgroup, cgroup2_root
from mitmsec_redirect.cgroup_ids import CgroupPaths

pytestmark = pytest.mark.root


def test_an_id_leads_to_its_path_even_after_the_cgroup_has_gone() -> None:
    cgroup = SessionCgroup.create("ids", f"{os.getpid()}")
    number = cgroup.path.stat().st_ino
    paths = CgroupPaths()
    expected = f"/{cgroup.path.name}"
    assert paths.path_of(number) == expected
    cgroup.remove()
    assert paths.path_of(number) == expected
    assert CgroupPaths().path_of(number) is None


def test_the_root_is_a_path() -> None:
    assert CgroupPaths().path_of(cgroup2_root().stat().st_ino) == "/"


@pytest.mark.parametrize("number", [0, 1 << 60, 2**64 - 1])
def test_what_is_no_cgroup_has_no_path(number: int) -> None:
    assert CgroupPaths().path_of(number) is None


def test_where_there_is_no_hierarchy_there_are_no_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = cgroup2_root().stat().st_ino
    assert CgroupPaths(tmp_path).path_of(root) is None
    assert CgroupPaths(tmp_path / "none").path_of(root) is None
    monkeypatch.setattr("mitmsec_redirect.mounts.MOUNTINFO", Path("/dev/null"))
    assert CgroupPaths().path_of(root) is None
