"""`mitmsec audit` as people and scripts use it."""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from audit_events import connection, finding, log_of, request
from click.testing import CliRunner, Result

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


def mitmsec(state: Path, *words: str, columns: int = 160) -> Result:
    return CliRunner().invoke(audit, [*words, "--state", str(state)], env={"COLUMNS": str(columns)})


def lines(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


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


def test_verify_prints_the_head_and_what_it_cannot_exclude(state: Path) -> None:
    result = mitmsec(state, "verify")
    assert result.exit_code == 0
    assert "6 events" in result.stdout
    assert "cannot exclude" in result.stdout
    (told,) = lines(mitmsec(state, "verify", "--json"))
    assert told["verified"] is True
    assert told["cannot_exclude"] == ["truncation", "rewriting"]
    assert f"head: {told['head']}" in result.stdout


def test_verify_against_a_kept_head_finds_a_log_that_was_cut(state: Path) -> None:
    (told,) = lines(mitmsec(state, "verify", "--json"))
    kept = mitmsec(state, "verify", "--head", told["head"])
    assert kept.exit_code == 0
    assert "The first 6 events" in kept.stdout
    tamper(state, "DELETE FROM events WHERE seq = 5")
    assert mitmsec(state, "verify").exit_code == 0
    cut = mitmsec(state, "verify", "--head", told["head"])
    assert cut.exit_code == 1
    assert "NOT the log that the kept head was taken from: it ends after 5 events, and had 6" in cut.stderr
    assert NO_RELIANCE in cut.stderr


NO_RELIANCE = "any of its events may differ from those that the head stands for; nothing in this log can be relied on"


def test_a_head_of_another_log_says_nothing_for_any_event_of_this_one(state: Path, tmp_path: Path) -> None:
    """However alike their sizes: no event is shared, so none is called what was written."""
    other = tmp_path / "other"
    (other / "log").mkdir(parents=True)
    log_of(other / "log", [connection(f"other-{number}") for number in range(9)])
    (told,) = lines(mitmsec(other, "verify", "--json"))
    head_of_5 = _head_of(other, 5)
    for head in (told["head"], head_of_5):
        result = mitmsec(state, "verify", "--head", head)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "this is NOT the log that the kept head was taken from" in result.stderr
        assert NO_RELIANCE in result.stderr
        assert "still what was written" not in result.stderr
        result = mitmsec(state, "verify", "--json", "--head", head)
        assert result.exit_code == 1
        assert json.loads(result.stdout) | {"why": ""} == {
            "verified": False,
            "seq": None,
            "why": "",
            "kept_head": False,
        }


def _head_of(state: Path, size: int) -> str:
    head = hashlib.sha256(b"").digest()
    for line in mitmsec(state, "list", "--json").stdout_bytes.splitlines()[:size]:
        head = hashlib.sha256(b"\x01" + head + hashlib.sha256(b"\x00" + line).digest()).digest()
    return f"{size}:{head.hex()}"


@pytest.mark.parametrize(
    ("size", "says", "kept"),
    [
        (None, "now; what stands before that event is still what was written, as far as the chain shows\n", None),
        (2, "now; the first 2 events are those that the kept head stands for, and what stands before", True),
        (4, "now; the first 4 events are those that the kept head stands for\n", True),
        (6, "now; what stands before that event is still what was written, as far as the chain shows\n", None),
    ],
)
def test_a_broken_chain_says_no_more_of_what_stands_before_than_it_shows(
    state: Path, size: int | None, says: str, kept: bool | None
) -> None:
    head = [] if size is None else ["--head", _head_of(state, size)]
    tamper(state, "UPDATE events SET envelope = replace(envelope, 'bank', 'cafe') WHERE seq = 4")
    result = mitmsec(state, "verify", *head)
    assert result.exit_code == 1
    assert "NOT whole, from event 4 on" in result.stderr
    assert says in result.stderr
    assert json.loads(mitmsec(state, "verify", "--json", *head).stdout)["kept_head"] is kept


def test_where_the_first_event_is_broken_nothing_stands_before(state: Path) -> None:
    tamper(state, "DELETE FROM events WHERE seq = 0")
    assert "nothing stands before that event" in mitmsec(state, "verify").stderr


@pytest.mark.parametrize("columns", [40, 60, 80, 160])
def test_verify_wraps_its_words_and_never_its_head(state: Path, columns: int) -> None:
    told = mitmsec(state, "verify", columns=columns).stdout.splitlines()
    assert [line for line in told if line != line.rstrip()] == []
    (head,) = [line for line in told if line.startswith("head:")]
    assert re.fullmatch(r"head: 6:[0-9a-f]{64}", head)
    assert max(len(line) for line in told if line != head) <= columns


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
    tamper(state, "UPDATE events SET envelope = replace(envelope, 'bank', 'cafe') WHERE seq = 4")
    result = mitmsec(state, "verify")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "NOT whole, from event 4" in result.stderr
    result = mitmsec(state, "verify", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["seq"] == 4


def tamper(state: Path, sql: str) -> None:
    with closing(sqlite3.connect(state / "log" / FILE_NAME, isolation_level=None)) as conn:
        conn.execute(sql)


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


def test_the_lines_of_json_are_what_the_head_stands_for(state: Path) -> None:
    """The recipe in docs/audit.md, for people without mitmsec."""
    head = hashlib.sha256(b"").digest()
    for line in mitmsec(state, "list", "--json").stdout_bytes.splitlines():
        head = hashlib.sha256(b"\x01" + head + hashlib.sha256(b"\x00" + line).digest()).digest()
    assert lines(mitmsec(state, "verify", "--json"))[0]["head"] == f"6:{head.hex()}"


@pytest.mark.parametrize("words", [["list"], ["list", "--json"], ["show", "flow-1"], ["list", "--session", "run-1"]])
def test_a_log_that_was_spoilt_is_no_fault_of_ours(state: Path, words: list[str]) -> None:
    tamper(state, "UPDATE events SET envelope = 'no event' WHERE seq = 4")
    result = mitmsec(state, *words)
    assert result.exit_code == 1
    assert "no longer what was written" in result.stderr
    assert "audit verify" in result.stderr


def test_stats_of_a_log_that_was_spoilt_point_to_verify(state: Path) -> None:
    tamper(state, "UPDATE events SET envelope = 'no event' WHERE seq = 4")
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
