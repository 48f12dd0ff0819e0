"""A run's figures as plain text and as Markdown. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.figures import Check, Metric, Row, added, ratio

BEGIN, END = "<!-- benchmark: begin (generated, do not edit) -->", "<!-- benchmark: end -->"
_ABSENT = "–"


@dataclass(frozen=True, slots=True)
class Table:
    """A title, a head and cells, the first column a name and the rest figures."""

    title: str
    head: tuple[str, ...]
    body: tuple[tuple[str, ...], ...]


Shown = Callable[[Sequence[Row]], Sequence[Table]]


def tables(rows: Sequence[Row]) -> tuple[Table, ...]:
    """What a user feels, what it costs, and how far the rounds lie apart."""
    direct = next((row for row in rows if row.variant == "direct"), None)
    return (
        table("What a client gets (× share of direct), medians", _SPEED, rows, direct),
        table("What the proxy uses, medians", _COST, rows, direct),
        table("Least and greatest of the rounds", _SPREAD, rows, direct),
    )


def text(rows: Sequence[Row], checks: Iterable[Check], shown: Shown = tables) -> str:
    """Tables, remarks and thresholds for a terminal of 120 columns."""
    blocks = [_as_text(table) for table in shown(rows)]
    blocks.append("\n".join(["Thresholds", *(f"  {_mark(check)} {_said(check)}" for check in checks)]))
    if remarks := list(_remarks(rows)):
        folded = (textwrap.fill(remark, 116, initial_indent="  ", subsequent_indent="    ") for remark in remarks)
        blocks.append("\n".join(["Remarks", *folded]))
    return "\n\n".join(blocks) + "\n"


def markdown(rows: Sequence[Row], checks: Iterable[Check], machine: str, shown: Shown = tables) -> str:
    """The same for a page."""
    blocks = [machine, *(_as_markdown(table) for table in shown(rows))]
    verdicts = tuple((_said(check), _mark(check)) for check in checks)
    blocks.append(_as_markdown(Table("Thresholds", ("threshold", "reached?"), verdicts)))
    if remarks := [f"- {remark}" for remark in _remarks(rows)]:
        blocks.append("\n".join(["**Remarks**", "", *remarks]))
    return "\n\n".join(blocks)


def placed(page: str, block: str) -> str:
    """The page with the block between its markers; the markers are added at the end where the page has none."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        before, after = page.rstrip() + "\n\n", "\n"
    return f"{before}{BEGIN}\n\n{block}\n\n{END}{after}"


Cell = Callable[[Row, Row | None], str]


def table(title: str, columns: Sequence[tuple[str, Cell]], rows: Sequence[Row], direct: Row | None) -> Table:
    """A row a variant, a column a cell's maker; `direct` is what shares are of."""
    head = ("variant", *(name for name, _ in columns))
    return Table(title, head, tuple((row.variant, *(cell(row, direct) for _, cell in columns)) for row in rows))


def shared(metric: Metric, digits: int) -> Cell:
    """The median, and its share of direct."""

    def cell(row: Row, direct: Row | None) -> str:
        median, share = row.median(metric), ratio(row, direct, metric)
        if median is None:
            return _ABSENT
        return f"{median:,.{digits}f}" + (
            "" if share is None else f" ×{share:.3f}" if share < 0.1 else f" ×{share:.2f}"
        )

    return cell


def plain(metric: Metric, digits: int) -> Cell:
    """The median alone."""

    def cell(row: Row, direct: Row | None) -> str:
        median = row.median(metric)
        return _ABSENT if median is None else f"{median:,.{digits}f}"

    return cell


def _added(metric: Metric) -> Cell:
    def cell(row: Row, direct: Row | None) -> str:
        median, more = row.median(metric), added(row, direct, metric)
        if median is None or more is None:
            return _ABSENT
        return f"{median:.2f}" if row is direct else f"{more:+.2f}"

    return cell


def spread(metric: Metric, digits: int) -> Cell:
    """Least and greatest of the rounds."""

    def cell(row: Row, direct: Row | None) -> str:
        summary = None if row.invalid else row.summaries.get(metric)
        return _ABSENT if summary is None else f"{summary.least:,.{digits}f}–{summary.greatest:,.{digits}f}"

    return cell


_SPEED: tuple[tuple[str, Cell], ...] = (
    ("conn/s", shared(Metric.CONNECTIONS, 0)),
    ("req/s", shared(Metric.REQUESTS, 0)),
    ("h2 req/s", shared(Metric.H2_REQUESTS, 0)),
    ("p50 ms", plain(Metric.P50, 2)),
    ("p99 ms", plain(Metric.P99, 1)),
    ("single ms", _added(Metric.SINGLE)),
    ("first ms", _added(Metric.FIRST)),
    ("bulk MB/s", shared(Metric.BULK, 0)),
)
_COST: tuple[tuple[str, Cell], ...] = (
    ("CPU ms/connection", plain(Metric.CPU_CONNECTION, 2)),
    ("CPU ms/request", plain(Metric.CPU_REQUEST, 3)),
    ("CPU ms/h2 request", plain(Metric.CPU_H2_REQUEST, 3)),
    ("CPU s/GB", plain(Metric.CPU_GB, 2)),
    ("RSS MiB", plain(Metric.RSS_PEAK, 0)),
    ("+1 GB MiB", plain(Metric.RSS_GROWTH, 1)),
)
_SPREAD: tuple[tuple[str, Cell], ...] = (
    ("new conn/s", spread(Metric.CONNECTIONS, 0)),
    ("keep-alive req/s", spread(Metric.REQUESTS, 0)),
    ("HTTP/2 req/s", spread(Metric.H2_REQUESTS, 0)),
    ("single ms", spread(Metric.SINGLE, 2)),
    ("first ms", spread(Metric.FIRST, 1)),
    ("bulk MB/s", spread(Metric.BULK, 0)),
)


def _as_text(table: Table) -> str:
    lines = [table.head, *table.body]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.head))]
    first, *rest = widths
    drawn = [
        line[0].ljust(first) + "".join(f"  {cell.rjust(width)}" for cell, width in zip(line[1:], rest, strict=True))
        for line in lines
    ]
    return "\n".join([table.title, drawn[0], "─" * len(drawn[0]), *drawn[1:]])


def _as_markdown(table: Table) -> str:
    lines = ["| " + " | ".join(line) + " |" for line in (table.head, *table.body)]
    lines.insert(1, "|---" + "|--:" * (len(table.head) - 1) + "|")
    return f"**{table.title}**\n\n" + "\n".join(lines)


def _mark(check: Check) -> str:
    return {True: "yes", False: "NO ", None: "n/a"}[check.passed]


def _said(check: Check) -> str:
    reached = "not measured" if check.reached is None else shown(check.reached)
    return f"{check.name} {'≥' if check.at_least else '≤'} {check.limit:,g}: {reached}"


def shown(figure: float) -> str:
    """A ratio, or a figure of thousands."""
    return f"{figure:.2f}" if figure < 1_000 else f"{figure:,.0f}"


def _remarks(rows: Iterable[Row]) -> Iterable[str]:
    for row in rows:
        if row.invalid:
            yield f"{row.variant}: does not count: {row.invalid}"
        yield from (f"{row.variant}: {note}" for note in row.notes)
