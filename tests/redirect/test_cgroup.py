"""Session cgroups, in both layouts."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec_redirect.bpf import EbpfUnavailable
from mitmsec_redirect.cgroup import SessionCgroup, cgroup2_root, home_of, leftovers

MIXED = "30 24 0:25 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n31 30 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
UNIFIED = "31 30 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
BOUND = "31 30 0:26 /part /mnt/part rw - cgroup2 cgroup2 rw\n" + UNIFIED
PART = "31 30 0:26 /part /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
AT_HOME = """
import os, subprocess, sys
from pathlib import Path
from mitmsec_redirect.cgroup import cgroup2_root, home_of
part, child, where, empty = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
root = cgroup2_root()
(part / "cgroup.procs").write_text("0")
os.unshare(os.CLONE_NEWNS | (0 if where == "part" else os.CLONE_NEWCGROUP))
(child / "cgroup.procs").write_text("0")
commands = {
    "namespace": f"umount -l {root}; mount -t cgroup2 none {root}",
    "part": f"mount --bind {part} {empty}; umount -l {root}; mount --move {empty} {root}",
    "outside": "true",
}
subprocess.run(f"set -e; mount --make-rprivate /; {commands[where]}", shell=True, check=True)
home = home_of(os.getpid())
print(home.removeprefix("/"))
assert str(os.getpid()) in (cgroup2_root() / home.removeprefix("/") / "cgroup.procs").read_text().split()
"""
HOMES = ["namespace", "part", "outside"]


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


@pytest.mark.parametrize(
    ("table", "told", "home"),
    [
        (UNIFIED, "/", "/"),
        (MIXED, "/user.slice/a", "/user.slice/a"),
        (BOUND, "/part/a", "/part/a"),  # the whole tree is seen as well
        (PART, "/part/a/b", "/a/b"),
        (PART, "/part", "/"),
        (PART, "/party", None),
        (UNIFIED, "/../beside", None),  # outside of the namespace whose part is mounted
        ("", "/", None),
    ],
)
def test_home_is_told_by_what_is_mounted(table: str, told: str, home: str | None) -> None:
    assert home_of(1, table, told) == home


@given(st.text("/.ab", max_size=12).map(lambda text: f"/{text}"), st.sampled_from([UNIFIED, PART, BOUND]))
def test_home_leads_nowhere_but_below_the_root(told: str, table: str) -> None:
    home = home_of(1, table, told)
    assert home is None or (home.startswith("/") and ".." not in home.split("/"))


def test_who_has_ended_is_nowhere() -> None:
    assert home_of((1 << 22) + 1) is None


@pytest.mark.root
@pytest.mark.parametrize("where", HOMES)
def test_in_a_namespace_home_is_where_the_process_is(cgroup: SessionCgroup, where: str, tmp_path: Path) -> None:
    part, child = cgroup.path / "outer", cgroup.path / "outer" / "child"
    child.mkdir(parents=True)
    command = [sys.executable, "-c", AT_HOME, str(part), str(child), where, str(tmp_path)]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    assert told == [f"{cgroup.path.name}/outer/child" if where == "outside" else "child"]


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
