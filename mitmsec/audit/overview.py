"""What a reviewer asks of the log as a whole: how much, when, of what; and a page of events.

Steps of an hour or more are answered from what was counted when the log was indexed, shorter ones by walking through
the events.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta

from msgspec.structs import replace

from mitmsec.audit.criteria import Facet, Filter, facets_of
from mitmsec.audit.envelope import Fields
from mitmsec.audit.event import Kind, Outcome
from mitmsec.audit.questions import OVERVIEW
from mitmsec.audit.review import Review
from mitmsec.core.model import Severity, Value

TOP = 8
FINDING = "finding"  # beside the actions, what a step counts
HOUR = timedelta(hours=1)


class Among(Value, frozen=True):
    """What of findings is asked for; other events have neither."""

    detector: str | None = None
    severity: str | None = None

    def meets(self, event: Fields) -> bool:
        return (self.detector is None or event.get("detector") == self.detector) and (
            self.severity is None or event.get("severity") == self.severity
        )

    def of(self, wanted: Filter) -> Filter | None:
        """`wanted`, narrowed by this; None, if nothing can meet it."""
        try:
            severity = wanted.severity if self.severity is None else Severity(self.severity)
        except ValueError:
            return None
        return replace(wanted, detector=self.detector or wanted.detector, severity=severity)


class Step(Value, frozen=True):
    """A stretch of time, and how many connections ended in it by action, and findings."""

    start: datetime
    counts: dict[str, int]


class Overview(Value, frozen=True):
    """`by` has the top values of each facet with how often. Connections are counted once, when they have ended."""

    total: int
    steps: tuple[Step, ...]
    by: dict[str, tuple[tuple[str, int], ...]]


class Page(Value, frozen=True):
    """Events, the newest first; `next_before` asks for those before them, None: there are none."""

    events: list[Fields]
    next_before: int | None


ALL = Among()


def overview(review: Review, wanted: Filter, step: timedelta, among: Among = ALL) -> Overview:
    """Sums over what meets `wanted`, in steps of `step` from the first event to the last. Raises Unreadable."""
    narrowed = among.of(replace(wanted, limit=None))
    if narrowed is None:
        return Overview(total=0, steps=(), by=dict.fromkeys(OVERVIEW, ()))
    if step < HOUR:
        return _walked(review, narrowed, step)
    counted = review.counted(narrowed)
    steps = Counter[tuple[datetime, str]]()
    for (hour, kind, action), number in counted.hours.items():
        if what := _counted(kind, action):
            steps[_start(hour * HOUR.total_seconds(), step), what] += number
    return _made(counted.total, steps, step, {facet: counted.by[facet] for facet in OVERVIEW})


def _walked(review: Review, wanted: Filter, step: timedelta) -> Overview:
    total, steps = 0, Counter[tuple[datetime, str]]()
    by = {facet: Counter[str]() for facet in OVERVIEW}
    for event in review.events(wanted):
        facets = facets_of(event)
        if facets.get("outcome") == Outcome.OPEN:
            continue
        total += 1
        if what := _counted(facets.get("kind", ""), facets.get("action", "")):
            steps[_start(datetime.fromisoformat(event["time"]).timestamp(), step), what] += 1
        for facet in OVERVIEW:
            by[facet].update([facets[facet]] if facet in facets else [])
    return _made(total, steps, step, by)


def _made(
    total: int, steps: Counter[tuple[datetime, str]], step: timedelta, by: Mapping[Facet, Counter[str]]
) -> Overview:
    top = {str(facet): tuple(counts.most_common(TOP)) for facet, counts in by.items()}
    return Overview(total=total, steps=tuple(_filled(steps, step)), by=top)


def page(review: Review, wanted: Filter, before: int | None, limit: int, among: Among = ALL) -> Page:
    """The newest `limit` events that meet `wanted`, of those before event `before`. Raises Unreadable."""
    narrowed = among.of(wanted)
    if narrowed is None:
        return Page(events=[], next_before=None)
    found = list(review.events(replace(narrowed, before=before, limit=limit + 1)))
    more = len(found) > limit
    events = found[::-1][:limit]
    return Page(events=events, next_before=events[-1]["seq"] if more else None)


def after(review: Review, wanted: Filter, seq: int, limit: int) -> int:
    """How many events behind `seq` meet `wanted`, as far as `limit`. Raises Unreadable."""
    return sum(1 for _ in review.events(replace(wanted, after=seq, limit=limit)))


def _counted(kind: str, action: str) -> str:
    """What a step counts such events as; empty: not at all."""
    return action if kind == Kind.CONNECTION else FINDING if kind == Kind.FINDING else ""


def _start(at_s: float, step: timedelta) -> datetime:
    size_s = step.total_seconds()
    return datetime.fromtimestamp(at_s // size_s * size_s, UTC)


def _filled(counts: Counter[tuple[datetime, str]], step: timedelta, limit: int = 1000) -> Iterator[Step]:
    """With those in between where nothing was; the newest `limit`."""
    if not counts:
        return
    starts = sorted({start for start, _ in counts})
    first = max(starts[0], starts[-1] - step * (limit - 1))
    at = first
    by_start: dict[datetime, dict[str, int]] = {}
    for (start, what), count in counts.items():
        by_start.setdefault(start, {})[what] = count
    while at <= starts[-1]:
        yield Step(start=at, counts=by_start.get(at, {}))
        at += step


def findings(review: Review, wanted: Filter, before: int | None, limit: int, among: Among = ALL) -> Page:
    """As `page`, of findings alone."""
    return page(review, replace(wanted, kind=Kind.FINDING), before, limit, among)
