"""Who a pid is, held against the kernel's word about who called."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
from caller_stage import caller_of

from mitmsec.core.model import Caller, Confidence, ParentProcess, Process
from mitmsec_redirect.process_history import TICK_NS
from mitmsec_redirect.processes import ProcessTable


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
