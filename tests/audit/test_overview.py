"""What a log holds as a whole, and page by page; against counting by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from audit_events import connection, finding, indexed, log_of, request
from msgspec.structs import replace

from mitmsec.audit.criteria import Filter
from mitmsec.audit.event import FaultSeen, Kind, Outcome
from mitmsec.audit.overview import Among, Step, after, findings, overview, page
from mitmsec.audit.review import Review, opened
from mitmsec.core.model import Action, Process, Severity

LOW = replace(finding("flow-1"), finding=replace(finding().finding, detector="iban", severity=Severity.LOW))
SEEN = [
    connection("flow-0", outcome=Outcome.OPEN),
    request("flow-0"),
    finding("flow-0"),
    connection("flow-0"),
    LOW,
    connection("flow-1", action=Action.BLOCK, host=None, process=Process(pid=1)),
    FaultSeen(what="stranger"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("overview")
    log_of(made, SEEN)
    return made


@pytest.fixture
def log(folder: Path) -> Iterator[Review]:
    with opened(folder) as made:
        yield made


def at(second: int) -> datetime:
    return datetime(2026, 11, 3, 10, 0, second, tzinfo=UTC)


def test_connections_are_counted_once_when_they_end_and_findings_beside_them(log: Review) -> None:
    found = overview(log, Filter(), timedelta(seconds=2))
    assert found.total == 6
    assert found.steps == (
        Step(start=at(2), counts={"finding": 1, "decrypt": 1}),
        Step(start=at(4), counts={"finding": 1, "block": 1}),
    )
    assert found.by["action"] == (("decrypt", 1), ("block", 1))
    assert found.by["app"] == (("/usr/bin/curl", 5),)
    assert found.by["host"] == (("api.example.com", 5), ("192.0.2.7", 1))
    assert found.by["detector"] == (("keywords", 1), ("iban", 1))
    assert found.by["severity"] == (("high", 1), ("low", 1))
    assert dict(found.by["kind"]) == {"connection": 2, "request": 1, "finding": 2, "fault": 1}


@pytest.mark.parametrize("is_indexed", [False, True])
def test_longer_steps_are_counted_alike_with_an_index_or_without(folder: Path, is_indexed: bool) -> None:
    if is_indexed:
        indexed(folder)
    with opened(folder) as log:
        for wanted in (Filter(), Filter(kind=Kind.FINDING), Filter(action=Action.BLOCK)):
            short, long = overview(log, wanted, timedelta(seconds=2)), overview(log, wanted, timedelta(hours=1))
            assert (short.total, {k: sorted(v) for k, v in short.by.items()}) == (
                long.total,
                {k: sorted(v) for k, v in long.by.items()},
            )
            assert sum((Counter(step.counts) for step in short.steps), Counter()) == Counter(long.steps[0].counts)


def test_steps_without_anything_stand_between_others(log: Review) -> None:
    found = overview(log, Filter(), timedelta(milliseconds=500))
    assert [step.counts for step in found.steps[:3]] == [{"finding": 1}, {}, {"decrypt": 1}]
    assert overview(log, Filter(kind=Kind.CA), timedelta(hours=1)).steps == ()


def test_what_findings_say_narrows_them(log: Review) -> None:
    assert overview(log, Filter(), timedelta(hours=1), Among(severity="low")).total == 1
    assert overview(log, Filter(), timedelta(hours=1), Among(detector="keywords", severity="low")).total == 0
    assert [one["seq"] for one in findings(log, Filter(), None, 9, Among(detector="iban")).events] == [4]


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8])
def test_pages_hold_every_event_once_whatever_their_size(log: Review, limit: int) -> None:
    seqs, before = [], None
    while True:
        found = page(log, Filter(), before, limit)
        assert len(found.events) <= limit
        seqs += [event["seq"] for event in found.events]
        before = found.next_before
        if before is None:
            break
    assert seqs == [6, 5, 4, 3, 2, 1, 0]


def test_how_many_are_newer(log: Review) -> None:
    assert after(log, Filter(), 4, 100) == 2
    assert after(log, Filter(kind=Kind.FINDING), 2, 100) == 1
