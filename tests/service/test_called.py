"""Commands to copy are called as this one was."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mitmsec.service import called as calls
from mitmsec.service.state import DEFAULT, State


@pytest.mark.parametrize(
    ("called", "shown"),
    [
        ("here/mit msec", "'here/mit msec'"),
        ("/usr/bin/env", "/usr/bin/env"),
        ("no/such/file", "mitmsec"),
        ("/x/mitmsec/__main__.py", f"{sys.executable} -m mitmsec"),
    ],
)
def test_a_command_to_copy_is_called_as_this_one_was(
    called: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here/mit msec").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [called])
    assert calls.program() == shown


def test_a_state_is_named_where_it_is_not_the_usual_one() -> None:
    assert calls.with_state(State(DEFAULT)) == ""
    assert calls.with_state(State(Path("/a b"))) == " --state '/a b'"


def test_as_root_is_the_whole_line_with_the_state_that_sudo_would_drop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["mitmsec", "run", "a b"])
    monkeypatch.setenv("MITMSEC_STATE", "/s t")
    assert calls.as_root() == "sudo MITMSEC_STATE='/s t' mitmsec run 'a b'"
