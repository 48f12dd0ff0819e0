"""Who a pid is, by what /proc says of it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from descriptors import descriptors
from process_stage import CAT, TRUE, whose

from mitmsec.core.model import Confidence, ParentProcess
from mitmsec_redirect import owner, processes
from mitmsec_redirect.hashes import ExecutableHashes
from mitmsec_redirect.processes import ProcessTable


def test_a_living_process_is_read(child: subprocess.Popen[bytes], copy: Path) -> None:
    process = whose(ProcessTable(), child.pid, os.getuid(), "program")
    assert process.confidence is Confidence.KERNEL
    assert (process.pid, process.exe, process.name) == (child.pid, str(copy), "program")
    assert process.sha256 == hashlib.sha256(copy.read_bytes()).hexdigest()
    assert (process.user, process.uid) == (owner.user_name(os.getuid()), os.getuid())
    assert process.parent is not None
    assert (process.parent.pid, process.parent.exe) == (os.getpid(), os.readlink("/proc/self/exe"))
    assert process.started is not None
    age = datetime.now(UTC) - datetime.fromisoformat(process.started)
    assert timedelta(seconds=-1) < age < timedelta(minutes=1)


def test_a_process_that_has_gone_is_inferred() -> None:
    done = subprocess.Popen([CAT], stdin=subprocess.DEVNULL)
    done.wait()
    process = whose(ProcessTable(), done.pid, 4_000_000, "cat")
    assert (process.confidence, process.name, process.exe, process.user) == (
        Confidence.INFERRED,
        "cat",
        None,
        "4000000",
    )


def test_a_process_that_has_ended_and_is_not_yet_reaped_is_inferred() -> None:
    done = subprocess.Popen([CAT], stdin=subprocess.DEVNULL)
    os.waitid(os.P_PID, done.pid, os.WEXITED | os.WNOWAIT)
    process = whose(ProcessTable(), done.pid, 0, "cat")
    assert (process.confidence, process.name, process.exe) == (Confidence.INFERRED, "cat", None)
    done.wait()


def test_a_process_that_began_after_the_connection_is_somebody_else(child: subprocess.Popen[bytes]) -> None:
    table, now = ProcessTable(), time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    assert whose(table, child.pid, 0, "x", now).confidence is Confidence.KERNEL
    assert whose(table, child.pid, 0, "x", now - 3600 * 10**9).confidence is Confidence.INFERRED


def test_a_deleted_executable_keeps_its_path_and_hash(child: subprocess.Popen[bytes], copy: Path) -> None:
    expected = hashlib.sha256(copy.read_bytes()).hexdigest()
    copy.unlink()
    process = whose(ProcessTable(), child.pid, 0, "program")
    assert (process.exe, process.sha256) == (str(copy), expected)


def test_exec_makes_another_program_of_the_same_process() -> None:
    code = f"import os; input(); os.execv({CAT!r}, [{CAT!r}])"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    table = ProcessTable()
    while (before := whose(table, child.pid, 0, "")).exe != os.path.realpath(sys.executable):
        os.sched_yield()
    child.stdin.write(b"\n")
    child.stdin.flush()
    while (after := whose(table, child.pid, 0, "")).exe != os.path.realpath(CAT):
        os.sched_yield()
    child.communicate()
    assert (after.pid, after.started) == (before.pid, before.started)
    assert before.sha256 == hashlib.sha256(Path(sys.executable).read_bytes()).hexdigest()
    assert after.sha256 == hashlib.sha256(Path(CAT).read_bytes()).hexdigest()


def test_what_is_remembered_costs_one_look_and_is_the_same(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = ProcessTable()
    first = whose(table, child.pid, 0, "x")
    assert whose(table, child.pid, 0, "x") == first
    monkeypatch.setattr(processes.os, "open", None)
    monkeypatch.setattr("pwd.getpwuid", None)
    assert whose(table, child.pid, 0, "x") == first


def test_a_pid_that_is_used_again_is_somebody_else(child: subprocess.Popen[bytes], copy: Path) -> None:
    """The same number, the same program, another process: as if the pid had come round."""
    table = ProcessTable()
    first = whose(table, child.pid, 0, "x")
    other = subprocess.Popen([copy], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    whose(table, other.pid, 0, "x")
    other.communicate()
    table._known[child.pid], stale = table._known[other.pid], table._known[child.pid]
    del table._known[other.pid]
    again = whose(table, child.pid, 0, "x")
    assert again == first
    assert table._known[child.pid].folder != stale.folder
    os.close(stale.folder)


def test_a_remembered_process_that_has_ended_is_inferred(copy: Path) -> None:
    other = subprocess.Popen([copy], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    table = ProcessTable()
    assert whose(table, other.pid, 0, "program").confidence is Confidence.KERNEL
    other.communicate()
    assert whose(table, other.pid, 0, "program").confidence is Confidence.INFERRED
    assert table._known == {}


def test_who_asks_with_another_user_gets_that_users_name(child: subprocess.Popen[bytes]) -> None:
    """The uid is the kernel's word at connect(); a program may have changed it since."""
    table = ProcessTable()
    asked = [whose(table, child.pid, uid, "x") for uid in (4_000_000, 0, 4_000_001)]
    assert [(process.user, process.uid) for process in asked] == [
        ("4000000", 4_000_000),
        (owner.user_name(0), 0),
        ("4000001", 4_000_001),
    ]


def test_a_hash_that_is_still_to_come_holds_nothing_up(child: subprocess.Popen[bytes], copy: Path) -> None:
    class Slow(ExecutableHashes):
        def begin(self, descriptor: int, uid: int) -> Future[str | None]:
            os.close(descriptor)
            return pending

        def known(self, identity: object) -> None:
            return None

    pending: Future[str | None] = Future()
    table = ProcessTable(hashes=Slow())
    for _ in range(2):
        owner = table.whose(child.pid, 0, "x")
        assert (owner.process.exe, owner.process.sha256) == (str(copy), None)
        assert owner.sha256 is pending
    pending.set_result("f" * 64)
    owner = table.whose(child.pid, 0, "x")
    assert (owner.process.sha256, owner.sha256) == ("f" * 64, None)


def test_a_hash_that_cannot_be_had_is_never_taken_for_none(child: subprocess.Popen[bytes]) -> None:
    """Whoever decides by it can tell: something was to come, and nothing came."""

    class Vain(ExecutableHashes):
        def begin(self, descriptor: int, uid: int) -> Future[str | None]:
            os.close(descriptor)
            failed: Future[str | None] = Future()
            failed.set_result(None)
            return failed

    table = ProcessTable(hashes=Vain())
    for _ in range(2):
        owner = table.whose(child.pid, 0, "x")
        assert owner.sha256 is not None
        assert owner.sha256.result() is None


def test_no_more_processes_are_remembered_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PROCESSES_LIMIT", 2)
    running = [subprocess.Popen([CAT], stdin=subprocess.PIPE) for _ in range(4)]
    try:
        table = ProcessTable()
        before = len(descriptors())
        for process in running:
            whose(table, process.pid, 0, "x")
        assert list(table._known) == [process.pid for process in running[2:]]
        assert len(descriptors()) == before + 2
        table.close()
        assert len(descriptors()) == before
    finally:
        for process in running:
            process.communicate()


def test_a_process_without_an_executable_is_still_named(tmp_path: Path) -> None:
    folder = tmp_path / "7"
    folder.mkdir()
    (folder / "stat").write_text("7 (a) b) S 0 " + "0 " * 17 + "500 0\n")
    process = whose(ProcessTable(tmp_path), 7, 0, "kthread")
    assert (process.exe, process.sha256, process.parent) == (None, None, None)
    assert process.started is not None


@pytest.mark.parametrize("stat", ["", "7 (x", "7 (x) S", "7 (x) S a " + "0 " * 18])
def test_a_stat_that_makes_no_sense_is_a_process_that_has_gone(tmp_path: Path, stat: str) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text(stat)
    assert whose(ProcessTable(tmp_path), 7, 0, "x").confidence is Confidence.INFERRED


def test_a_process_whose_cgroup_cannot_be_read_is_not_all_known(tmp_path: Path) -> None:
    folder = tmp_path / "7"
    folder.mkdir()
    (folder / "stat").write_text("7 (x) S 0 " + "0 " * 17 + "500 0\n")
    (folder / "exe").symlink_to(TRUE)
    table = ProcessTable(tmp_path)
    assert whose(table, 7, 0, "x").confidence is Confidence.INFERRED
    table.close()
    (folder / "cgroup").write_text("0::/system.slice/a.service\n")
    table = ProcessTable(tmp_path)
    process = whose(table, 7, 0, "x")
    table.close()
    assert (process.confidence, process.unit, process.container) == (Confidence.KERNEL, "a.service", None)


def test_a_name_that_is_no_text_can_be_written(tmp_path: Path) -> None:
    program = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    shutil.copy(CAT, program)
    child = subprocess.Popen([program], stdin=subprocess.PIPE)
    process = whose(ProcessTable(), child.pid, 0, "x")
    child.communicate()
    assert process.exe == f"{tmp_path}/\\xff"
    assert msgspec.json.encode(process)


def test_a_parent_that_has_gone_is_told_by_its_pid(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text("7 (a) S 6 " + "0 " * 17 + "500 0\n")
    assert whose(ProcessTable(tmp_path), 7, 0, "x").parent == ParentProcess(pid=6)
