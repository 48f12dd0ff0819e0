"""Who a pid is."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from caller_stage import caller_of
from monitor_stage import forked, run, with_pid

from mitmsec.core.model import Caller, Confidence, ParentProcess, Process
from mitmsec_redirect import owner, processes
from mitmsec_redirect.cgroup import SessionCgroup
from mitmsec_redirect.hashes import ExecutableHashes
from mitmsec_redirect.monitor import Monitor, Scanned
from mitmsec_redirect.proc_files import file_of
from mitmsec_redirect.process_history import TICK_NS
from mitmsec_redirect.process_records import ProcessEnded, ProcessEvent, ProcessExecuted
from mitmsec_redirect.processes import ProcessTable


def whose(table: ProcessTable, pid: int, uid: int, comm: str, connected_ns: int | None = None) -> Process:
    """The process, with the hash that came of it."""
    owner = table.whose(pid, uid, comm, connected_ns)
    if owner.sha256 is not None:
        owner.sha256.result(timeout=20)
    return owner.hashed()


CAT = shutil.which("cat") or ""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copy(CAT, tmp_path / "program"))


@pytest.fixture
def child(copy: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([copy], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    yield process
    process.communicate()


def test_a_living_process_is_read(child: subprocess.Popen[bytes], copy: Path) -> None:
    process = whose(ProcessTable(), child.pid, os.getuid(), "program")
    assert process.confidence is Confidence.KERNEL
    assert (process.pid, process.exe, process.name) == (child.pid, str(copy), "program")
    assert process.sha256 == hashlib.sha256(copy.read_bytes()).hexdigest()
    assert process.user == owner.user_name(os.getuid())
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
    monkeypatch.setattr(owner.pwd, "getpwuid", None)
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
    assert [whose(table, child.pid, uid, "x").user for uid in (4_000_000, 0, 4_000_001)] == [
        "4000000",
        owner.user_name(0),
        "4000001",
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
        before = len(os.listdir("/proc/self/fd"))
        for process in running:
            whose(table, process.pid, 0, "x")
        assert list(table._known) == [process.pid for process in running[2:]]
        assert len(os.listdir("/proc/self/fd")) == before + 2
        table.close()
        assert len(os.listdir("/proc/self/fd")) == before
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


# --- with the kernel's word about the caller --------------------------------------------------------------------------
def called(table: ProcessTable, pid: int, caller: Caller) -> Process:
    owner = table.whose(pid, 0, "thread", None, caller)
    if owner.sha256 is not None:
        owner.sha256.result(timeout=20)
    return owner.hashed()


def test_a_caller_that_still_runs_is_read(child: subprocess.Popen[bytes], copy: Path) -> None:
    process = called(ProcessTable(), child.pid, caller_of(child.pid))
    assert (process.exe, process.confidence) == (str(copy), Confidence.KERNEL)
    assert process.sha256 == hashlib.sha256(copy.read_bytes()).hexdigest()


def test_a_caller_that_has_executed_another_program_is_not_taken_for_that(copy: Path) -> None:
    code = "import os,sys; print(flush=True); sys.stdin.readline(); os.execv(sys.argv[1], sys.argv[1:])"
    running = [sys.executable, "-I", "-S", "-c", code, str(copy)]
    with subprocess.Popen(running, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        caller, seen, unseen = caller_of(child.pid), ProcessTable(), ProcessTable()
        before = called(seen, child.pid, caller)
        assert before.exe == os.path.realpath(sys.executable)
        child.stdin.write(b"\n")
        child.stdin.flush()
        while os.readlink(f"/proc/{child.pid}/exe") != str(copy):
            time.sleep(0.01)
        process = called(unseen, child.pid, caller)
        assert (process.exe, process.sha256, process.confidence) == (None, None, Confidence.INFERRED)
        assert (process.name, process.started, process.user) == ("thread", before.started, "root")
        assert process.parent == ParentProcess(pid=os.getpid())  # told, but its start was not
        assert called(seen, child.pid, caller) == before, "a program that was read before is known"
        later = called(seen, child.pid, caller_of(child.pid))
        assert (later.exe, later.confidence) == (str(copy), Confidence.KERNEL)


def test_another_process_of_the_same_pid_is_not_taken_for_the_caller(child: subprocess.Popen[bytes]) -> None:
    caller = caller_of(child.pid)
    earlier = msgspec.structs.replace(caller, start_ns=caller.start_ns - TICK_NS)
    process = called(ProcessTable(), child.pid, earlier)
    assert (process.exe, process.confidence) == (None, Confidence.INFERRED)
    same_tick = msgspec.structs.replace(caller, inode=caller.inode + 1)
    assert called(ProcessTable(), child.pid, same_tick).confidence is Confidence.INFERRED


def test_a_caller_that_has_ended_is_known_by_the_file_that_others_have_run(copy: Path) -> None:
    table = ProcessTable()
    first, second = (subprocess.Popen([copy], stdin=subprocess.PIPE) for _ in range(2))
    ours = caller_of(os.getpid())
    caller = msgspec.structs.replace(caller_of(second.pid), parent=os.getpid(), parent_start_ns=ours.start_ns)
    second.communicate()
    assert called(table, second.pid, caller).confidence is Confidence.INFERRED
    told = called(table, first.pid, caller_of(first.pid))
    first.communicate()
    process = called(table, second.pid, caller)
    assert (process.exe, process.name, process.confidence) == (str(copy), "thread", Confidence.KERNEL)
    assert (process.sha256, process.parent) == (told.sha256, told.parent)
    assert process.parent is not None
    assert process.parent.exe == os.path.realpath(sys.executable)
    with copy.open("ab") as file:
        file.write(b"changed")
    changed = called(table, second.pid, caller)
    assert (changed.exe, changed.sha256, changed.confidence) == (None, None, Confidence.INFERRED)


def test_a_file_in_memory_may_have_changed_since_its_process_ended(copy: Path) -> None:
    """A shared mapping changes it without a trace, so of a process that has ended there is a path, and no hash."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        program = Path(shutil.copy(copy, folder / "program"))
        table = ProcessTable()
        first, second = (subprocess.Popen([program], stdin=subprocess.PIPE) for _ in range(2))
        caller = caller_of(second.pid)
        second.communicate()
        living = called(table, first.pid, caller_of(first.pid))
        assert living.sha256 == hashlib.sha256(program.read_bytes()).hexdigest()
        first.communicate()
        owner = table.whose(second.pid, 0, "x", None, caller)
        assert owner.process.exe == str(program)
        assert owner.sha256 is not None
        assert owner.sha256.result(timeout=20) is None
    finally:
        shutil.rmtree(folder)


# --- with a process monitor -------------------------------------------------------------------------------------------
TRUE = os.path.realpath(shutil.which("true") or "")


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
    with Monitor.open(ring_bytes=4096) as monitor:
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


def test_a_name_that_is_no_text_can_be_written(tmp_path: Path) -> None:
    program = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    shutil.copy(CAT, program)
    child = subprocess.Popen([program], stdin=subprocess.PIPE)
    process = whose(ProcessTable(), child.pid, 0, "x")
    child.communicate()
    assert process.exe == f"{tmp_path}/\\xff"
    assert msgspec.json.encode(process)


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


def test_a_parent_that_has_gone_is_told_by_its_pid(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text("7 (a) S 6 " + "0 " * 17 + "500 0\n")
    assert whose(ProcessTable(tmp_path), 7, 0, "x").parent == ParentProcess(pid=6)


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
