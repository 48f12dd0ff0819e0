"""Roots that have ended are seen at each start without anything that handles certificates, and taken out elsewhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mitmsec.service import ended_trust
from mitmsec.service.ended_trust import withdraw_ended
from mitmsec.service.state import State


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path)


def note(state: State, text: str) -> None:
    folder = state.trust / "0001"
    folder.mkdir(parents=True)
    (folder / "entry.json").write_text(text)


@pytest.mark.parametrize("text", ['{"root": {"not_after": "2999-01-01T00:00:00Z"}}', "half a no", '{"root": 7}'])
def test_without_one_that_has_ended_no_process_is_started(
    state: State, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", None)
    assert withdraw_ended(state) == []
    note(state, text)
    assert withdraw_ended(state) == []


def test_with_one_a_process_of_its_own_takes_it_out(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, b'[["system (/etc/ssl/certs)", ""]]')

    monkeypatch.setattr(subprocess, "run", run)
    note(state, '{"root": {"not_after": "2020-01-01T00:00:00Z"}, "store": {}}')
    assert withdraw_ended(state) == [("system (/etc/ssl/certs)", "")]
    assert asked == [[sys.executable, "-P", "-m", "mitmsec.service.left_trust", str(state.folder)]]


def test_a_process_that_fails_is_told(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ended_trust, "PROGRAM", "mitmsec.no_such_module")
    note(state, '{"root": {"not_after": "2020-01-01T00:00:00Z"}}')
    ((name, problem),) = withdraw_ended(state)
    assert name == str(state.trust)
    assert problem.startswith("the process that should have done it failed")
