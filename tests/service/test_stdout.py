"""What stdout refuses is told apart from every other error, and never surfaces once more at the very end."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mitmsec.service.stdout import Unwritable, told_apart

BODY = """
import sys, rich.console
from mitmsec.service.stdout import Unwritable, told_apart
try:
    with told_apart():
        {body}
except Unwritable as error:
    print(error, error.reader_has_gone, file=sys.stderr)
    sys.exit(9)
"""
WAYS = {
    "print": "print('x' * 100_000, flush=True)",
    "what is left in the buffer": "print('x')",
    "what is left before an exit": "print('x'); sys.exit(4)",
    "bytes": "sys.stdout.buffer.write(b'x' * 100_000)",
    "rich": "rich.console.Console().print('x' * 200)",
}


def run(body: str, stdout: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BODY.format(body=body)]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)


@pytest.mark.parametrize("body", WAYS.values(), ids=list(WAYS))
def test_a_full_disk_is_named(body: str) -> None:
    with open("/dev/full", "wb") as full:
        done = run(body, full.fileno())
    assert (done.returncode, done.stderr) == (9, "stdout: no space left on device False\n")


@pytest.mark.parametrize("body", WAYS.values(), ids=list(WAYS))
def test_a_reader_that_has_gone_is_known_as_such(body: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = run(body, writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (9, "stdout: broken pipe True\n")


def test_what_can_be_written_arrives_as_it_was(tmp_path: Path) -> None:
    with open(tmp_path / "out", "wb") as out:
        done = run("print('é', end=''); sys.stdout.buffer.write(b'\\xff'); sys.exit(4)", out.fileno())
    assert (done.returncode, done.stderr) == (4, "")
    assert sorted((tmp_path / "out").read_bytes()) == sorted("é".encode() + b"\xff")


def test_another_error_is_left_alone() -> None:
    assert "BrokenPipeError" in run("raise BrokenPipeError(32, 'of a socket')", subprocess.DEVNULL).stderr


def test_a_stand_in_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for other in (io.StringIO(), io.TextIOWrapper(io.BytesIO())):
        monkeypatch.setattr(sys, "stdout", other)
        with told_apart():
            assert sys.stdout is other


def test_where_there_is_no_stdout_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(Unwritable, match="it is closed"), told_apart():
        print("x")
    assert sys.stdout is None
    with told_apart():
        sys.stdout.flush()


def test_an_error_without_words_has_some() -> None:
    assert str(Unwritable(OSError())) == "stdout: "
    assert str(Unwritable(OSError(errno.EIO, "Input/output error"))) == "stdout: input/output error"


@pytest.mark.parametrize("words", [["--version"], ["help"], ["policy", "init"]], ids=" ".join)
def test_a_stdout_that_was_closed_from_the_start_is_the_machines_fault(words: list[str]) -> None:
    command = ["sh", "-c", 'exec "$0" -m mitmsec "$@" >&-', sys.executable, *words]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 3
    assert done.stderr.startswith("mitmsec: stdout: it is closed\n")
