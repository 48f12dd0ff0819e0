"""Files that a run hands on."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from mitmsec.service.refusals import CannotRun
from mitmsec.service.run import entrance, memory_file
from mitmsec_redirect.cgroup import SessionCgroup


def test_a_memory_file_is_what_it_was_made_of() -> None:
    descriptor = memory_file("test", b"policy")
    with pytest.raises(PermissionError):
        os.pwrite(descriptor, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 0)
    assert os.pread(descriptor, 10, 0) == b"policy"
    os.close(descriptor)


@pytest.mark.root
def test_whoever_enters_a_cgroup_by_its_entrance_is_in_it() -> None:
    cgroup = SessionCgroup.create("entrance", f"{os.getpid()}")
    descriptor = entrance(str(cgroup.path))
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, preexec_fn=lambda: os.write(descriptor, b"0")) as child:
        assert cgroup.pids() == [child.pid]
    os.close(descriptor)
    assert cgroup.remove()


def test_a_cgroup_that_is_not_seen_here_is_the_machines_fault_and_not_the_commands(tmp_path: Path) -> None:
    with pytest.raises(CannotRun, match="cannot be entered from here: No such file") as raised:
        entrance(str(tmp_path / "elsewhere"))
    assert raised.value.status == 3
