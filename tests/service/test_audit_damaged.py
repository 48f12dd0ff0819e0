"""A log with damaged pages: what is sound is shown, and what is not is named."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from audit_cli import mitmsec
from audit_events import connection, log_of

EVENTS = 60


@pytest.fixture
def pages(tmp_path: Path) -> dict[str, list[int]]:
    """Of a log's tables, the numbers of their leaves, in order."""
    (tmp_path / "log").mkdir()
    path = log_of(tmp_path / "log", [connection(f"flow-{number}-{'x' * 2000}"[:200]) for number in range(EVENTS)] * 4)
    with closing(sqlite3.connect(path)) as conn:
        root = dict(conn.execute("SELECT name, rootpage FROM sqlite_schema WHERE type = 'table'"))
        (size,) = conn.execute("PRAGMA page_size").fetchone()
    data = path.read_bytes()
    at = (root["events"] - 1) * size
    assert data[at] == 5, "an interior page: its children are leaves"
    cells = int.from_bytes(data[at + 3 : at + 5])
    pointers = [int.from_bytes(data[at + 12 + 2 * n : at + 14 + 2 * n]) for n in range(cells)]
    leaves = [int.from_bytes(data[at + pointer :][:4]) for pointer in pointers]
    return {"events": [*leaves, int.from_bytes(data[at + 8 : at + 12])], "root": [root["events"]], "size": [size]}


def damaged(state: Path, page: int, size: int) -> None:
    with (state / "log" / "audit.db").open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)


@pytest.mark.parametrize("place", [0, 1, -1])
def test_a_damaged_page_takes_its_own_events_and_no_others(
    tmp_path: Path, pages: dict[str, list[int]], place: int
) -> None:
    damaged(tmp_path, pages["events"][place], pages["size"][0])
    result = mitmsec(tmp_path, "list", "--json")
    shown = [json.loads(line)["seq"] for line in result.stdout.splitlines()]
    assert result.exit_code == 1
    assert shown == sorted(shown)
    missing = sorted(set(range(4 * EVENTS)) - set(shown))
    assert 0 < len(missing) < 2 * EVENTS
    assert missing == list(range(missing[0], missing[-1] + 1))
    assert f"not shown: events {missing[0]}-{missing[-1]}" in result.stderr
    assert mitmsec(tmp_path, "list", "--limit", "240").stderr == result.stderr
    assert f"not shown: event {missing[0]}\n" in mitmsec(tmp_path, "show", str(missing[0])).stderr
    assert mitmsec(tmp_path, "show", "--json", str(shown[0])).exit_code == 0


def test_where_the_root_of_the_events_is_damaged_all_of_them_are_named(
    tmp_path: Path, pages: dict[str, list[int]]
) -> None:
    damaged(tmp_path, pages["root"][0], pages["size"][0])
    result = mitmsec(tmp_path, "list")
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"not shown: events 0-{4 * EVENTS - 1}" in result.stderr
