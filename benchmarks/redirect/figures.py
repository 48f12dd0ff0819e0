"""What is asked of a redirect, and what callers and the counting origin say, read into figures. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.figures import Check, Metric, Row, ratio
from benchmarks.outputs import Unreadable
from benchmarks.render import shown

DIRECT, EXPLICIT, BARE = "direct", "explicit proxy", "bare relay"
HOOK, WINDIVERT, NFTABLES = "mitmsec connect_hook", "mitmsec windivert", "mitmsec nftables"
TRANSPARENT, LOCAL = "mitmdump transparent", "mitmdump local"
FLOOR = "libebpfdivert alone"
"""Nothing but the library that windivert takes packets with: what bounds it."""
BESIDE = "beside "
"""Bystanders: clients that the backend named after it does not select, while it serves a busy one."""

_CONNECT = (Metric.CONNECT_P50, Metric.CONNECT_P99, Metric.ANSWER_P50, Metric.UDP_CONNECT)


@dataclass(frozen=True, slots=True)
class Arrivals:
    """What the origin saw of one caller: how many connections, of these by themselves, and how many more than once."""

    seen: int
    alone: int
    twice: int


def parse_connect(text: str) -> dict[Metric, float]:
    """What `callers.py connect` printed; raises `Unreadable`."""
    told = _numbers(text)
    try:
        return {metric: told[metric] for metric in _CONNECT}
    except KeyError as missing:
        raise Unreadable(f"no {missing} in {text[:200]!r}") from missing


def parse_loop(text: str) -> int:
    """How many connections `callers.py loop` tried to make; raises `Unreadable`."""
    try:
        return int(_numbers(text)["made"])
    except KeyError as missing:
        raise Unreadable(f"no {missing} in {text[:200]!r}") from missing


def looped(made: int, arrived: Arrivals, beside_made: int, beside: Arrivals) -> dict[Metric, float]:
    """A selected caller's connections and a bystander's, as the origin saw them."""
    return {
        Metric.LOOP_MADE: made,
        Metric.LOOP_LOST: (made - arrived.seen) + (beside_made - beside.seen),
        Metric.LOOP_UNDIVERTED: arrived.alone,
        Metric.LOOP_STRAYED: beside.seen - beside.alone,
    }


def checks(rows: Sequence[Row]) -> tuple[Check, ...]:
    """The thresholds of the issue, each with what this run reached."""
    by_name = {row.variant: row for row in rows}
    explicit, hook, windivert = by_name.get(EXPLICIT), by_name.get(HOOK), by_name.get(WINDIVERT)
    quiet, beside_hook = by_name.get(BESIDE + DIRECT), by_name.get(BESIDE + HOOK)
    beside_windivert, floor = by_name.get(BESIDE + WINDIVERT), by_name.get(FLOOR)
    return (
        Check("bulk, connect_hook ÷ explicit proxy", 0.95, True, _bulk(hook, explicit)),
        Check("new connections/s, connect_hook ÷ explicit proxy", 0.95, True, _connections(hook, explicit)),
        Check(
            _bounded("bulk, windivert ÷ explicit proxy", _bulk(floor, explicit)), 0.5, True, _bulk(windivert, explicit)
        ),
        Check("new connections/s, windivert ÷ explicit proxy", 0.8, True, _connections(windivert, explicit)),
        Check("bulk, unselected beside connect_hook ÷ beside none", 0.97, True, _bulk(beside_hook, quiet)),
        Check("new connections/s, the same", 0.75, True, _connections(beside_hook, quiet)),
        Check("bulk, unselected beside windivert ÷ beside none", 0.97, True, _bulk(beside_windivert, quiet)),
        Check("new connections/s, the same", 0.75, True, _connections(beside_windivert, quiet)),
        Check(_bounded("packets per CPU second, windivert", _packets(floor)), 80_000, True, _packets(windivert)),
        *(_zero(HOOK, hook, what, metric) for what, metric in _LOOP.items()),
        *(_zero(WINDIVERT, windivert, what, metric) for what, metric in _LOOP.items()),
    )


_LOOP: Mapping[str, Metric] = {
    "lost": Metric.LOOP_LOST,
    "undiverted": Metric.LOOP_UNDIVERTED,
    "diverted that should not be": Metric.LOOP_STRAYED,
}


def _zero(backend: str, row: Row | None, what: str, metric: Metric) -> Check:
    made = None if row is None else row.median(Metric.LOOP_MADE)
    name = f"{backend.removeprefix('mitmsec ')}, in a row{'' if made is None else f', {made:,.0f}'}: {what}"
    return Check(name, 0.0, False, None if row is None else row.median(metric))


def _bounded(name: str, floor: float | None) -> str:
    """With what the library alone reached in the same run."""
    return name if floor is None else f"{name} ({FLOOR}: {shown(floor)})"


def _packets(row: Row | None) -> float | None:
    return None if row is None else row.median(Metric.PACKETS)


def _bulk(row: Row | None, base: Row | None) -> float | None:
    return ratio(row, base, Metric.BULK)


def _connections(row: Row | None, base: Row | None) -> float | None:
    return ratio(row, base, Metric.CONNECTIONS)


def _numbers(text: str) -> dict[str, float]:
    try:
        told = json.loads(text)
        return {str(name): float(value) for name, value in told.items()}
    except (ValueError, TypeError, AttributeError) as wrong:
        raise Unreadable(f"the caller printed {text[:200]!r}") from wrong
