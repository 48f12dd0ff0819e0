"""Who a pid is and was, with a process monitor."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from monitor_stage import forked, run, with_pid
from msgspec.structs import replace
from process_stage import CAT, TRUE, whose

from mitmsec.core.model import Caller, Confidence, ParentProcess
from mitmsec_redirect import processes
from mitmsec_redirect.cgroup import SessionCgroup
from mitmsec_redirect.monitor import Monitor, Scanned
from mitmsec_redirect.proc_files import file_of
from mitmsec_redirect.process_records import ProcessEnded, ProcessEvent, ProcessExecuted
from mitmsec_redirect.processes import ProcessTable


@pytest.fixture
def watched() -> Iterator[ProcessTable]:
    with Monitor.open() as monitor:
        table = ProcessTable(monitor=monitor)
        table.refresh()
        yield table
        table.close()


def now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def connected_while_it_ran(table: ProcessTable, pid: int, program: str) -> int:
    """A moment at which `pid` ran `program`, when neither is there any more."""
    table.refresh()
    (life,) = table._history._lives[pid]
    return next(one.since_ns for one in life.programs if one.path == program) + 1


@pytest.mark.root
def test_a_process_that_lived_a_millisecond_is_known_by_all_that_was_recorded(
    watched: ProcessTable, tmp_path: Path
) -> None:
    program = Path(shutil.copy(TRUE, tmp_path / "short"))
    cgroup = SessionCgroup.create("processes", str(os.getpid()))
    try:
        shell = run("/bin/sh", "-c", f"echo $$ > {cgroup.path}/cgroup.procs; {program}; exit 0")
        watched.refresh()
        (pid,) = (pid for pid in watched._history._lives if parent_of(watched, pid) == shell)
        at_ns = connected_while_it_ran(watched, pid, str(program))
        process = whose(watched, pid, os.getuid(), "short", at_ns)
    finally:
        cgroup.remove()
    assert process.confidence is Confidence.KERNEL
    assert (process.exe, process.claimed_exe, process.name) == (str(program), None, "short")
    assert process.sha256 == hashlib.sha256(program.read_bytes()).hexdigest()
    assert process.parent is not None
    assert (process.parent.pid, process.parent.exe) == (shell, os.path.realpath("/bin/sh"))
    assert process.parent.parent is not None
    assert (process.parent.parent.pid, process.parent.parent.exe) == (os.getpid(), os.readlink("/proc/self/exe"))
    assert process.started is not None
    assert abs(datetime.now(UTC) - datetime.fromisoformat(process.started)) < timedelta(minutes=1)


@pytest.mark.root
def test_whose_cgroup_has_gone_unseen_is_not_said_to_be_in_no_container(watched: ProcessTable, tmp_path: Path) -> None:
    program = Path(shutil.copy(TRUE, tmp_path / "short"))
    cgroup = SessionCgroup.create("processes", f"{os.getpid()}-gone")
    try:
        pid = run("/bin/sh", "-c", f"echo $$ > {cgroup.path}/cgroup.procs; exec {program}")
    finally:
        cgroup.remove()
    process = whose(watched, pid, os.getuid(), "short", connected_while_it_ran(watched, pid, str(program)))
    assert (process.exe, process.unit, process.container) == (str(program), None, None)
    assert process.confidence is Confidence.INFERRED


def parent_of(table: ProcessTable, pid: int) -> int:
    return table._history._lives[pid][-1].parent


@pytest.mark.root
def test_every_one_of_hundreds_of_short_lives_is_told_for_what_it_was(watched: ProcessTable) -> None:
    pids = [run(TRUE) for _ in range(200)]
    for pid in pids:
        process = whose(watched, pid, 0, "true", connected_while_it_ran(watched, pid, TRUE))
        assert (process.exe, process.confidence) == (TRUE, Confidence.KERNEL)
        assert whose(watched, pid, 0, "true").exe is None  # now nobody has that pid


@pytest.mark.root
def test_a_connection_belongs_to_the_program_that_made_it_not_to_the_next(watched: ProcessTable) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", f"import os; input(); os.execv({CAT!r}, [{CAT!r}])"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdin is not None
    python = os.path.realpath(sys.executable)
    while (before := whose(watched, child.pid, 0, "")).exe != python:
        os.sched_yield()
    connected_ns = now_ns()
    child.stdin.write(b"\n")
    child.stdin.flush()
    while whose(watched, child.pid, 0, "").exe != os.path.realpath(CAT):
        os.sched_yield()
    process = whose(watched, child.pid, 0, "", connected_ns)
    assert (process.exe, process.sha256, process.confidence) == (python, before.sha256, Confidence.KERNEL)
    child.communicate()
    assert whose(watched, child.pid, 0, "", connected_ns).exe == python


@pytest.mark.root
def test_another_file_with_the_same_inode_number_is_another_program(watched: ProcessTable, tmp_path: Path) -> None:
    """Whoever has a file system of their own chooses its inode numbers."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "inode32", "mitmsec-test", folder], check=True)
    try:
        first, second = (Path(shutil.copy(CAT, folder / "program")) for folder in folders)
        if first.stat().st_ino != second.stat().st_ino:
            pytest.skip("this kernel does not number files of a tmpfs from the start")
        code = f"import os; os.execv({str(second)!r}, ['second'])"
        script = f"{first} /dev/null; exec {sys.executable} -c {shlex.quote(code)}"
        child = subprocess.Popen(["/bin/sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        while (life := watched._history._lives.get(child.pid, [None])[-1]) is None or (
            life.programs[-1].path != str(second)
        ):
            watched.refresh()
        faked = replace(life.programs[-1], executable=file_of(first.stat()))
        assert whose(watched, child.pid, 0, "x").exe == str(second)
        life.programs[-1] = faked
        assert not processes._agrees(watched._known[child.pid], life, now_ns())
        child.communicate()
    finally:
        for folder in folders:
            subprocess.run(["umount", folder], check=True)


@pytest.mark.root
def test_two_processes_of_one_pid_are_never_confused(watched: ProcessTable) -> None:
    pid = run(TRUE)
    first_ns = connected_while_it_ran(watched, pid, TRUE)
    os.waitpid(with_pid(pid, ["/bin/sh", "-c", ":"]), 0)
    watched.refresh()
    second_ns = watched._history._lives[pid][1].programs[-1].since_ns
    assert whose(watched, pid, 0, "x", first_ns).exe == TRUE
    assert whose(watched, pid, 0, "x", second_ns).exe == os.path.realpath("/bin/sh")


@pytest.mark.root
def test_a_fork_that_executes_nothing_is_the_same_program(watched: ProcessTable) -> None:
    pid = forked(lambda: None)
    os.waitpid(pid, 0)
    watched.refresh()
    (life,) = watched._history._lives[pid]
    process = whose(watched, pid, 0, "x", life.since_ns)
    assert (process.exe, process.confidence) == (os.readlink("/proc/self/exe"), Confidence.KERNEL)


@pytest.mark.root
@pytest.mark.parametrize("is_alive", [True, False])
def test_a_name_faked_in_a_namespace_is_told_as_a_claim(watched: ProcessTable, copy: Path, is_alive: bool) -> None:
    """Any user can bind their program over /usr/bin/env, for themselves."""
    faked = os.path.realpath(shutil.which("env") or "")
    script = f"mount --bind {copy} {faked} && exec {faked} {'-' if is_alive else '/dev/null'}"
    child = subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script], stdin=subprocess.PIPE
    )
    if not is_alive:
        child.wait()
    while (life := watched._history._lives.get(child.pid, [None])[-1]) is None or life.programs[-1].path != faked:
        watched.refresh()
    process = whose(watched, child.pid, 0, "env", life.programs[-1].since_ns)
    child.communicate()
    assert (process.exe, process.claimed_exe) == (None, faked)
    assert process.confidence is Confidence.KERNEL
    assert process.sha256 == (hashlib.sha256(copy.read_bytes()).hexdigest() if is_alive else None)


@pytest.mark.root
def test_a_file_replaced_since_has_no_hash_of_its_successor(watched: ProcessTable, tmp_path: Path) -> None:
    program = Path(shutil.copy(TRUE, tmp_path / "short"))
    pid = run(program)
    at_ns = connected_while_it_ran(watched, pid, str(program))
    shutil.copy(CAT, program)
    owner = watched.whose(pid, 0, "short", at_ns)
    assert owner.process.exe == str(program)
    assert owner.sha256 is not None
    assert owner.sha256.result() is None


@pytest.mark.root
def test_after_a_loss_what_was_known_of_the_dead_is_not_told() -> None:
    with Monitor.open(ring_bytes=16384) as monitor:  # some ten processes of anybody's
        table = ProcessTable(monitor=monitor)
        pid = run(TRUE)
        at_ns = connected_while_it_ran(table, pid, TRUE)
        assert whose(table, pid, 0, "true", at_ns).exe == TRUE
        for _ in range(50):
            run(TRUE)
        process = whose(table, pid, 0, "true", at_ns)
        assert (process.exe, process.confidence) == (None, Confidence.INFERRED)
        for when_ns in (None, at_ns):  # who lives is read, and runs what it ran
            ours = whose(table, os.getpid(), 0, "x", when_ns)
            assert (ours.exe, ours.confidence) == (os.readlink("/proc/self/exe"), Confidence.KERNEL)


@pytest.mark.root
def test_what_the_monitor_tells_is_heard_once() -> None:
    heard: list[object] = []
    with Monitor.open() as monitor:
        table = ProcessTable(monitor=monitor, heard=heard.extend)
        pid = run(TRUE)
        table.refresh()
        table.whose(pid, 0, "x")
    assert sum(isinstance(event, Scanned) for event in heard) == 1
    assert [type(event) for event in heard if getattr(event, "pid", 0) == pid][-1] is ProcessEnded


def test_what_was_recorded_of_a_process_without_known_parent_or_file_is_told_as_far_as_it_goes() -> None:
    class Told(Monitor):
        def __init__(self) -> None:
            self.events = [
                ProcessExecuted(
                    pid=4_000_000,
                    started_ns=5 * 10**9,
                    at_ns=6 * 10**9,
                    parent=3_999_999,
                    parent_started_ns=1,
                    uid=0,
                    comm="name",
                    cgroup=0,
                    entry=0,
                    no_room=False,
                    thread=4_000_000,
                    executable=None,
                    mount_namespace=os.stat("/proc/self/ns/mnt").st_ino,
                    path="/opt/program",
                    name="./program",
                )
            ]

        def drain(self) -> list[ProcessEvent | Scanned]:
            told, self.events = self.events, []
            return [*told]

    owner = ProcessTable(monitor=Told()).whose(4_000_000, 0, "x", 7 * 10**9)
    assert owner.sha256 is None
    assert owner.process.exe == "/opt/program"
    assert owner.process.parent == ParentProcess(pid=3_999_999)


@pytest.mark.root
def test_the_hook_and_the_monitor_agree_or_what_the_hook_said_counts(watched: ProcessTable, tmp_path: Path) -> None:
    program = Path(shutil.copy(TRUE, tmp_path / "short"))
    pid = run(program)
    at_ns = connected_while_it_ran(watched, pid, str(program))
    (life,) = watched._history._lives[pid]
    file = life.program_at(at_ns).executable
    assert file is not None
    assert life.started_ns is not None
    caller = Caller(life.started_ns, device=file.device, inode=file.inode, ctime_ns=file.ctime_ns)
    assert watched.whose(pid, 0, "short", at_ns, caller).process.exe == str(program)
    for other in ({"start_ns": life.started_ns + 1}, {"inode": file.inode + 1}):
        process = watched.whose(pid, 0, "short", at_ns, msgspec.structs.replace(caller, **other)).process
        assert (process.exe, process.confidence) == (None, Confidence.INFERRED)
