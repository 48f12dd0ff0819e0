"""An index that does not say of a log what it should is found, whatever it is that it hides."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from audit_events import appended, indexed

from benchmarks.audit.traffic import Machine
from mitmsec.audit import following
from mitmsec.audit.index import FILE_NAME
from mitmsec.audit.index_check import Compared
from mitmsec.audit.review import opened

EVENTS = 300


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A log whose index has days and weeks for a part, and is behind."""
    monkeypatch.setattr(following, "COARSE_EVERY", 200)
    drafts = list(Machine(3).drafts(EVENTS + 20))
    for begin, end in ((0, 250), (250, EVENTS)):
        appended(tmp_path, drafts[begin:end])
        indexed(tmp_path)
    appended(tmp_path, drafts[EVENTS:])
    return tmp_path


def said(folder: Path) -> Compared | None:
    with opened(folder) as log:
        return log.compared_index()


def test_the_index_that_a_recorder_made_is_what_it_should_be(folder: Path) -> None:
    assert said(folder) == Compared(EVENTS)


HIDDEN = """
PRAGMA writable_schema = 1;
DROP INDEX by_host; CREATE INDEX by_host ON found (host, seq, hour, kind, action, app, detector, severity)
    WHERE host > 0 AND seq <> 7;
UPDATE sqlite_schema SET sql = replace(sql, char(10) || '    WHERE host > 0 AND seq <> 7', ' WHERE host > 0')
    WHERE name = 'by_host';
"""


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("DELETE FROM found WHERE seq = 7", "it is changed: found, seq 7"),
        ("UPDATE found SET kind = kind + 1 WHERE seq = 7", "it is changed: found, seq 7"),
        ("UPDATE found SET kind = CAST(kind AS BLOB) WHERE seq = 7", "it is changed: found, seq 7"),
        ("UPDATE names SET text = 'harmless.' || text WHERE facet = 'host'", "it is changed: found"),
        ("DELETE FROM keys WHERE seq = 7", "it is changed: keys"),
        ("UPDATE counts SET total = total - 1 WHERE level_h = 1", "it is changed: counts"),
        ("UPDATE counts SET total = total - 1 WHERE level_h = 168", "it is changed: counts"),
        ("DELETE FROM hours WHERE hour = (SELECT max(hour) FROM hours)", "it is changed: hours"),
        ("UPDATE hours SET last = last - 1", "it is changed: hours"),
        ("DELETE FROM words_data WHERE id = (SELECT max(id) FROM words_data)", "changed: event|cannot be read"),
        ("INSERT INTO words (rowid, text) VALUES (9, 'nightingale')", "it is changed: event 9 does not say"),
        ("DROP INDEX by_app", "other indexes"),
        ("CREATE TABLE more (a)", "other tables"),
        ("CREATE TRIGGER t AFTER INSERT ON found BEGIN DELETE FROM found WHERE seq = 7; END", "other tables"),
        (HIDDEN, "it contradicts itself|other tables"),
    ],
)
def test_what_is_changed_in_it_is_found(folder: Path, change: str, why: str) -> None:
    with closing(sqlite3.connect(folder / FILE_NAME, isolation_level=None)) as conn:
        conn.executescript(change)
    found = said(folder)
    assert found is not None
    assert found.why
    assert re.search(why, found.why), found.why


def test_an_index_that_nobody_asks_is_not_compared(folder: Path) -> None:
    (folder / FILE_NAME).unlink()
    assert said(folder) is None
