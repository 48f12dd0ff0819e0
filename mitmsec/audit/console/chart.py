"""Where the bars of a timeline stand: geometry for an SVG that the server writes. Pure.

Bars are stacked by what is counted, in one order always; each column has its numbers in words, for who hears the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from mitmsec.audit.overview import Step
from mitmsec.core.model import Value

STACK = ("block", "decrypt", "capture", "bypass")  # from the bottom up
WIDTH, HEIGHT, TOP, BOTTOM = 960, 148, 4, 14
COLUMNS_WANTED = 80
SPANS = tuple(
    timedelta(seconds=seconds)
    for seconds in (1, 5, 15, 60, 300, 900, 3600, 3 * 3600, 6 * 3600, 86400, 7 * 86400, 30 * 86400)
)


class Bar(Value, frozen=True):
    what: str
    x: float
    y: float
    width: float
    height: float


class Column(Value, frozen=True):
    """One step: its bars, and where its mark for findings is (None: it has none)."""

    start: datetime
    x: float
    width: float
    bars: tuple[Bar, ...]
    said: str
    finding_x: float | None = None


class Chart(Value, frozen=True):
    columns: tuple[Column, ...]
    most: int  # connections in one step: the height of the chart
    step: timedelta
    width: int = WIDTH
    height: int = HEIGHT
    baseline: int = HEIGHT - BOTTOM
    top: int = TOP


def step_of(first: datetime, last: datetime) -> timedelta:
    """How long a step is, for a chart of that time to have about COLUMNS_WANTED columns."""
    wanted = (last - first) / COLUMNS_WANTED
    return next((span for span in SPANS if span >= wanted), SPANS[-1])


def chart_of(steps: Sequence[Step], step: timedelta) -> Chart:
    """Of these steps, as wide as the page."""
    most = max((sum(one.counts.get(what, 0) for what in STACK) for one in steps), default=0)
    width = WIDTH / max(len(steps), 1)
    columns = tuple(_column(one, index * width, width, max(most, 1)) for index, one in enumerate(steps))
    return Chart(columns=columns, most=most, step=step)


def _column(one: Step, x: float, width: float, most: int) -> Column:
    baseline = HEIGHT - BOTTOM
    scale = (baseline - TOP) / most
    y, bars = float(baseline), []
    gap = min(2.0, width / 5)
    thick = min(width - gap, 48.0)  # few steps make no walls
    for what in STACK:
        if count := one.counts.get(what, 0):
            height = max(count * scale, 1.5)
            y -= height
            bars.append(Bar(what=what, x=round(x, 2), y=round(y, 2), width=round(thick, 2), height=round(height, 2)))
    findings = one.counts.get("finding", 0)
    said = ", ".join(f"{count} {what}" for what, count in sorted(one.counts.items()) if count) or "nothing"
    mark = round(x + thick / 2, 2) if findings else None
    return Column(start=one.start, x=round(x, 2), width=round(width, 2), bars=tuple(bars), said=said, finding_x=mark)
