"""`mitmsec apps` as people and scripts use it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from audit_events import connection, log_of, request
from click.testing import CliRunner, Result

from mitmsec.audit.event import Outcome
from mitmsec.cli import cli
from mitmsec.core.model import Action

SEEN = [
    request("flow-0"),
    connection("flow-0"),
    connection("flow-1"),
    connection("flow-2", host="bank.example", action=Action.BLOCK, outcome=Outcome.BLOCKED),
]
ALWAYS = ("--since", "5200w")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "log").mkdir()
    log_of(tmp_path / "log", SEEN)
    return tmp_path


def apps(state: Path, *words: str) -> Result:
    return CliRunner().invoke(cli, ["apps", *words, "--state", str(state)], env={"COLUMNS": "120"})


def test_a_program_stands_above_what_it_has_connected_to(state: Path) -> None:
    heading, first, second = apps(state, *ALWAYS).stdout.splitlines()
    assert heading.startswith("/usr/bin/curl  pid ")
    assert "by connect_hook" in heading
    assert "× 2" in first
    assert second.split()[:4] == ["→", "bank.example:443", "block", "blocked"]


def test_as_json_each_process_is_one_object(state: Path) -> None:
    (line,) = apps(state, *ALWAYS, "--json").stdout.splitlines()
    found = json.loads(line)
    assert found["process"]["exe"] == "/usr/bin/curl"
    assert [one["count"] for one in found["connections"]] == [2, 1]


def test_who_is_not_meant_is_not_told(state: Path) -> None:
    assert apps(state, *ALWAYS, "--app", "firefox", "--json").stdout == ""
    assert "--since looks further back" in apps(state, *ALWAYS, "--app", "firefox").stdout


@pytest.mark.parametrize("words", [["--watch"], ["--watch", "--json"]])
def test_watching_is_for_terminals(state: Path, words: list[str]) -> None:
    result = apps(state, *words)
    assert result.exit_code == 2
    assert "--watch is for a terminal" in result.stderr


def test_where_there_is_no_log_that_is_told(tmp_path: Path) -> None:
    assert apps(tmp_path).exit_code == 1
