"""Session cgroups, in both layouts."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mitmsec_redirect.bpf import EbpfUnavailable
from mitmsec_redirect.cgroup import SessionCgroup, cgroup2_root, leftovers

MIXED = "30 24 0:25 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n31 30 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
UNIFIED = "31 30 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
BOUND = "31 30 0:26 /part /mnt/part rw - cgroup2 cgroup2 rw\n" + UNIFIED


@pytest.fixture
def cgroup() -> Iterator[SessionCgroup]:
    made = SessionCgroup.create("testcg", str(os.getpid()))
    yield made
    assert made.remove()


@pytest.mark.parametrize(
    ("table", "root"),
    [(MIXED, "/sys/fs/cgroup/unified"), (UNIFIED, "/sys/fs/cgroup"), (BOUND, "/sys/fs/cgroup")],
)
def test_the_cgroup2_tree_is_found_where_it_is(table: str, root: str) -> None:
    assert cgroup2_root(table) == Path(root)


def test_no_cgroup2_is_said_with_a_remedy() -> None:
    with pytest.raises(EbpfUnavailable, match="no cgroup2") as raised:
        cgroup2_root("24 1 0:22 / / rw - ext4 /dev/vda rw\n")
    assert "mount" in raised.value.remedy


@pytest.mark.parametrize("name", ["", "..", "a/b", "a b", "-a"])
def test_a_name_cannot_lead_elsewhere(name: str, tmp_path: Path) -> None:
    if name == "..":
        assert SessionCgroup.create("s", name, tmp_path).path.parent == tmp_path
        return
    with pytest.raises(ValueError, match="part of a cgroup's name"):
        SessionCgroup.create("s", name, tmp_path)


@pytest.mark.root
def test_a_process_and_its_end_are_seen(cgroup: SessionCgroup) -> None:
    assert not cgroup.is_populated()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with cgroup.watch() as watch:
        cgroup.put(child.pid)
        assert select.select([watch], [], [], 5)[0]
        watch.drain()
        assert cgroup.is_populated()
        assert cgroup.pids() == [child.pid]
        assert not cgroup.remove(), "it is in use"
        child.communicate(b"\n")
        while cgroup.is_populated():
            assert select.select([watch], [], [], 5)[0]
            watch.drain()
    assert cgroup.pids() == []


@pytest.mark.root
def test_nested_cgroups_go_with_it_and_leftovers_are_found() -> None:
    state = f"testleft{os.getpid()}"
    made = SessionCgroup.create(state, "one")
    (made.path / "nested" / "deeper").mkdir(parents=True)
    assert [one.path for one in leftovers(state)] == [made.path]
    assert made.remove()
    assert made.remove(), "twice does no harm"
    assert leftovers(state) == []
    assert not made.is_populated()


@pytest.mark.root
def test_watching_what_has_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        SessionCgroup(tmp_path / "gone").watch()
