"""What a reviewer asks of the log as a whole: how much, when, of what; and a page of events.

Plain functions over Review: they read every event that a filter meets. Their types are what the console is written
against; where the log keeps sums (rollups), they can be answered from those.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from msgspec.structs import replace

from mitmsec.audit.envelope import Fields, columns_of
from mitmsec.audit.event import Kind
from mitmsec.audit.review import Filter, Review
from mitmsec.core.model import Value

TOP = 8
DIMENSIONS = ("app", "host", "action", "kind", "detector", "severity")
FINDING = "finding"  # beside the actions, what a step counts


class Among(Value, frozen=True):
    """What of findings is asked for; other events have neither."""

    detector: str | None = None
    severity: str | None = None

    def meets(self, event: Fields) -> bool:
        return (self.detector is None or event.get("detector") == self.detector) and (
            self.severity is None or event.get("severity") == self.severity
        )


class Step(Value, frozen=True):
    """A stretch of time, and how many connections ended in it by action, and findings."""

    start: datetime
    counts: dict[str, int]


class Overview(Value, frozen=True):
    """`by` has the top values of each dimension with how often. Connections are counted once they have ended."""

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
    total, steps = 0, Counter[tuple[datetime, str]]()
    by: dict[str, Counter[str]] = {dimension: Counter() for dimension in DIMENSIONS}
    for event in _met(review, replace(wanted, limit=None), among):
        total += 1
        what = _counted(event)
        if what:
            steps[_start(event, step), what] += 1
        for dimension, value in _values(event).items():
            by[dimension][value] += 1
    top = {dimension: tuple(counts.most_common(TOP)) for dimension, counts in by.items()}
    return Overview(total=total, steps=tuple(_filled(steps, step)), by=top)


def page(review: Review, wanted: Filter, before: int | None, limit: int, among: Among = ALL) -> Page:
    """The newest `limit` events that meet `wanted`, of those before event `before`. Raises Unreadable."""
    if before is None and among == ALL:
        found = list(review.events(replace(wanted, limit=limit + 1)))
    else:
        met = _met(review, replace(wanted, limit=None), among)
        found = list(deque((event for event in met if before is None or event["seq"] < before), maxlen=limit + 1))
    more = len(found) > limit
    events = found[::-1][:limit]
    return Page(events=events, next_before=events[-1]["seq"] if more else None)


def after(review: Review, wanted: Filter, seq: int, limit: int) -> int:
    """How many events behind `seq` meet `wanted`, as far as `limit`. Raises Unreadable."""
    newest = review.events(replace(wanted, limit=limit))
    return sum(1 for event in newest if event["seq"] > seq)


def _met(review: Review, wanted: Filter, among: Among) -> Iterator[Fields]:
    return (event for event in review.events(wanted) if among.meets(event))


def _counted(event: Fields) -> str:
    """What a step counts an event as; empty: not at all."""
    if event.get("kind") == Kind.CONNECTION and event.get("id") == event.get("connection"):
        return str(event.get("action"))
    return FINDING if event.get("kind") == Kind.FINDING else ""


def _values(event: Fields) -> dict[str, str]:
    values: dict[str, str] = {"kind": str(event.get("kind"))}
    counted = _counted(event)
    if counted == FINDING:
        values |= {"detector": str(event.get("detector")), "severity": str(event.get("severity"))}
    elif counted:
        app, host = columns_of(event)[4:6]
        values |= {"action": counted, "app": str(app or "unknown"), "host": str(host or "unknown")}
    return values


def _start(event: Fields, step: timedelta) -> datetime:
    at_s = datetime.fromisoformat(event["time"]).timestamp()
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
