"""What the kernel said of a caller, held against /proc and what was read before."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from caller_stage import caller_of, mark

from mitmsec.core.model import Caller
from mitmsec_redirect import callers, proc_files
from mitmsec_redirect.callers import Callers
from mitmsec_redirect.executable_paths import ExecutablePaths
from mitmsec_redirect.process_history import TICK_NS

CAT = shutil.which("cat") or ""
CALLER = Caller(5 * TICK_NS + 1, 1, 2, device=3, inode=4, ctime_ns=5)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return Path(shutil.copy(CAT, tmp_path / "program"))


@pytest.fixture
def child(program: Path) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([program], stdin=subprocess.PIPE) as process:
        yield process


def test_a_process_that_runs_on_is_the_caller_and_any_difference_makes_it_another(
    child: subprocess.Popen[bytes],
) -> None:
    caller, folder = caller_of(child.pid), proc_files.opened(child.pid)
    assert folder is not None
    started = callers.start_ticks(caller)
    assert callers.runs_still(folder, caller)
    assert callers.runs_still(folder, caller, started)
    for other in (
        {"start_ns": caller.start_ns + TICK_NS},
        {"inode": caller.inode + 1},
        {"ctime_ns": caller.ctime_ns + 1},
        {"device": caller.device + 1},
        {"inode": 0},
    ):
        assert not callers.runs_still(folder, msgspec.structs.replace(caller, **other))
        assert not callers.runs_still(folder, msgspec.structs.replace(caller, **other), started)
    child.communicate()
    assert not callers.runs_still(folder, caller)
    assert not callers.runs_still(folder, caller, started)
    os.close(folder)


def test_a_process_that_has_ended_and_is_not_reaped_runs_nothing() -> None:
    zombie = subprocess.Popen(["true"])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    folder = proc_files.opened(zombie.pid)
    assert folder is not None
    status = proc_files.status_of(folder)
    assert status is not None
    caller = msgspec.structs.replace(CALLER, start_ns=status.start_ticks * TICK_NS)
    assert not callers.runs_still(folder, caller)
    assert not callers.runs_still(folder, caller, status.start_ticks)
    os.close(folder)
    zombie.wait()


def test_what_was_read_is_found_for_this_program_of_this_process_alone() -> None:
    known: Callers[str] = Callers()
    known.keep(7, CALLER, "read", "/usr/bin/x")
    assert known.find(7, CALLER) == "read"
    assert known.find(7, msgspec.structs.replace(CALLER, parent=99)) == "read"  # its first parent has ended
    assert known.find(8, CALLER) is None
    assert known.find(7, msgspec.structs.replace(CALLER, start_ns=CALLER.start_ns + 1)) is None
    assert known.find(7, msgspec.structs.replace(CALLER, inode=9)) is None


def test_a_file_is_named_as_long_as_it_lies_there_unchanged_and_has_no_other_name(
    child: subprocess.Popen[bytes], program: Path
) -> None:
    known: Callers[str] = Callers()
    caller = caller_of(child.pid)
    another = msgspec.structs.replace(caller, start_ns=1)
    assert known.path_of(another) is None
    known.keep(child.pid, caller, "read", str(program))
    assert known.path_of(another) == str(program)
    child.communicate()
    os.link(program, program.with_name("second"))
    known.keep(child.pid, now := named_anew(another, program), "read", str(program))
    assert known.path_of(another) is None  # the file's change time is another by now
    assert known.path_of(now) is None  # which of the two names was executed?
    program.unlink()
    assert known.path_of(now) is None


@pytest.mark.root
def test_a_file_that_nobody_was_seen_to_run_is_named_by_what_a_hook_noted_if_that_is_true(
    child: subprocess.Popen[bytes], program: Path
) -> None:
    caller = caller_of(child.pid)
    executable = callers.executable_of(caller)
    assert executable is not None
    with contextlib.closing(ExecutablePaths()) as noted:
        known: Callers[str] = Callers(noted)
        assert known.path_of(caller) is None, "no hook has asked for the notes"
        mark(noted, executable, CAT)
        assert known.path_of(caller) is None
        assert noted.find(executable) is None, "of no use, and given up"
        mark(noted, executable, str(program), rooted=False)
        assert known.path_of(caller) is None, "it ends below no root"
        mark(noted, executable, str(program))
        assert known.path_of(caller) == str(program)
        noted.forget(executable)
        assert known.path_of(caller) == str(program), "which is remembered"
        known.keep(child.pid, caller, "read", CAT)
        assert known.path_of(caller) is None
        mark(noted, executable, str(program))
        assert known.path_of(caller) == str(program), "a second way to it"


def named_anew(caller: Caller, program: Path) -> Caller:
    return msgspec.structs.replace(caller, ctime_ns=program.stat().st_ctime_ns)


def test_what_has_no_path_and_what_has_no_file_is_not_named() -> None:
    known: Callers[str] = Callers()
    known.keep(7, CALLER, "deleted", None)
    thread_of_the_kernel = Caller(1)
    known.keep(8, thread_of_the_kernel, "read", "/x")
    assert known.path_of(CALLER) is known.path_of(thread_of_the_kernel) is None
    assert known.find(8, thread_of_the_kernel) == "read"
