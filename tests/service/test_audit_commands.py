"""`mitmsec audit` as people and scripts use it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from audit_cli import lines, mitmsec, tamper
from audit_events import connection, draft, finding, log_of, request, store_in
from click.testing import CliRunner

from mitmsec.audit.event import FaultSeen, Kind, Outcome, ServiceSeen
from mitmsec.audit.store import FILE_NAME
from mitmsec.core.model import Action
from mitmsec.service import log_reading
from mitmsec.service.audit_commands import audit

SEEN = [
    ServiceSeen(operation="run_started", command=("curl", "https://api.example.com")),
    request("flow-0"),
    finding("flow-0"),
    connection("flow-0"),
    connection("flow-1", host="bank.example", action=Action.BLOCK, outcome=Outcome.BLOCKED),
    FaultSeen(what="stranger", detail="127.0.0.1:9", failed="closed"),
]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "log").mkdir()
    log_of(tmp_path / "log", SEEN)
    return tmp_path


def test_json_is_one_event_a_line_and_nothing_else(state: Path) -> None:
    result = mitmsec(state, "list", "--json")
    assert [event["seq"] for event in lines(result)] == [0, 1, 2, 3, 4, 5]
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--kind", "request"], [1]),
        (["--app", "curl", "--kind", "connection"], [3, 4]),
        (["--host", "bank.example"], [4]),
        (["--action", "decrypt"], [3]),
        (["--since", "2026-11-03T10:00:04Z"], [4, 5]),
        (["--until", "2026-11-03T10:00:01Z"], [0]),
        (["--text", "v1/ITEMS"], [1]),
        (["--limit", "2"], [4, 5]),
        (["--outcome", "blocked"], [4]),
        (["--outcome", "cut"], []),
        (["--rule", "defaults"], [3, 4]),
        (["--rule", "def*"], [3, 4]),
        (["--rule", "def"], []),
        (["--session", "run-1", "--kind", "finding"], [2]),
        (["--session", "run"], []),
        (["--kind", "request", "--outcome", "blocked"], []),
        (["--host", "nowhere.example"], []),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_list_takes_filters(state: Path, words: list[str], expected: list[int]) -> None:
    assert [event["seq"] for event in lines(mitmsec(state, "list", "--json", *words))] == expected


@pytest.mark.parametrize("columns", [80, 100, 120, 160])
def test_the_table_fits_the_terminal_and_says_what_happened(state: Path, columns: int) -> None:
    result = mitmsec(state, "list", columns=columns)
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= columns
    assert "\x1b" not in result.stdout
    assert [line for line in result.stdout.splitlines() if line != line.rstrip()] == []
    for word in (
        "4711",
        "defaults",
        "4.5k",
        "decrypt",
        "block",
        "curl",
        "bank.example:443",
        "GET https",
        "keywords",
        "stranger",
        "run_started",
    ):
        assert word in result.stdout


def test_no_match_is_said_on_stderr(state: Path) -> None:
    result = mitmsec(state, "list", "--text", "no such thing")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "no event matches" in result.stderr


def test_a_table_that_was_cut_says_so(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    log_of(tmp_path / "log", [connection(f"flow-{number}") for number in range(101)])
    result = mitmsec(tmp_path, "list")
    assert len(result.stdout.splitlines()) == 101
    assert "--limit" in result.stderr
    assert mitmsec(tmp_path, "list", "--limit", "101").stderr == ""
    assert len(lines(mitmsec(tmp_path, "list", "--json"))) == 101


@pytest.mark.parametrize(
    "words",
    [
        ["list", "--since", "yesterday"],
        ["list", "--kind", "nothing"],
        ["list", "--limit", "0"],
        ["list", "--host", ""],
        ["list", "--app", " "],
        ["verify", "--head", "5:zz"],
        ["verify", "--key", "a+b+c"],
        ["verify", "--checkpoint", "nowhere"],
        ["prove"],
        ["prove", "1", "--since", __file__],
        ["show"],
    ],
)
def test_wrong_usage_is_status_2(state: Path, words: list[str]) -> None:
    result = mitmsec(state, *words)
    assert result.exit_code == 2
    assert result.stdout == ""


@pytest.mark.parametrize("words", [["list"], ["list", "--json"], ["show", "1"], ["verify"], ["stats"]])
def test_without_a_log_it_says_where_it_looked(tmp_path: Path, words: list[str]) -> None:
    result = mitmsec(tmp_path, *words)
    assert (result.exit_code, result.stdout) == (1, "")
    assert str(tmp_path / "log" / FILE_NAME) in result.stderr
    assert "--state" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_show_tells_everything_about_an_event_and_its_connection(state: Path) -> None:
    result = mitmsec(state, "show", "flow-0")
    assert result.exit_code == 0
    for part in ("connection flow-0", "exe: /usr/bin/curl", "sha256: " + "ab" * 32, "on this connection", "GET https"):
        assert part in result.stdout
    assert "on this connection" not in mitmsec(state, "show", "flow-1").stdout
    assert "what: stranger" in mitmsec(state, "show", "5").stdout
    assert lines(mitmsec(state, "show", "--json", "flow-0"))[0]["seq"] == 3


def test_show_of_an_unknown_event_is_status_1(state: Path) -> None:
    result = mitmsec(state, "show", "nobody")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no event nobody" in result.stderr


@pytest.mark.parametrize("gid", [0, 77])
def test_who_may_not_read_is_told_who_may(state: Path, monkeypatch: pytest.MonkeyPatch, gid: int) -> None:
    def denied(path: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    monkeypatch.setattr(log_reading, "readers_gid", lambda: gid)
    monkeypatch.setattr(sys, "argv", ["mitmsec", "audit", "list"])
    result = mitmsec(state, "list")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "root may, and the members of " + ("group mitmsec;" if gid else "a group mitmsec, which") in result.stderr
    assert re.search(r"try: sudo .*mitmsec audit list\n", result.stderr)


def test_verify_names_the_first_event_that_was_changed(state: Path) -> None:
    tamper(state, "UPDATE events SET envelope = edit(envelope, 'bank', 'cafe') WHERE seq = 4")
    result = mitmsec(state, "verify")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "NOT whole, from event 4" in result.stderr
    result = mitmsec(state, "verify", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["seq"] == 4


def test_stats_sum_up_connections(state: Path) -> None:
    rows = lines(mitmsec(state, "stats", "--json"))
    assert [(row["app"], row["action"], row["connections"]) for row in rows] == [
        ("/usr/bin/curl", "block", 1),
        ("/usr/bin/curl", "decrypt", 1),
    ]
    assert "/usr/bin/curl" in mitmsec(state, "stats").stdout


def test_the_state_directory_can_come_from_the_environment(state: Path) -> None:
    result = CliRunner().invoke(audit, ["list", "--json"], env={"MITMSEC_STATE": str(state)})
    assert len(lines(result)) == 6


@pytest.mark.parametrize("words", [["list"], ["list", "--json"], ["show", "flow-1"], ["list", "--session", "run-1"]])
def test_a_log_that_was_spoilt_is_no_fault_of_ours(state: Path, words: list[str]) -> None:
    tamper(state, "UPDATE events SET envelope = pack('no event') WHERE seq = 4")
    result = mitmsec(state, *words)
    assert result.exit_code == 1
    assert "no longer what was written" in result.stderr
    assert "audit verify" in result.stderr


def test_stats_of_a_log_that_was_spoilt_point_to_verify(state: Path) -> None:
    tamper(state, "UPDATE events SET envelope = pack('no event') WHERE seq = 4")
    result = mitmsec(state, "stats")
    assert result.exit_code == 1
    assert "audit verify" in result.stderr


def test_every_kind_and_outcome_is_named_in_help_and_documented() -> None:
    page = (Path(__file__).parents[2] / "docs/audit.md").read_text()
    told = " ".join(CliRunner().invoke(audit, ["list", "--help"]).stdout.split())
    for word in (*Kind, *Outcome):
        assert f"`{word}`" in page
        assert word in told


@pytest.mark.parametrize(("content", "why"), [(b"garbage" * 999, "file is not a database"), (b"", "it is empty")])
def test_a_file_that_is_no_log_is_verified_as_such(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / FILE_NAME).write_bytes(content)
    told = mitmsec(tmp_path, "verify")
    assert (told.exit_code, told.stdout) == (1, "")
    assert f"{FILE_NAME} cannot be read: {why}" in told.stderr
    assert "keep a copy of" in told.stderr
    result = mitmsec(tmp_path, "verify", "--json")
    assert result.exit_code == 1
    as_json = json.loads(result.stdout)
    assert (as_json["verified"], as_json["seq"], as_json["kept_head"]) == (False, None, None)
    assert why in as_json["why"]
    listed = mitmsec(tmp_path, "list")
    assert listed.exit_code == 1
    assert f"audit verify --state {tmp_path}` says" in listed.stderr


# --- what comes, what was before, how many ----------------------------------------------------------------------------
def test_what_comes_is_shown_as_it_comes(state: Path) -> None:
    command = [sys.executable, "-m", "mitmsec", "audit", "list", "--follow", "--limit", "2", "--state", str(state)]
    for as_json in (False, True):
        words = [*command, *(["--json"] if as_json else [])]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "160"})
        assert process.stdout is not None
        first = [process.stdout.readline() for _ in range(2 if as_json else 3)]
        store = store_in(state / "log")
        store.append([draft(connection(f"later-{as_json}", host="later.example"))])
        store.close()
        came = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=30)
        assert (rest, process.returncode) == ("", 0)
        assert "later.example" in came
        if as_json:
            assert [json.loads(line)["seq"] for line in [*first, came]] == [5, 6, 7]
        else:
            assert first[0].split()[:2] == ["#", "time"]
            assert [line.split()[0] for line in [*first[1:], came]] == ["4", "5", "6"]


def test_what_comes_is_in_front_of_nothing(state: Path) -> None:
    assert mitmsec(state, "list", "--follow", "--before", "3").exit_code == 2


def test_older_events_are_a_page_further(state: Path) -> None:
    assert [event["seq"] for event in lines(mitmsec(state, "list", "--before", "4", "--limit", "2", "--json"))] == [
        2,
        3,
    ]


def test_events_are_counted_by_what_is_asked(state: Path) -> None:
    by_kind = {row["kind"]: row["events"] for row in lines(mitmsec(state, "stats", "--by", "kind", "--json"))}
    events = lines(mitmsec(state, "list", "--json"))
    ended = [event for event in events if event.get("outcome") != "open"]
    assert by_kind == Counter(event["kind"] for event in ended)
    told = mitmsec(state, "stats", "--by", "host", "--kind", "connection")
    assert told.stdout.splitlines()[0].split() == ["host", "events"]
    assert told.stderr == f"of {by_kind['connection']} events\n"
    blocked = lines(mitmsec(state, "stats", "--action", "block", "--json"))
    assert blocked in ([], [{"action": "block", "events": sum(event.get("action") == "block" for event in ended)}])
