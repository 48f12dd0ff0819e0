"""Who starts, executes and ends, told by the kernel as it happens; each test starts real processes."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from descriptors import descriptors
from monitor_stage import CLONE_PARENT, SYS_CLONE, Stage, forked, python, run, spawn, with_pid

from mitmsec_redirect import monitor as module
from mitmsec_redirect.bpf import EbpfUnavailable
from mitmsec_redirect.monitor import Monitor, Scanned
from mitmsec_redirect.process_records import ProcessEnded, ProcessExecuted, ProcessStarted

pytestmark = pytest.mark.root
TRUE = os.path.realpath(shutil.which("true") or "")
OUR_MOUNTS = os.stat("/proc/self/ns/mnt").st_ino


@pytest.fixture
def stage() -> Iterator[Stage]:
    with Monitor.open() as monitor:
        yield Stage(monitor)


# --- what is told -----------------------------------------------------------------------------------------------------
def test_a_program_that_is_long_gone_is_known_with_all_that_the_kernel_saw(stage: Stage) -> None:
    before_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    pid = run(TRUE)
    assert stage.kinds(pid) == "sxe"
    started, executed, ended = stage.of(pid)
    assert isinstance(started, ProcessStarted)
    assert isinstance(executed, ProcessExecuted)
    assert (executed.path, executed.name, executed.comm) == (TRUE, TRUE, "true")
    assert executed.mount_namespace == OUR_MOUNTS
    assert (executed.parent, executed.uid, started.forker) == (os.getpid(), os.getuid(), os.getpid())
    assert executed.thread == pid
    status = os.stat(TRUE)
    assert executed.executable is not None
    assert (executed.executable.inode, executed.executable.ctime_ns) == (status.st_ino, status.st_ctime_ns)
    assert before_ns < started.at_ns < executed.at_ns < ended.at_ns < time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    assert started.started_ns == executed.started_ns == ended.started_ns
    assert stage.monitor.lost == 0


def test_start_times_are_those_of_proc(stage: Stage) -> None:
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
    child.communicate()
    started = stage.started(child.pid)
    assert started.started_ns // 10_000_000 == int(fields[19])
    ours = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    assert started.parent_started_ns // 10_000_000 == int(ours[19])


def test_every_one_of_hundreds_that_live_a_millisecond_is_told(stage: Stage) -> None:
    pids = [run(TRUE) for _ in range(300)]
    assert {stage.kinds(pid) for pid in pids} == {"sxe"}
    assert all(stage.executed(pid)[0].path == TRUE for pid in pids)


def test_a_chain_of_programs_is_one_process(stage: Stage) -> None:
    pid = run("/bin/sh", "-c", f"exec env sh -c 'exec {TRUE}'")
    assert stage.kinds(pid) == "sxxxxe"
    assert [Path(event.path or "").name for event in stage.executed(pid)][-1] == "true"
    assert len({event.started_ns for event in stage.of(pid)}) == 1


def test_a_fork_without_exec_runs_what_its_parent_runs(stage: Stage) -> None:
    pid = forked(lambda: None)
    os.waitpid(pid, 0)
    assert stage.kinds(pid) == "se"
    own = os.stat("/proc/self/exe")
    executable = stage.started(pid).executable
    assert executable is not None
    assert (executable.inode, executable.ctime_ns) == (own.st_ino, own.st_ctime_ns)


def test_a_clone_can_have_another_parent_than_who_made_it(stage: Stage) -> None:
    code = f"import ctypes, os; ctypes.CDLL(None).syscall({SYS_CLONE}, {CLONE_PARENT | 17}, 0, 0, 0, 0) or os._exit(0)"
    maker = spawn(*python(code))
    stage.until(lambda: bool(stage.events_of_forker(maker)))
    (made,) = stage.events_of_forker(maker)
    assert (made.parent, made.forker) == (os.getpid(), maker)
    for pid in (maker, made.pid):
        os.waitpid(pid, 0)


def test_a_script_is_known_by_its_interpreter_and_the_name_that_was_given(stage: Stage, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\nexit 0\n")
    script.chmod(0o755)
    (executed,) = stage.executed(run(script))
    assert (executed.path, executed.name) == (os.path.realpath("/bin/sh"), str(script))


def test_a_path_crosses_mounts_and_is_the_real_one(stage: Stage, tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "mitmsec-test", tmp_path], check=True)
    try:
        folder = tmp_path / "a" / "b"
        folder.mkdir(parents=True)
        program = Path(shutil.copy(TRUE, folder / "program"))
        link = tmp_path / "link"
        link.symlink_to(program)
        (executed,) = stage.executed(run(link))
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert (executed.path, executed.name) == (str(program), str(link))


def test_a_file_without_a_name_has_no_path(stage: Stage) -> None:
    file = os.memfd_create("true")
    os.write(file, Path(TRUE).read_bytes())
    (executed,) = stage.executed(run(f"/proc/self/fd/{file}"))
    os.close(file)
    assert executed.path is None
    assert executed.mount_namespace == 0


def test_a_path_that_is_too_long_is_none_and_no_other(stage: Stage, tmp_path: Path) -> None:
    code = f"""
import os, shutil
os.chdir({str(tmp_path)!r})
for _ in range(70):
    os.mkdir('d'); os.chdir('d')
shutil.copy({TRUE!r}, 'program')
os.execv('./program', ['program'])
"""
    pid = run(*python(code))
    assert stage.executed(pid)[-1].path is None
    assert stage.executed(pid)[-1].name == "./program"


def test_any_bytes_make_a_name(stage: Stage, tmp_path: Path) -> None:
    program = os.fsencode(tmp_path) + b"/a\nb \xff\\c"
    shutil.copy(TRUE, program)
    (executed,) = stage.executed(run(os.fsdecode(program)))
    assert executed.path == os.fsdecode(program)


# --- threads are no processes -----------------------------------------------------------------------------------------
def test_threads_are_not_told(stage: Stage) -> None:
    pid = run(*python("import threading\nfor _ in range(9): threading.Thread(target=len, args=('',)).start()"))
    assert stage.kinds(pid) == "sxe"
    assert not [event for event in stage.events if isinstance(event, ProcessStarted) and event.parent == pid]


def test_a_thread_that_executes_takes_the_place_of_the_first(stage: Stage) -> None:
    code = (
        f"import os, threading, time; threading.Thread(target=os.execv, args=({TRUE!r}, ['t'])).start(); time.sleep(9)"
    )
    pid = run(*python(code))
    assert stage.kinds(pid) == "sxxe"
    last = stage.executed(pid)[-1]
    assert last.thread != pid
    assert last.path == TRUE
    assert len({event.started_ns for event in stage.of(pid)}) == 1


def test_a_process_lives_as_long_as_its_last_thread(stage: Stage) -> None:
    code = """
import ctypes, sys, threading
def wait():
    print('first thread is gone', flush=True)
    sys.stdin.read()
threading.Thread(target=wait).start()
ctypes.CDLL(None).syscall({'x86_64': 60}.get(__import__('os').uname().machine, 93), 0)
"""
    child = subprocess.Popen(python(code), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    stage.until(lambda: " Z " in Path(f"/proc/{child.pid}/stat").read_text())
    assert stage.kinds(child.pid) == "sx"
    scanned = [event for event in Monitor.drain(fresh(stage)) if isinstance(event, Scanned)]
    assert child.pid in {found.pid for found in scanned[0].found}
    child.communicate()
    assert stage.kinds(child.pid).rstrip("e") == "sx"
    assert "e" in stage.kinds(child.pid)


def fresh(stage: Stage) -> Monitor:
    """The same monitor, as if it had never drained."""
    stage.monitor._is_scanned = False
    return stage.monitor


# --- pids -------------------------------------------------------------------------------------------------------------
def test_pids_are_those_of_the_first_pid_namespace(stage: Stage) -> None:
    outer = run("/usr/bin/unshare", "--pid", "--fork", "--mount-proc", TRUE)
    (inner,) = stage.events_of_forker(outer)
    assert stage.executed(inner.pid)[0].path == TRUE
    assert inner.pid != 1


def test_two_processes_of_one_pid_are_told_apart(stage: Stage) -> None:
    pid = run(TRUE)
    assert os.waitpid(with_pid(pid, ["/bin/sh", "-c", ":"]), 0) == (pid, 0)
    assert stage.kinds(pid) == "sxesxe"
    assert [Path(event.path or "").name for event in stage.executed(pid)] == ["true", Path("/bin/sh").resolve().name]
    assert len({event.started_ns for event in stage.of(pid)}) == 2


# --- the start, and losses --------------------------------------------------------------------------------------------
def test_whoever_lived_before_is_in_the_first_scan_and_nobody_is_missed_in_between() -> None:
    """A shell starts children all the time while the monitor opens: each is in the scan or in the stream, or both."""
    loop = subprocess.Popen(["/bin/sh", "-c", f"while :; do {TRUE} & wait; done"], start_new_session=True)
    zombie = subprocess.Popen([TRUE])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    try:
        with Monitor.open() as monitor:
            *stream, scanned = monitor.drain()
            scan_ended_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
            time.sleep(0.1)
            stream += monitor.drain()
    finally:
        loop.kill()
        loop.wait()
    assert isinstance(scanned, Scanned)
    found = {one.pid: one for one in scanned.found}
    assert found[os.getpid()].exe.path == os.readlink("/proc/self/exe")
    assert found[loop.pid].parent == os.getpid()
    assert zombie.pid not in found
    zombie.wait()
    started = {event.pid for event in stream if isinstance(event, ProcessStarted)}
    ended = {event.pid for event in stream if isinstance(event, ProcessEnded) and event.at_ns > scan_ended_ns}
    assert len(ended) > 5
    assert ended <= started | found.keys()
    assert not [event for event in stream if isinstance(event, Scanned)]


def test_what_the_ring_has_no_room_for_is_counted_to_the_last_and_all_is_read_again() -> None:
    with Monitor.open(ring_bytes=4096) as monitor:
        monitor.drain()
        pids = [run(TRUE) for _ in range(100)]
        events = monitor.drain()
        mine = [event for event in events if not isinstance(event, Scanned) and event.pid in pids]
        scanned = events[-1]
        assert isinstance(scanned, Scanned)
        assert len(mine) < 300 <= len(mine) + scanned.lost
        assert scanned.lost <= monitor.lost
        assert os.getpid() in {found.pid for found in scanned.found}
        assert any(is_told(monitor) for _ in range(100))  # others' processes may fill it at any time


def is_told(monitor: Monitor) -> bool:
    """Whether a process is told to its end."""
    pid = run(TRUE)
    return [type(event) for event in monitor.drain() if getattr(event, "pid", 0) == pid][-1:] == [ProcessEnded]


def test_thousands_of_children_a_second_are_all_told() -> None:
    """Forks as fast as this machine can, drained whenever there is something."""
    code = "import os\nfor _ in range(4000):\n    if not os.fork(): os._exit(0)\n    os.wait()"
    with Monitor.open() as monitor:
        monitor.drain()
        storm = spawn(*python(code))
        ended = 0
        watched = select.epoll()
        watched.register(monitor.fileno(), select.EPOLLIN)
        while ended < 4000:
            assert watched.poll(20)
            events = [event for event in monitor.drain() if not isinstance(event, Scanned)]
            ended += sum(isinstance(event, ProcessEnded) and event.parent == storm for event in events)
        assert monitor.lost == 0
        os.waitpid(storm, 0)


def test_it_is_readable_when_something_has_happened_and_not_before() -> None:
    with Monitor.open() as monitor:
        monitor.drain()
        run(TRUE)
        assert select.select([monitor], [], [], 5)[0]


# --- where it cannot be -----------------------------------------------------------------------------------------------
def test_a_kernel_without_types_is_told_with_a_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "BTF_FILE", tmp_path / "none")
    with pytest.raises(EbpfUnavailable, match="DEBUG_INFO_BTF"):
        Monitor.open()


def test_a_kernel_with_other_types_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from btf_writer import BtfWriter

    writer = BtfWriter()
    writer.struct("task_struct", 8)
    monkeypatch.setattr(module, "BTF_FILE", tmp_path / "btf")
    (tmp_path / "btf").write_bytes(writer.bytes())
    with pytest.raises(EbpfUnavailable, match="tgid"):
        Monitor.open()


def test_nothing_is_left_when_it_is_closed() -> None:
    before = descriptors()
    with Monitor.open() as monitor:
        monitor.drain()
        assert monitor.selected_fd > 0
    monitor.close()
    assert descriptors() == before


def test_nothing_is_left_when_it_cannot_be_opened() -> None:
    before = descriptors()
    with pytest.raises(OSError, match="ms_ring"):
        Monitor.open(ring_bytes=1000)
    assert descriptors() == before
