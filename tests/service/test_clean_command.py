"""`clean` never touches the living, and says when there is nothing to do."""

from __future__ import annotations

import contextlib
import os
import pty
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mitmsec.cli import cli
from mitmsec.core.messages import encode
from mitmsec.service import clean_command, control, survivors
from mitmsec.service.control import SERVICE
from mitmsec.service.state import State

pytestmark = pytest.mark.root


def test_an_empty_place_has_nothing_to_clean(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["clean", "--state", str(tmp_path / "none")])
    assert (done.exit_code, "nothing to clean" in done.stderr) == (0, True)
    assert not (tmp_path / "none").exists()


def test_a_living_run_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clean_command, "ENDING_S", 0.1)
    state = State(tmp_path)
    state.make()
    lock = state.hold()
    done = CliRunner().invoke(cli, ["clean", "--state", str(tmp_path), "--purge"])
    os.close(lock)
    assert done.exit_code == 2
    assert f"alive under {tmp_path}: a supervisor that does not answer\n" in done.stderr
    assert state.log.exists()


def answering(state: State, monkeypatch: pytest.MonkeyPatch, *sessions: tuple[str, str, str]) -> Result:
    """`clean`, while a supervisor holds the state and says that these are its sessions."""
    monkeypatch.setattr(clean_command, "ENDING_S", 0.6)
    listener = control.listen(state.control, 0)
    listener.setblocking(True)

    def answers() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                sock.recv(4096)
                sock.send(encode(control.status_answer(77, sessions, ())))
                sock.close()

    thread = threading.Thread(target=answers, daemon=True)
    thread.start()
    lock = state.hold()
    try:
        return CliRunner().invoke(cli, ["clean", "--state", str(state.folder)])
    finally:
        os.close(lock)
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def test_it_says_what_it_waits_for_by_session_program_and_pid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = State(tmp_path / "state")
    state.make()
    (tmp_path / "cgroup.procs").write_text("4711\n4712\n")
    runs = ("ab12", "/bin/\x1bx", str(tmp_path)), ("cd34", "/bin/y", "/no/cgroup"), ("ef56", SERVICE, str(tmp_path))
    done = answering(state, monkeypatch, *runs)
    what = "run ab12 (/bin/\\x1bx, pid 4711, 4712), run cd34 (/bin/y, ending), the service, ef56"
    assert done.exit_code == 2
    waits, fails, remedy = done.stderr.splitlines()
    assert waits == f"mitmsec: waiting, 1 s at most, for the end of {what}"
    assert fails == f"mitmsec: alive under {state.folder}: {what}"
    assert "end it first" in remedy
    assert f"stop --state {state.folder}`" in remedy


def test_a_supervisor_without_runs_is_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = State(tmp_path / "state")
    state.make()
    assert "a supervisor that is ending, pid 77" in answering(state, monkeypatch).stderr


def test_the_roots_of_the_living_stay_until_they_are_to_be_purged(tmp_path: Path) -> None:
    state = State(tmp_path)
    state.make()
    (folder := state.session_folder("abc")).mkdir()
    survivors.note(folder, [os.getpid()])
    kept = CliRunner().invoke(cli, ["clean", "--state", str(tmp_path)])
    assert kept.exit_code == 0
    assert f"folder  abc stays: its roots are those of process {os.getpid()}, alive\n" in kept.stdout
    as_json = CliRunner().invoke(cli, ["clean", "--state", str(tmp_path), "--json"]).stdout.splitlines()
    assert '{"removed":0,"left":[]}' in as_json
    assert folder.exists()
    purged = CliRunner().invoke(cli, ["clean", "--state", str(tmp_path), "--purge"])
    assert "abc removed" in purged.stdout
    assert not folder.exists()


def test_what_was_left_is_named_and_gone(tmp_path: Path) -> None:
    state = State(tmp_path)
    state.make()
    state.session_folder("abc").mkdir()
    done = CliRunner().invoke(cli, ["clean", "--state", str(tmp_path)])
    assert done.exit_code == 0
    assert "abc removed" in done.stdout
    assert not state.session_folder("abc").exists()


def purged(state: State, answer: str, *words: str) -> tuple[int, str]:
    """`clean --purge` on a terminal on which somebody answers: its status, and what stood there."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "mitmsec", "clean", "--state", str(state.folder), "--purge", *words]
    try:
        with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as done:
            os.write(ours, answer.encode())
            _, errors = done.communicate(timeout=30)
        return done.returncode, errors
    finally:
        os.close(ours)
        os.close(theirs)


def test_on_a_terminal_a_purge_asks_first_and_then_leaves_nothing(tmp_path: Path) -> None:
    state = State(tmp_path / "state")
    state.make()
    state.log_file.write_text("evidence")
    status, said = purged(state, "n\n")
    assert (status, state.log_file.read_text()) == (1, "evidence")
    assert f"This removes the audit log {state.log}" in said
    assert "--purge-ca removes the CA alone" in said
    status, said = purged(state, "y\n")
    assert (status, state.folder.exists()) == (0, False)
    state.make()
    assert (purged(state, "", "--yes")[0], state.folder.exists()) == (0, False)


def test_the_ca_alone_can_go(tmp_path: Path) -> None:
    state = State(tmp_path / "state")
    state.make()
    state.log_file.write_text("evidence")
    done = CliRunner().invoke(cli, ["clean", "--state", str(state.folder), "--purge-ca"])
    assert done.exit_code == 0
    assert (state.ca.exists(), state.log_file.read_text()) == (False, "evidence")
