"""Who a pid is."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mitmsec.core.model import Confidence
from mitmsec_redirect import processes
from mitmsec_redirect.processes import ProcessTable, Remembered

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
    process = ProcessTable().whose(child.pid, os.getuid(), "program")
    assert process.confidence is Confidence.KERNEL
    assert (process.pid, process.exe, process.name) == (child.pid, str(copy), "program")
    assert process.sha256 == hashlib.sha256(copy.read_bytes()).hexdigest()
    assert process.user == processes.user_name(os.getuid())
    assert process.parent is not None
    assert (process.parent.pid, process.parent.exe) == (os.getpid(), os.readlink("/proc/self/exe"))
    assert process.started is not None
    age = datetime.now(UTC) - datetime.fromisoformat(process.started)
    assert timedelta(seconds=-1) < age < timedelta(minutes=1)


def test_a_process_that_has_gone_is_inferred() -> None:
    done = subprocess.Popen([CAT], stdin=subprocess.DEVNULL)
    done.wait()
    process = ProcessTable().whose(done.pid, 4_000_000, "cat")
    assert (process.confidence, process.name, process.exe, process.user) == (
        Confidence.INFERRED,
        "cat",
        None,
        "4000000",
    )


def test_a_process_that_began_after_the_connection_is_somebody_else(child: subprocess.Popen[bytes]) -> None:
    table, now = ProcessTable(), time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    assert table.whose(child.pid, 0, "x", now).confidence is Confidence.KERNEL
    assert table.whose(child.pid, 0, "x", now - 3600 * 10**9).confidence is Confidence.INFERRED


def test_a_deleted_executable_keeps_its_path_and_hash(child: subprocess.Popen[bytes], copy: Path) -> None:
    expected = hashlib.sha256(copy.read_bytes()).hexdigest()
    copy.unlink()
    process = ProcessTable().whose(child.pid, 0, "program")
    assert (process.exe, process.sha256) == (str(copy), expected)


def test_exec_makes_another_program_of_the_same_process() -> None:
    code = f"import os; input(); os.execv({CAT!r}, [{CAT!r}])"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    table = ProcessTable()
    while (before := table.whose(child.pid, 0, "")).exe != os.path.realpath(sys.executable):
        os.sched_yield()
    child.stdin.write(b"\n")
    child.stdin.flush()
    while (after := table.whose(child.pid, 0, "")).exe != os.path.realpath(CAT):
        os.sched_yield()
    child.communicate()
    assert (after.pid, after.started) == (before.pid, before.started)
    assert before.sha256 == hashlib.sha256(Path(sys.executable).read_bytes()).hexdigest()
    assert after.sha256 == hashlib.sha256(Path(CAT).read_bytes()).hexdigest()


def test_a_remembered_process_is_read_again_when_its_executable_changed(child: subprocess.Popen[bytes]) -> None:
    table = ProcessTable()
    first = table.whose(child.pid, 0, "x")
    ((key, (_, known)),) = table._known.items()
    table._known[key] = ((0, 0, 0, 0, 0), known)
    assert table.whose(child.pid, 0, "x") == first
    assert table._known[key][0] != (0, 0, 0, 0, 0)


def test_a_hash_is_made_once_for_a_file(child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    table = ProcessTable()
    first = table.whose(child.pid, 0, "x")
    table._known.clear()
    monkeypatch.setattr(processes.hashlib, "file_digest", None)
    assert table.whose(child.pid, 0, "x") == first


def test_a_process_without_an_executable_is_still_named(tmp_path: Path) -> None:
    folder = tmp_path / "7"
    folder.mkdir()
    (folder / "stat").write_text("7 (a) b) S 0 " + "0 " * 17 + "500 0\n")
    process = ProcessTable(tmp_path).whose(7, 0, "kthread")
    assert (process.exe, process.sha256, process.parent) == (None, None, None)
    assert process.started is not None


@pytest.mark.parametrize("stat", ["", "7 (x", "7 (x) S", "7 (x) S a " + "0 " * 18])
def test_a_stat_that_makes_no_sense_is_a_process_that_has_gone(tmp_path: Path, stat: str) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text(stat)
    assert ProcessTable(tmp_path).whose(7, 0, "x").confidence is Confidence.INFERRED


def test_no_more_is_remembered_than_the_limit() -> None:
    table: Remembered[int, int] = Remembered(2)
    for number in (1, 2):
        table.keep(number, number)
    assert table.find(1) == 1
    table.keep(3, 3)
    assert list(table) == [1, 3]


def test_an_executable_too_large_to_hash_in_time_has_no_hash(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a sparse file of terabytes would hold up the answers about everybody else."""
    monkeypatch.setattr(processes, "HASH_LIMIT_BYTES", 100)
    process = ProcessTable().whose(child.pid, 0, "x")
    assert process.exe is not None
    assert (process.sha256, process.confidence) == (None, Confidence.KERNEL)
