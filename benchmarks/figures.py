"""What is measured, how it is summarised and what it must reach. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Metric(StrEnum):
    """One measured quantity; the unit stands in its name."""

    CONNECTIONS = "new_connections_per_s"
    REQUESTS = "keepalive_requests_per_s"
    H2_REQUESTS = "h2_requests_per_s"
    P50 = "latency_p50_ms"
    P99 = "latency_p99_ms"
    SINGLE = "single_request_ms"
    FIRST = "first_request_ms"
    BULK = "bulk_mb_per_s"
    CPU_CONNECTION = "cpu_ms_per_connection"
    CPU_REQUEST = "cpu_ms_per_request"
    CPU_H2_REQUEST = "cpu_ms_per_h2_request"
    CPU_GB = "cpu_s_per_gb"
    RSS_PEAK = "rss_peak_mib"
    RSS_GROWTH = "rss_growth_mib"
    CONNECT_P50 = "connect_p50_us"
    CONNECT_P99 = "connect_p99_us"
    ANSWER_P50 = "answer_p50_us"
    UDP_CONNECT = "udp_connect_us"
    PACKETS = "packets_per_cpu_s"
    PACKETS_RELAYED = "packets_per_cpu_s_with_relay"
    LOOP_MADE = "loop_connections"
    LOOP_LOST = "loop_lost"
    LOOP_UNDIVERTED = "loop_undiverted"
    LOOP_STRAYED = "loop_strayed"


Sample = Mapping[Metric, float]


@dataclass(frozen=True, slots=True)
class Summary:
    """Median, least and greatest of the rounds that gave a figure."""

    median: float
    least: float
    greatest: float
    rounds: int


@dataclass(frozen=True, slots=True)
class Row:
    """A variant with its summaries; `notes` say what is missing and why, `invalid` why none of it counts."""

    variant: str
    summaries: Mapping[Metric, Summary]
    notes: tuple[str, ...] = ()
    invalid: str | None = None

    def median(self, metric: Metric) -> float | None:
        """The median of the metric, or None where it was not measured or the row does not count."""
        summary = None if self.invalid else self.summaries.get(metric)
        return None if summary is None else summary.median


@dataclass(frozen=True, slots=True)
class Check:
    """A threshold with what was reached; `reached` None: not measured."""

    name: str
    limit: float
    at_least: bool
    reached: float | None

    @property
    def passed(self) -> bool | None:
        """Whether the limit holds; None where nothing was measured."""
        if self.reached is None:
            return None
        return self.reached >= self.limit if self.at_least else self.reached <= self.limit


def summarise(samples: Iterable[Sample]) -> dict[Metric, Summary]:
    """Median and spread of every metric over the rounds that have it."""
    values: dict[Metric, list[float]] = {}
    for sample in samples:
        for metric, value in sample.items():
            values.setdefault(metric, []).append(value)
    return {metric: Summary(statistics.median(of), min(of), max(of), len(of)) for metric, of in values.items()}


def ratio(row: Row | None, base: Row | None, metric: Metric) -> float | None:
    """`row`'s median as a share of `base`'s; None where either is missing or zero."""
    over, under = _median(row, metric), _median(base, metric)
    return None if over is None or not under else over / under


def added(row: Row | None, base: Row | None, metric: Metric) -> float | None:
    """`row`'s median less `base`'s, in the metric's own unit."""
    more, less = _median(row, metric), _median(base, metric)
    return None if more is None or less is None else more - less


def checks(rows: Sequence[Row]) -> tuple[Check, ...]:
    """The thresholds of the product, each with what this run reached."""
    by_name = {row.variant: row for row in rows}
    direct, decrypt, bypass = by_name.get("direct"), by_name.get("mitmsec decrypt"), by_name.get("mitmsec bypass")
    mitmdump = by_name.get("mitmdump transparent")
    return (
        Check("keep-alive requests/s, decrypt ÷ mitmdump", 2.5, True, ratio(decrypt, mitmdump, Metric.REQUESTS)),
        Check("new connections/s, decrypt ÷ mitmdump", 1.8, True, ratio(decrypt, mitmdump, Metric.CONNECTIONS)),
        Check("single request, decrypt, ms more than direct", 1.5, False, added(decrypt, direct, Metric.SINGLE)),
        Check("bulk, bypass ÷ direct", 0.85, True, ratio(bypass, direct, Metric.BULK)),
        Check("bulk, bypass, CPU s/GB", 0.4, False, _median(bypass, Metric.CPU_GB)),
        Check("1 GB streamed, decrypt, RSS growth MiB", 32.0, False, _median(decrypt, Metric.RSS_GROWTH)),
    )


def rotated[T](variants: Sequence[T], round_number: int) -> list[T]:
    """The order of one round: each variant comes first in some round, so that none always finds the machine warm."""
    start = round_number % len(variants) if variants else 0
    return [*variants[start:], *variants[:start]]


def _median(row: Row | None, metric: Metric) -> float | None:
    return None if row is None else row.median(metric)
