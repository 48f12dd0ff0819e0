"""Pages to look at: the overview, lists of events, one connection's whole story, one event and its proof."""

from __future__ import annotations

import base64
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from msgspec.structs import replace
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from mitmsec.audit.console import chart
from mitmsec.audit.console.query import Query
from mitmsec.audit.console.visits import NotFound, Visit
from mitmsec.audit.envelope import Fields, canonical
from mitmsec.audit.event import Kind, Outcome
from mitmsec.audit.merkle import leaf_hash, root_from
from mitmsec.audit.overview import Overview, Page, after, page
from mitmsec.audit.overview import overview as summed
from mitmsec.audit.proving import Unproven
from mitmsec.audit.review import Review
from mitmsec.core.model import Action, Severity, Value

ROWS = 50
NEWER_LIMIT = 200
SPANS = (("1h", "hour"), ("1d", "day"), ("7d", "week"), ("30d", "30 days"))
CHOICES = {"kind": tuple(Kind), "action": tuple(Action), "outcome": tuple(Outcome), "severity": tuple(Severity)}
GRAVEST = (Severity.HIGH, Severity.MEDIUM, Severity.LOW, Severity.INFO)
TITLES = {
    "app": "Applications",
    "host": "Hosts",
    "action": "Actions",
    "kind": "Kinds of events",
    "detector": "Findings by detector",
    "severity": "Findings by severity",
}


class Story(Value, frozen=True):
    """What is on record of one connection, apart by kind, each in the order in which it was recorded."""

    connection: str
    event: Fields | None  # the newest of the connection itself
    process: tuple[Fields, ...]  # the program, then who started it, and so on
    requests: tuple[Fields, ...]
    findings: tuple[Fields, ...]
    faults: tuple[Fields, ...]
    certificates: tuple[Fields, ...]
    others: tuple[Fields, ...]


async def overview(visit: Visit) -> Response:
    """All that is on record, or (as told in the address) some of it."""
    asked = visit.query if visit.asked("since") or visit.asked("until") else _since(visit.query, "7d")
    wanted, among = asked.filter(visit.now), asked.among()
    begin = wanted.since or visit.now - timedelta(days=30)
    step = chart.step_of(begin, wanted.until or visit.now)
    found: Overview = await visit.ground.asked(lambda review: summed(review, wanted, step, among))
    if found.steps and len(found.steps) < 24:  # all within a corner of the chart: look closer
        step = chart.step_of(found.steps[0].start, found.steps[-1].start + step)
        found = await visit.ground.asked(lambda review: summed(review, wanted, step, among))
    found = replace(found, by={**found.by, "severity": tuple(sorted(found.by["severity"], key=_gravest_first))})
    drawn = chart.chart_of(found.steps, step)
    links = [_step_address(asked, column.start, step) for column in drawn.columns]
    return visit.page(
        "overview.html", asked=asked, found=found, chart=drawn, links=links, titles=TITLES, spans=SPANS, choices=CHOICES
    )


def _gravest_first(counted: tuple[str, int]) -> int:
    return GRAVEST.index(counted[0]) if counted[0] in GRAVEST else len(GRAVEST)


def _since(asked: Query, span: str) -> Query:
    return Query(given={**asked.given, "since": span}, wrong=asked.wrong)


def _step_address(asked: Query, start: datetime, step: timedelta) -> str:
    since, until = (at.strftime("%Y-%m-%dT%H:%M:%SZ") for at in (start, start + step))
    return asked.address("/events", since=since, until=until)


async def events(visit: Visit) -> Response:
    """A page of events, the newest first. A search for text goes on record."""
    asked, before = visit.query, visit.number("before")
    wanted, among = asked.filter(visit.now), asked.among()
    found: Page = await visit.ground.asked(lambda review: page(review, wanted, before, ROWS, among))
    if "text" in asked.given:  # after it was searched, else each search would find itself, and before it is shown
        await visit.record_look("searched", asked.given["text"])
    return visit.page("events.html", asked=asked, found=found, before=before, choices=CHOICES, spans=SPANS)


async def newer(visit: Visit) -> Response:
    """How many more there are than the page has, for its banner."""
    asked, seq = visit.query, visit.number("seq") or 0
    wanted = asked.filter(visit.now)
    count = await visit.ground.asked(lambda review: after(review, wanted, seq, NEWER_LIMIT))
    if not count:
        return HTMLResponse("")
    many = f"{count} or more" if count >= NEWER_LIMIT else str(count)
    return visit.page("newer.html", many=many, address=asked.address("/events"))


async def event(visit: Visit) -> Response:
    """One event, every field."""
    number = _number(visit.part("number"))
    found, proven = await visit.ground.asked(partial(_event_and_proof, number=number))
    if found is None:
        raise NotFound(f"The log has no event {number}.")
    await visit.record_look("event_opened", str(found["id"]))
    return visit.page("event.html", event=found, rows=flat(found), proven=proven)


async def proof(visit: Visit) -> Response:
    """That it is in the log, for somebody who has no log (C2SP tlog-proof)."""
    number = _number(visit.part("number"))
    found, proven = await visit.ground.asked(partial(_event_and_proof, number=number))
    if found is None or proven is None:
        raise NotFound("No checkpoint stands for that event yet; one is signed about once a second.")
    path = [base64.b64encode(one).decode() for one in proven["path"]]
    text = "\n".join(["c2sp.org/tlog-proof@v1", f"index {number}", *path, "", proven["note"]])
    name = f"attachment; filename=event-{number}.tlog-proof"
    return PlainTextResponse(text, headers={"content-disposition": name})


def _event_and_proof(review: Review, number: int) -> tuple[Fields | None, dict[str, Any] | None]:
    found = review.event(str(number))
    if found is None or found.get("seq") != number:
        return None, None
    signed = review.proofs.note(number + 1)
    if signed is None:
        return found, None
    note, said = signed
    try:
        path = review.proofs.shown_to_include(number, said, canonical(found))
    except Unproven:
        path = []
    holds = root_from(leaf_hash(canonical(found)), number, said.size, path) == said.root
    return found, {"size": said.size, "origin": said.origin, "path": path, "note": note, "holds": holds}


async def connection(visit: Visit) -> Response:
    """One connection's whole story."""
    name = visit.part("connection")
    recorded: list[Fields] = await visit.ground.asked(lambda review: review.of_connection(name))
    if not recorded:
        raise NotFound("Nothing of such a connection is on record.")
    await visit.record_look("connection_opened", name)
    story = story_of(name, recorded)
    cases = visit.ground.desk.cases(str(one["id"]) for one in story.findings[:ROWS])
    return visit.page("connection.html", story=story, cases=cases, rows=flat(story.event or {}))


def story_of(name: str, recorded: list[Fields]) -> Story:
    """What was recorded of a connection, in its parts."""
    kinds: dict[str, list[Fields]] = {}
    for one in recorded:
        kinds.setdefault(str(one.get("kind")), []).append(one)
    own = kinds.pop(Kind.CONNECTION, [])
    first = (own or recorded)[-1].get("process")
    parts = {
        name: tuple(kinds.pop(kind, []))
        for name, kind in (
            ("requests", Kind.REQUEST),
            ("findings", Kind.FINDING),
            ("faults", Kind.FAULT),
            ("certificates", Kind.CERTIFICATE),
        )
    }
    others = tuple(one for rest in kinds.values() for one in rest)
    event = own[-1] if own else None
    return Story(connection=name, event=event, process=tuple(_ancestry(first)), others=others, **parts)


def _ancestry(process: object) -> list[Fields]:
    """The program, then who started it; at most as many as the log has."""
    found: list[Fields] = []
    while isinstance(process, dict) and len(found) < 16:
        found.append(process)
        process = process.get("parent")
    return found


def flat(value: object, prefix: str = "", depth: int = 0) -> list[tuple[str, object]]:
    """Each field by its path, in order."""
    if isinstance(value, dict) and depth < 8:
        return [
            row
            for key, item in sorted(value.items())
            for row in flat(item, f"{prefix}.{key}" if prefix else str(key), depth + 1)
        ]
    if isinstance(value, list):
        value = ", ".join(str(item) for item in value)
    return [(prefix, value)]


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise NotFound("No event has such a number.")
    return int(text)
