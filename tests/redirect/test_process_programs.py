"""What the kernel does with verdicts while processes start, execute and end; seen in the map, and in what is told."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from monitor_stage import Stage, forked, python, run, with_pid

from mitmsec_redirect.monitor import Monitor
from mitmsec_redirect.process_records import Executable
from mitmsec_redirect.verdicts import PASSED_ON, Verdict, at_exec, entry, verdict_of

pytestmark = pytest.mark.root
CAT = os.path.realpath(shutil.which("cat") or "")
TICK_S = 0.02  # changes of a file that lie closer together may leave it the same time
UNDECIDED, SELECTED, INHERITS = Verdict.UNDECIDED, Verdict.SELECTED, Verdict.INHERITS


@pytest.fixture(scope="module")
def opened() -> Iterator[Stage]:
    with Monitor.open() as monitor:
        yield Stage(monitor)


@pytest.fixture
def stage(opened: Stage) -> Iterator[Stage]:
    """One monitor for all, which knows no program yet."""
    opened.events.clear()
    yield opened
    opened.monitor.forget_executables()
    opened.monitor._maps["selected"].delete(os.getpid().to_bytes(4, "little"))


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A file that nobody else executes."""
    return Path(shutil.copy(CAT, tmp_path / "program"))


def executable(stage: Stage, program: Path) -> Executable:
    """As the kernel tells it when the program runs."""
    with running(stage, program) as pid:
        found = stage.executed(pid)[-1].executable
    assert found is not None
    return found


@contextlib.contextmanager
def running(stage: Stage, program: Path, *through: str) -> Iterator[int]:
    """The program, waiting for its input, started by the words of `through` if there are any."""
    child = subprocess.Popen([*through, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        stage.until(lambda: str(program) in [event.path for event in stage.executed(child.pid)])
        yield child.pid
    finally:
        child.communicate()


def start_ticks(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def verdict(stage: Stage, pid: int) -> Verdict:
    return verdict_of(stage.monitor.entry_of(pid))


# --- programs that are known, and others ------------------------------------------------------------------------------
def test_an_unknown_program_is_undecided_and_the_entry_is_what_is_told(stage: Stage, program: Path) -> None:
    with running(stage, program) as pid:
        (told,) = stage.executed(pid)
        assert stage.monitor.entry_of(pid) == told.entry == entry(told.at_ns, UNDECIDED)
        assert stage.monitor.entries()[pid] == told.entry
    assert stage.monitor.entry_of(pid) == 0


def test_a_known_program_has_its_verdict_before_its_first_instruction(stage: Stage, program: Path) -> None:
    known = executable(stage, program)
    stage.monitor.know(known, SELECTED)
    with running(stage, program) as pid:
        assert stage.executed(pid)[-1].entry & 0xFFF == SELECTED
        assert verdict(stage, pid) == SELECTED
    stage.monitor.know(known, Verdict(0))
    with running(stage, program) as pid:
        assert stage.monitor.entry_of(pid) == stage.executed(pid)[-1].entry == 0


def test_a_file_that_has_changed_or_has_another_name_is_not_known(stage: Stage, program: Path) -> None:
    stage.monitor.know(executable(stage, program), Verdict(0))
    time.sleep(TICK_S)
    moved = program.rename(program.with_name("moved"))
    with running(stage, moved) as pid:
        assert verdict(stage, pid) == UNDECIDED
    stage.monitor.know(executable(stage, moved), Verdict(0))
    time.sleep(TICK_S)
    os.link(moved, program)
    with running(stage, program) as pid:
        assert verdict(stage, pid) == UNDECIDED


def test_when_the_policy_changes_nothing_is_known_any_more(stage: Stage, program: Path) -> None:
    stage.monitor.know(executable(stage, program), SELECTED)
    stage.monitor.forget_executables()
    with running(stage, program) as pid:
        assert verdict(stage, pid) == UNDECIDED


@pytest.mark.parametrize(
    ("before", "known"),
    list(
        itertools.product(
            [None, SELECTED, UNDECIDED, SELECTED | UNDECIDED, SELECTED | INHERITS, Verdict.OWN_TRAFFIC | INHERITS,
             Verdict(31), Verdict.INHERITED | SELECTED],
            [None, Verdict(0), SELECTED, SELECTED | INHERITS, Verdict(31)],
        )
    ),
)  # fmt: skip
def test_the_kernel_judges_as_at_exec_does(
    stage: Stage, program: Path, before: Verdict | None, known: Verdict | None
) -> None:
    file = executable(stage, program)
    stage.monitor.forget_executables()
    if known is not None:
        stage.monitor.know(file, known)
    code = f"import os; print(1, flush=True); input(); os.execv({str(program)!r}, ['p'])"
    child = subprocess.Popen(python(code), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin
    assert child.stdout
    child.stdout.readline()
    interpreter = stage.executed(child.pid)[-1]
    assert stage.monitor.decide(child.pid, interpreter.entry, before or Verdict(0))
    child.stdin.write(b"\n")
    child.stdin.flush()
    stage.until(lambda: stage.executed(child.pid)[-1].path == str(program))
    told = stage.executed(child.pid)[-1]
    assert told.entry == at_exec(entry(0, before or Verdict(0)), known, told.at_ns)
    assert stage.monitor.entry_of(child.pid) == told.entry
    child.communicate()


# --- children ---------------------------------------------------------------------------------------------------------
def test_a_child_that_executes_nothing_has_its_parents_entry(stage: Stage) -> None:
    stage.monitor.adopt(os.getpid(), start_ticks(os.getpid()), SELECTED)
    read, write = os.pipe()
    pid = forked(lambda: (os.close(write), os.read(read, 1)))
    try:
        assert stage.monitor.entry_of(pid) == stage.monitor.entry_of(os.getpid()) == stage.started(pid).entry != 0
    finally:
        os.close(write)
        os.waitpid(pid, 0)
        os.close(read)
    assert stage.monitor.entry_of(pid) == 0


def test_what_an_application_with_children_starts_is_selected_whatever_it_is(stage: Stage, program: Path) -> None:
    stage.monitor.know(executable(stage, program), Verdict(0))
    stage.monitor.adopt(os.getpid(), start_ticks(os.getpid()), SELECTED | INHERITS)
    with running(stage, program, "/usr/bin/env") as pid:
        assert verdict(stage, pid) == SELECTED | INHERITS | Verdict.INHERITED


def test_a_child_of_somebody_not_selected_has_no_entry(stage: Stage) -> None:
    stage.monitor.adopt(os.getpid(), start_ticks(os.getpid()), Verdict(0))
    pid = forked(lambda: None)
    os.waitpid(pid, 0)
    assert stage.started(pid).entry == 0


def test_a_pid_that_is_used_again_has_nothing_of_what_had_it_before(stage: Stage, program: Path) -> None:
    """Even if something was left behind in the map."""
    pid = run("/bin/true")
    stage.monitor._maps["selected"].update(pid.to_bytes(4, "little"), entry(4096, PASSED_ON).to_bytes(8, "little"))
    stage.monitor.know(executable(stage, program), Verdict(0))
    stage.monitor.know(executable(stage, Path(sys.executable).resolve()), Verdict(0))  # it clones
    fifo = program.with_name("fifo")
    os.mkfifo(fifo)
    assert with_pid(pid, [str(program), str(fifo)]) == pid
    stage.until(lambda: stage.executed(pid)[-1].path == str(program))
    assert stage.started_again(pid).entry == stage.executed(pid)[-1].entry == stage.monitor.entry_of(pid) == 0
    fifo.write_bytes(b"")
    os.waitpid(pid, 0)


# --- decisions --------------------------------------------------------------------------------------------------------
def test_a_decision_holds_for_the_program_it_was_made_for_and_no_other(stage: Stage, program: Path) -> None:
    with running(stage, program, "/usr/bin/env") as pid:
        first, second = stage.executed(pid)
        assert not stage.monitor.decide(pid, first.entry, SELECTED)
        assert verdict(stage, pid) == UNDECIDED
        assert stage.monitor.decide(pid, second.entry, SELECTED)
        assert verdict(stage, pid) == SELECTED
        assert not stage.monitor.decide(pid, second.entry, Verdict(0))
    assert not stage.monitor.decide(pid, entry(second.entry, SELECTED), Verdict(0))


def test_who_was_found_by_a_scan_is_adopted_once_and_only_if_it_is_still_the_same(stage: Stage) -> None:
    with running(stage, Path(CAT)) as pid:
        stage.monitor._maps["selected"].delete(pid.to_bytes(4, "little"))
        ticks = start_ticks(pid)
        assert not stage.monitor.adopt(pid, ticks - 1, SELECTED)
        assert not verdict(stage, pid)
        stage.monitor._maps["selected"].delete(pid.to_bytes(4, "little"))
        assert stage.monitor.adopt(pid, ticks, SELECTED)
        assert not stage.monitor.adopt(pid, ticks, SELECTED | INHERITS)
        assert verdict(stage, pid) == SELECTED
    assert not stage.monitor.adopt(pid, ticks, SELECTED)
    assert not verdict(stage, pid)


# --- no room ----------------------------------------------------------------------------------------------------------
def test_a_process_that_has_no_room_is_told_and_counted(program: Path) -> None:
    with Monitor.open(selected_limit=1, executables_limit=1) as monitor, contextlib.ExitStack() as held:
        stage = Stage(monitor)
        for _ in range(100):  # others' processes may have the room; once they end, one of ours takes it and keeps it
            one = held.enter_context(running(stage, program))
            stage.executed(one)
            if monitor.entry_of(one):
                break
        before = monitor.unselected_for_want_of_room
        another = held.enter_context(running(stage, program))
        assert stage.executed(another)[-1].no_room
        assert not monitor.entry_of(another)
        assert monitor.unselected_for_want_of_room > before
        assert not monitor.adopt(os.getpid(), start_ticks(os.getpid()), SELECTED)
        assert [monitor.know(Executable(1, inode, 3), SELECTED) for inode in (1, 2)] == [True, False]
