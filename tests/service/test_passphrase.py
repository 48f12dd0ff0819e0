"""A passphrase comes from a terminal, a file or a descriptor, and from nowhere that others can see."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from mitmsec.service.passphrase import passphrase, passphrase_options

ASKING = """
import click
from mitmsec.service.passphrase import passphrase
click.echo("got " + passphrase("the new root", None, None, is_new=True))
"""


@click.command()
@passphrase_options
def command(passphrase_file: str | None, passphrase_fd: int | None) -> None:
    click.echo(f"<{passphrase('the root', passphrase_file, passphrase_fd)}>")


def told(*words: str, stdin: str = "") -> Result:
    return CliRunner().invoke(command, words, input=stdin)


def test_the_first_line_of_a_file_that_is_yours_alone(tmp_path: Path) -> None:
    file = tmp_path / "word"
    file.write_text("correct horse  battery\nstaple\n")
    file.chmod(0o600)
    assert told("--passphrase-file", str(file)).stdout == "<correct horse  battery>\n"


def test_a_descriptor_so_that_it_need_not_lie_anywhere() -> None:
    reading, writing = os.pipe()
    os.write(writing, "für später\n".encode())
    os.close(writing)
    assert told("--passphrase-fd", str(reading)).stdout == "<für später>\n"


@pytest.mark.root
def test_a_file_of_another_user_is_no_secret_of_ours_but_of_who_called_sudo_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "word"
    file.write_text("correct horse battery\n")
    file.chmod(0o600)
    os.chown(file, 12345, -1)
    refused = told("--passphrase-file", str(file))
    assert refused.exit_code == 2
    assert "owned by uid 12345" in refused.stderr
    monkeypatch.setenv("SUDO_UID", "12345")
    assert told("--passphrase-file", str(file)).stdout == "<correct horse battery>\n"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_file_that_others_can_read_holds_no_secret(tmp_path: Path, mode: int) -> None:
    (tmp_path / "word").write_text("correct horse battery\n")
    (tmp_path / "word").chmod(mode)
    result = told("--passphrase-file", str(tmp_path / "word"))
    assert result.exit_code == 2
    assert "others can read it" in result.stderr
    assert "correct horse" not in result.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--passphrase-file", "/nowhere"], "No such file"),
        (["--passphrase-fd", "971"], "cannot be read from descriptor 971"),
        (["--passphrase-fd", "9", "--passphrase-file", "x"], "one too many"),
        ([], "nobody is here to be asked"),
    ],
)
def test_where_there_is_none_it_says_what_brings_it(words: list[str], said: str) -> None:
    result = told(*words)
    assert result.exit_code == 2
    assert said in result.stderr


def test_stdin_is_a_file_too() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from test_passphrase import command; command()", "--passphrase-file", "-"],
        input="correct horse battery\nmore",
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=True,
    )
    assert done.stdout == "<correct horse battery>\n"


def test_on_a_terminal_it_is_asked_for_twice_and_never_shown() -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", ASKING], stdin=theirs, stdout=theirs, stderr=theirs) as asking:
        os.close(theirs)
        shown = answered(ours, b"passphrase of the new root: ", b"correct horse battery\n")
        shown += answered(ours, b"Repeat for confirmation: ", b"correct horse battery\n")
        assert b"correct horse" not in shown
        assert b"got correct horse battery" in answered(ours, b"battery", b"")
        assert asking.wait(20) == 0
    os.close(ours)


def answered(terminal: int, question: bytes, answer: bytes) -> bytes:
    shown = b""
    while question not in shown:
        shown += os.read(terminal, 4096)
    if answer:
        os.write(terminal, answer)
    return shown


def test_what_holds_no_passphrase_is_told_in_plain_words(tmp_path: Path) -> None:
    (tmp_path / "empty").touch(0o600)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\n")
    (tmp_path / "bytes").chmod(0o600)
    for words, said in (
        (["--passphrase-file", str(tmp_path / "empty")], "empty is empty"),
        (["--passphrase-file", "-"], "descriptor 0 is empty"),
        (["--passphrase-file", str(tmp_path / "bytes")], "not UTF-8"),
        (["--passphrase-file", str(tmp_path)], "Is a directory\n"),
        (["--passphrase-fd", "99"], "Bad file descriptor\n"),
        (["--passphrase-file", str(tmp_path / "none")], "name a file"),
    ):
        result = told(*words)
        assert result.exit_code == 2
        assert said in result.stderr
        assert "Errno" not in result.stderr
