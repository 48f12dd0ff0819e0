"""What inspectors cost from end to end: nginx, curl and one worker of `mitmsec run`, and source code as what is read.

    curl, wrk ── gate ── worker, inspecting ── nginx: 100 MB and 1 GB of source code

Beside a download, small requests go through the same worker: what an inspector takes of the loop, they wait.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks import host, install, measure, origin, ours, outputs
from benchmarks.cgroups import own_cgroup
from benchmarks.figures import Metric, Row, ratio
from benchmarks.measure import Figures, Plan
from benchmarks.origin import BULK, HUGE, SIZES_BYTES, SMALL, Origin
from benchmarks.outputs import Unreadable
from benchmarks.session import Session, made, own_folder
from benchmarks.variants import Running

UNREAD = "mitmsec, nothing inspected"
INSPECTORS: Mapping[str, Sequence[str]] = {
    UNREAD: (),
    "mitmsec, `secrets`": ("secrets",),
    "mitmsec, all four": ("secrets", "payment_card", "iban", "national_id"),
}
ROUNDS, WINDOW_S, DOWNLOADS = 5, 5, 100


def streamed(source: bytes) -> Iterator[str]:
    """The table, as lines. Needs root."""
    rows = _rows(source)
    yield "\n| one worker, source code | MB/s | share | small requests beside it, p50 | p99 | memory grows (1 GB) |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        share = ratio(row, rows[0], Metric.BULK)
        cells = (f"{_told(row, Metric.BULK, 0)}", "" if share is None else f"{share:.2f}")
        latencies = f"{_told(row, Metric.P50, 1)} ms | {_told(row, Metric.P99, 1)} ms"
        yield f"| {row.variant} | {' | '.join(cells)} | {latencies} | {_told(row, Metric.RSS_GROWTH, 1)} MiB |"
        yield from (f"\n{row.variant}: {note}" for note in (*row.notes, *([row.invalid] if row.invalid else [])))


def _rows(source: bytes) -> list[Row]:
    install.programs(print)
    session = Session(list(INSPECTORS), lambda said: print(said, flush=True))
    with ExitStack() as stack:
        folder = stack.enter_context(own_folder())
        cgroup = stack.enter_context(own_cgroup())
        host.enter_private_mounts(folder / "hosts")
        origin_fd = host.enter_client_namespace()
        stack.callback(os.close, origin_fd)
        served = stack.enter_context(origin.serving(made(folder / "origin"), origin_fd))
        for name in (BULK, HUGE):
            _filled(folder / "origin" / "www" / name, source, SIZES_BYTES[name])
        for number, (name, inspectors) in enumerate(INSPECTORS.items()):
            place = made(folder / str(number))
            make = partial(ours.inspecting, name, inspectors, place, served.ca_file)
            if running := session.start(name, place, cgroup.child(place.name), make):
                stack.callback(running.close)
        plan = Plan(rounds=ROUNDS, window_s=WINDOW_S, singles=0, huge=True)
        session.measure({"bulk": partial(_planned, measure.bulk, plan), "beside": beside}, ROUNDS)
        session.weigh(plan)
    return session.rows()


def beside(running: Running) -> Figures:
    """Small requests over one connection while another one downloads."""
    url, small = Origin.url(BULK), Origin.url(SMALL)
    curl = shlex.join([running.program("curl"), "--http1.1", "-sS", *(["-o", "/dev/null", url] * DOWNLOADS)])
    wrk = shlex.join([running.program("wrk"), "-t1", "-c1", f"-d{WINDOW_S}s", "--latency", small])
    printed = running.shell.run_script(f"{curl} & sleep 0.5; {wrk}; kill $!", timeout_s=WINDOW_S + 20)
    load = outputs.parse_wrk(printed.stdout)
    if load.p50_ms is None or load.p99_ms is None or load.errors:
        raise Unreadable(f"{load.errors} errors: {printed.stderr.strip()[:200]}")
    return {Metric.P50: load.p50_ms, Metric.P99: load.p99_ms}


def _planned(step: measure.Step, plan: Plan, running: Running) -> Figures:
    return step(running, plan)


def _filled(file: Path, source: bytes, size_bytes: int) -> None:
    with file.open("wb") as writing:
        for _ in range(size_bytes // len(source)):
            writing.write(source)
        writing.write(source[: size_bytes % len(source)])


def _told(row: Row, metric: Metric, digits: int) -> str:
    median = row.median(metric)
    return "" if median is None else f"{median:.{digits}f}"
