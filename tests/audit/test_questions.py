"""Whatever is asked of the index, the answer is that of looking through all events: with it, without it, or behind."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from audit_events import appended, connection, draft, indexed

from benchmarks.audit.traffic import BEGINS, SPAN, Machine
from mitmsec.audit import following, questions
from mitmsec.audit.criteria import Filter
from mitmsec.audit.event import Kind, Outcome
from mitmsec.audit.index import FILE_NAME
from mitmsec.audit.questions import Counted, Questions
from mitmsec.audit.review import Review, opened
from mitmsec.core.model import Action, Severity

EVENTS, BEHIND = 800, 60


@pytest.fixture(scope="module", params=["few are rare", "all are rare"])
def folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A month of a busy machine, indexed but for the newest; counted coarsely for most of it."""
    made = tmp_path_factory.mktemp("log")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(following, "COARSE_EVERY", 500)
        patch.setattr(questions, "RARE", 20 if request.param == "few are rare" else 100_000)
        patch.setattr(questions, "COMMON", 20)
        patch.setattr(questions, "AT_ONCE", 100)
        patch.setattr(questions, "NAMED", 5000)
        drafts = list(Machine(3).drafts(EVENTS))
        appended(made, drafts[: EVENTS // 2])
        indexed(made)
        living = draft(connection("flow-1", outcome=Outcome.OPEN), drafts[-1].time)
        appended(made, [*drafts[EVENTS // 2 :], living])
        indexed(made)
        appended(made, [*list(Machine(4).drafts(BEHIND)), living])
        yield made


def without_index(folder: Path) -> Any:
    """The log, as if nothing had been indexed."""

    class _Bare:
        def __enter__(self) -> Review:
            self._log = opened(folder)
            log = self._log.__enter__()
            assert log.indexed_size == EVENTS + 1
            return Review(folder, log._conn, None)

        def __exit__(self, *error: Any) -> None:
            self._log.__exit__(*error)

    return _Bare()


def filters(folder: Path, number: int) -> Iterator[Filter]:
    """Filters of one criterion up to all, of values that are there and of some that are not."""
    draw = random.Random(11)
    with without_index(folder) as log:
        events = list(log.events(Filter()))
    for _ in range(number):
        event = draw.choice(events)
        process, remote = event.get("process") or {}, event.get("remote") or {}
        since = BEGINS + draw.random() * SPAN
        host = remote.get("host") or event.get("host") or "nowhere.example"
        all_criteria: dict[str, Any] = {
            "kind": Kind(event["kind"]),
            "app": draw.choice([process.get("exe") or "no such", "BIN", "/usr/*", "zzz"]),
            "host": draw.choice([host, "example.com", f"*{host[3:]}", remote.get("address") or "192.0.2.1"]),
            "action": draw.choice(list(Action)),
            "outcome": draw.choice([Outcome.COMPLETED, Outcome.BLOCKED, Outcome.OPEN]),
            "rule": draw.choice(["defaults", "*s*", "none"]),
            "user": process.get("user"),
            "session": event.get("session"),
            "detector": draw.choice(["iban", "secrets", "none"]),
            "severity": draw.choice(list(Severity)),
            "since": since,
            "until": since + draw.random() * timedelta(days=9),
            "text": draw.choice([host, "nightingale", "push/1", "com", "4", "a/b", "API.", "not said", "%", "ü"]),
            "after": draw.randint(-1, EVENTS),
            "before": draw.randint(0, EVENTS + 200),
            "limit": draw.choice([1, 7, 5000]),
        }
        chosen = draw.sample(list(all_criteria), draw.choice([1, 1, 2, 3, 5]))
        yield Filter(**{name: all_criteria[name] for name in chosen})


def test_what_is_found_is_what_looking_through_all_finds(folder: Path) -> None:
    found = 0
    with opened(folder) as log, without_index(folder) as bare:
        for wanted in filters(folder, 100):
            expected = [event["seq"] for event in bare.events(wanted)]
            assert [event["seq"] for event in log.events(wanted)] == expected, wanted
            found += bool(expected)
    assert found > 30


def test_what_is_counted_is_what_looking_through_all_counts(folder: Path) -> None:
    with opened(folder) as log, without_index(folder) as bare:
        for wanted in filters(folder, 60):
            hourly = _of_whole_hours(wanted)
            assert _plain(log.counted(hourly)) == _plain(bare.counted(hourly)), hourly
        assert log.counted(Filter()).total == EVENTS + BEHIND
        assert log.stats() == bare.stats()


def test_of_a_text_what_says_it_is_counted(folder: Path) -> None:
    with opened(folder) as log, without_index(folder) as bare:
        for text in ("nightingale", "größe", "completed", "project keyword"):
            assert _plain(log.counted(Filter(text=text))) == _plain(bare.counted(Filter(text=text)))


def _of_whole_hours(wanted: Filter) -> Filter:
    def whole(at: datetime | None, *, last: bool) -> datetime | None:
        return at and at.replace(minute=59 if last else 0, second=59 if last else 0, microsecond=999_999 if last else 0)

    from msgspec.structs import replace

    return replace(wanted, since=whole(wanted.since, last=False), until=whole(wanted.until, last=True), limit=None)


def _plain(counted: Counted) -> tuple[Any, ...]:
    return counted.total, {facet: dict(of) for facet, of in counted.by.items()}, dict(counted.hours)


def test_an_event_is_found_by_its_id_and_its_connections(folder: Path) -> None:
    with opened(folder) as log, without_index(folder) as bare:
        for seq in (5, 700, EVENTS, EVENTS + 50):
            event = bare.event(str(seq))
            assert event is not None
            assert log.event(event["id"]) == bare.event(event["id"])
            about = event.get("connection", "none")
            assert log.of_connection(about) == bare.of_connection(about)
        assert log.event("none") is None


def test_of_each_facet_the_most_frequent_values_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "NAMED", 3)
    with closing(Questions(folder)) as asks:
        counted = asks.counted(Filter())
    assert all(len(values) <= 3 for values in counted.by.values())
    assert counted.total == EVENTS


def test_an_index_of_nothing_has_no_answers(tmp_path: Path) -> None:
    appended(tmp_path, [])
    indexed(tmp_path)
    with closing(Questions(tmp_path)) as asks:
        assert list(asks.seqs(Filter(kind=Kind.FAULT), newest_first=True)) == []
        assert asks.counted(Filter()).total == 0
        assert asks.volumes() == {}


def test_an_index_of_another_version_is_not_asked(folder: Path, tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes((folder / FILE_NAME).read_bytes())
    with closing(sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)) as conn:
        conn.execute("UPDATE about SET version = 99")
    with pytest.raises(sqlite3.DatabaseError, match="another version"):
        Questions(tmp_path)


def test_hours_are_told_since_1970(folder: Path) -> None:
    with opened(folder) as log:
        hours = [hour for hour, _, _ in log.counted(Filter()).hours]
    assert datetime.fromtimestamp(min(hours) * 3600, UTC) == BEGINS
