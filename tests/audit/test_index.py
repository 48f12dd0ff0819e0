"""The index's file: all of a chunk or none of it, and begun anew rather than trusted."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from audit_events import connection, draft

from mitmsec.audit import index as module
from mitmsec.audit.envelope import sealed
from mitmsec.audit.index import FILE_NAME, Index
from mitmsec.audit.indexed import hour_of


def events(first: int, number: int) -> list[tuple[int, dict[str, Any]]]:
    return [(seq, sealed(draft(connection(f"flow-{seq}")), seq)[0]) for seq in range(first, first + number)]


def asked(folder: Path, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(folder / FILE_NAME)) as conn:
        return conn.execute(sql).fetchall()


def test_what_was_added_is_there_after_a_restart(tmp_path: Path) -> None:
    index = Index(tmp_path)
    assert (index.size, index.leaf) == (0, b"")
    index.add(events(0, 3), 3, b"leaf 2")
    index.close()
    index.close()
    again = Index(tmp_path)
    assert (again.size, again.leaf) == (3, b"leaf 2")
    again.add(events(3, 2), 5, b"leaf 4")
    again.close()
    assert asked(tmp_path, "SELECT count(*), max(seq), sum(sent) FROM found") == [(5, 4, 600)]
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o640
    assert asked(tmp_path, "SELECT sum(total) FROM counts WHERE level_h = 1 AND facet = ''") == [(5,)]


def test_a_text_has_one_number_whoever_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NAMES_KEPT", 2)
    index = Index(tmp_path)
    index.add(events(0, 5), 5, b"")
    index.close()
    again = Index(tmp_path)
    again.add(events(5, 5), 10, b"")
    again.close()
    assert asked(tmp_path, "SELECT count(*) FROM names WHERE facet = 'app'") == [(1,)]
    assert len(asked(tmp_path, "SELECT DISTINCT app, host, kind FROM found")) == 1


def test_a_chunk_that_fails_leaves_nothing(tmp_path: Path) -> None:
    index = Index(tmp_path)
    index.add(events(0, 2), 2, b"two")

    def failing() -> Any:
        yield from events(2, 2)
        raise ValueError

    with pytest.raises(ValueError):
        index.add(failing(), 4, b"four")
    with pytest.raises(sqlite3.IntegrityError):
        index.add(events(1, 2), 4, b"four")
    assert (index.size, index.leaf) == (2, b"two")
    index.add(events(2, 1), 3, b"three")
    index.close()
    assert asked(tmp_path, "SELECT count(*) FROM found") == [(3,)]


def test_periods_are_counted_when_asked(tmp_path: Path) -> None:
    index = Index(tmp_path)
    index.add(events(0, 3), 3, b"")
    index.close()
    assert asked(tmp_path, "SELECT coarse_size, coarse_until > 0 FROM about") == [(0, 1)]
    assert asked(tmp_path, "SELECT count(*) FROM counts WHERE level_h > 1") == [(0,)]
    again = Index(tmp_path)
    again.add(events(3, 3), 6, b"")
    again.count_coarsely()
    again.add(events(6, 1), 7, b"")
    again.close()
    assert asked(tmp_path, "SELECT level_h, total FROM counts WHERE level_h > 1 AND facet = ''") == [(24, 6), (168, 6)]
    assert asked(tmp_path, "SELECT coarse_size, coarse_until FROM about") == [(6, hour_of("2026-11-03T10"))]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"something else entirely" * 1000),
        lambda path: path.write_bytes(path.read_bytes()[:5000]),
        lambda path: sqlite3.connect(path).executescript("UPDATE about SET version = 99"),
        lambda path: sqlite3.connect(path).executescript("DELETE FROM about"),
        lambda path: sqlite3.connect(path).executescript("ALTER TABLE about DROP COLUMN leaf"),
        lambda path: sqlite3.connect(path).executescript("DROP TABLE about"),
    ],
    ids=["no database", "cut", "of another version", "emptied", "of other columns", "of other tables"],
)
def test_an_index_that_cannot_be_gone_on_with_is_begun_anew(tmp_path: Path, damage: Any) -> None:
    index = Index(tmp_path)
    index.add(events(0, 3), 3, b"x")
    index.close()
    damage(tmp_path / FILE_NAME)
    again = Index(tmp_path)
    assert again.size == 0
    again.add(events(0, 2), 2, b"y")
    again.close()
    assert asked(tmp_path, "SELECT count(*) FROM found") == [(2,)]


def test_an_index_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        Index(tmp_path / "nowhere")


def test_it_is_begun_anew_when_asked(tmp_path: Path) -> None:
    index = Index(tmp_path)
    index.add(events(0, 3), 3, b"x")
    index.begin_anew()
    assert (index.size, index.leaf) == (0, b"")
    index.close()
