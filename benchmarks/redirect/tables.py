"""The figures of a run as tables. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.figures import Metric, Row
from benchmarks.redirect.figures import BESIDE, DIRECT
from benchmarks.render import Cell, Table, plain, shared, spread, table

_LED: tuple[tuple[str, Cell], ...] = (
    ("bulk MB/s", shared(Metric.BULK, 0)),
    ("conn/s", shared(Metric.CONNECTIONS, 0)),
    ("connect p50 µs", plain(Metric.CONNECT_P50, 0)),
    ("p99 µs", plain(Metric.CONNECT_P99, 0)),
    ("first byte µs", plain(Metric.ANSWER_P50, 0)),
    ("UDP µs", plain(Metric.UDP_CONNECT, 2)),
    ("CPU s/GB", plain(Metric.CPU_GB, 2)),
    ("CPU ms/conn", plain(Metric.CPU_CONNECTION, 2)),
)
_NOT_LED: tuple[tuple[str, Cell], ...] = (
    ("bulk MB/s", shared(Metric.BULK, 0)),
    ("conn/s", shared(Metric.CONNECTIONS, 0)),
    ("connect p50 µs", plain(Metric.CONNECT_P50, 0)),
    ("p99 µs", plain(Metric.CONNECT_P99, 0)),
    ("UDP µs", plain(Metric.UDP_CONNECT, 2)),
)
_PACKETS: tuple[tuple[str, Cell], ...] = (
    ("of who takes them", plain(Metric.PACKETS, 0)),
    ("of all, the relay included", plain(Metric.PACKETS_RELAYED, 0)),
    ("least–greatest, of who takes them", spread(Metric.PACKETS, 0)),
)
_IN_A_ROW: tuple[tuple[str, Cell], ...] = (
    ("connections", plain(Metric.LOOP_MADE, 0)),
    ("lost", plain(Metric.LOOP_LOST, 0)),
    ("undiverted", plain(Metric.LOOP_UNDIVERTED, 0)),
    ("diverted that should not be", plain(Metric.LOOP_STRAYED, 0)),
)
_SPREAD: tuple[tuple[str, Cell], ...] = (
    ("bulk MB/s", spread(Metric.BULK, 0)),
    ("conn/s", spread(Metric.CONNECTIONS, 0)),
    ("connect p50 µs", spread(Metric.CONNECT_P50, 0)),
    ("p99 µs", spread(Metric.CONNECT_P99, 0)),
    ("UDP µs", spread(Metric.UDP_CONNECT, 2)),
)


def tables(rows: Sequence[Row]) -> tuple[Table, ...]:
    """Who is led, who is not, what a packet costs, what came through in a row, and how far the rounds lie apart."""
    by_name = {row.variant: row for row in rows}
    led = [row for row in rows if not row.variant.startswith(BESIDE)]
    beside = [row for row in rows if row.variant.startswith(BESIDE) and row.summaries]
    packets = [row for row in led if row.median(Metric.PACKETS) is not None]
    in_a_row = [row for row in led if row.median(Metric.LOOP_MADE) is not None]
    return (
        table("Clients that are led (× share of direct), medians", _LED, led, by_name.get(DIRECT)),
        table(
            "Clients that are not, beside a busy one that is (× share of beside direct), medians",
            _NOT_LED,
            beside,
            by_name.get(BESIDE + DIRECT),
        ),
        table("Packets for each CPU second, where TCP divides by itself, medians", _PACKETS, packets, None),
        table("Connections in a row, as the origin saw them", _IN_A_ROW, in_a_row, None),
        table("Least and greatest of the rounds", _SPREAD, [row for row in rows if row.summaries], None),
    )
