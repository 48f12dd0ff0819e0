"""`clean` never touches the living, and says when there is nothing to do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from mitmsec.cli import cli
from mitmsec.service import clean_command
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
    assert "alive" in done.stderr
    assert state.log.exists()


def test_what_was_left_is_named_and_gone(tmp_path: Path) -> None:
    state = State(tmp_path)
    state.make()
    state.session_folder("abc").mkdir()
    done = CliRunner().invoke(cli, ["clean", "--state", str(tmp_path)])
    assert done.exit_code == 0
    assert "abc removed" in done.stdout
    assert not state.session_folder("abc").exists()
