"""Who still needs a run's folder: those who lived when it ended, and those whose environment names it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mitmsec.service import survivors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "ab12cd34"
    folder.mkdir(parents=True)
    return folder


@contextmanager
def sleeper(**environment: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"], env=os.environ | environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_process_that_was_noted_counts_until_it_ends(folder: Path) -> None:
    with sleeper() as process:
        assert survivors.living(folder) == []
        survivors.note(folder, [process.pid, 0])
        assert survivors.living(folder) == [process.pid]
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert survivors.living(folder) == []  # a zombie reads no file


def test_a_pid_that_is_used_again_is_somebody_else(folder: Path) -> None:
    with sleeper() as process:
        (folder / survivors.FILE).write_text(f"{process.pid} 1\n\nno pid\n")
        assert survivors.living(folder) == []


def test_an_environment_that_names_the_folder_counts_however_the_path_begins(folder: Path) -> None:
    with sleeper(SSL_CERT_FILE="/somewhere/else/run/ab12cd34/roots.pem") as process:
        assert survivors.living(folder) == [process.pid]
        assert survivors.living(folder.with_name("ab12cd3")) == []
    assert survivors.living(folder) == []


def test_what_cannot_be_noted_does_no_harm(folder: Path) -> None:
    survivors.note(folder / "gone", [os.getpid()])
    assert survivors.living(folder / "gone") == []
