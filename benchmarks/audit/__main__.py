"""`python -m benchmarks.audit`: build a log, ask it what reviewers ask, and say what it took.

    paced     1,000 events/s to a real recorder: what a producer and an acknowledgement wait; then as many as it takes
    build     events appended in batches as a recorder does, indexed behind; events/s and bytes an event
    ask       every question of the console, warm and first; proofs

A log that is there already (--folder) is asked only.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import batched
from pathlib import Path

from benchmarks.audit.paced import flooded, paced
from benchmarks.audit.traffic import BEGINS, Machine
from mitmsec.audit import review
from mitmsec.audit.criteria import Filter
from mitmsec.audit.event import Kind
from mitmsec.audit.following import Following
from mitmsec.audit.index import FILE_NAME as INDEX
from mitmsec.audit.review import Review
from mitmsec.audit.store import FILE_NAME as LOG
from mitmsec.audit.store import Store
from mitmsec.core.model import Action, Severity
from mitmsec.seal import LogSigner

BATCH = 256
SIGN_EVERY = 10_000  # events: what a second has
ROUNDS = 20


def built(folder: Path, events: int) -> None:
    """Appends, with everything that a recorder does for it; drawing the events is not counted."""
    following = Following(folder)
    store = Store(folder, LogSigner("mitmsec.log/benchmark", bytes(32)))
    drafts, waited_s, began_s = Machine().drafts(events), 0.0, time.monotonic()
    for number, batch in enumerate(batched(drafts, BATCH)):
        at_s = time.monotonic()
        store.append(batch, signs=number % (SIGN_EVERY // BATCH) == 0)
        waited_s += time.monotonic() - at_s
        following.wake()
    took_s = time.monotonic() - began_s
    while _indexed(folder) < events:
        time.sleep(0.1)
    behind_s = time.monotonic() - began_s - took_s
    following.close()
    store.close()
    size_bytes = {name: (folder / name).stat().st_size for name in (LOG, INDEX)}
    print(f"appended {events:,}: {events / waited_s:,.0f}/s of appending; with its index {behind_s:.1f} s later")
    print(f"all in all {events / (took_s + behind_s):,.0f}/s, drawing the events included")
    print("bytes an event: " + ", ".join(f"{name} {size / events:.0f}" for name, size in size_bytes.items()))
    print(f"together {sum(size_bytes.values()) / events:.0f}")


def _indexed(folder: Path) -> int:
    with review.opened(folder) as log:
        return log.indexed_size


def questions(log: Review, draw: random.Random) -> Iterator[tuple[str, Callable[[], object]]]:
    """What the console asks, each with other values every time."""
    newest = list(log.events(Filter(limit=2000)))
    some = draw.choice([event for event in newest if event["kind"] == "connection"])
    host, app, user = some["remote"]["host"], some["process"]["exe"], some["process"]["user"]
    day = BEGINS + timedelta(days=draw.randint(0, 28))
    within = {"since": day, "until": day + timedelta(days=1)}
    size = log.size()

    def listed(**criteria: object) -> Callable[[], object]:
        return lambda: list(log.events(Filter(limit=100, **criteria)))  # type: ignore[arg-type]

    def counted(**criteria: object) -> Callable[[], object]:
        return lambda: log.counted(Filter(**criteria))  # type: ignore[arg-type]

    yield "first page: newest 100", listed()
    yield "a page in the middle", listed(before=draw.randint(1, size))
    yield "host, one day", listed(host=host, **within)
    yield "app, one day", listed(app=app, **within)
    yield "user, thirty days", listed(user=user)
    yield "host and app", listed(host=host, app=app)
    yield "blocked, one day", listed(action=Action.BLOCK, **within)
    yield "findings, newest", listed(kind=Kind.FINDING)
    yield "findings, high, one day", listed(kind=Kind.FINDING, severity=Severity.HIGH, **within)
    yield "faults", listed(kind=Kind.FAULT)
    yield "text: a host", listed(text=host)
    yield "text: a finding", listed(text="nightingale")
    yield "text: part of a URL", listed(text=f"/{draw.choice(['push', 'media'])}/{draw.randint(1, 9)}")
    yield "text: that nothing says", listed(text="nothing says this")
    yield "one event by id", lambda: log.event(some["id"])
    yield "one connection's story", lambda: log.of_connection(some["connection"])
    yield "overview, all", counted()
    yield "overview, one day", counted(**within)
    yield "overview, findings", counted(kind=Kind.FINDING)
    yield "overview, blocked", counted(action=Action.BLOCK)
    yield "overview, one host", counted(host=host)
    yield "overview, one app", counted(app=app)
    yield "overview, one app, one day", counted(app=app, **within)
    yield "overview, one detector", counted(detector="iban")
    yield "stats", log.stats
    yield "proof: inclusion", lambda: log.shown_to_include(draw.randint(0, size - 1), size)
    yield "proof: consistency", lambda: log.shown_to_begin_with(draw.randint(1, size), size)


def waited(folder: Path) -> None:
    """What producers wait for."""
    one = paced(folder / "paced")
    print(f"at {one.rate}/s, ms p50/p99: put {one.put_ms[0]:.3f}/{one.put_ms[1]:.3f}, acknowledged", end=" ")
    print(f"{one.acknowledged_ms[0]:.0f}/{one.acknowledged_ms[1]:.0f}")
    print(f"as fast as it takes them: {flooded(folder / 'flooded'):,.0f}/s")


def asked(folder: Path) -> None:
    """Each question ROUNDS times, in turns."""
    took_s: dict[str, list[float]] = {}
    draw = random.Random(5)
    with review.opened(folder) as log:
        for _ in range(ROUNDS):
            for what, question in questions(log, draw):
                at_s = time.perf_counter()
                question()
                took_s.setdefault(what, []).append((time.perf_counter() - at_s) * 1000)
    print(f"{'ms':32} {'median':>8} {'p95':>8} {'first':>8}")
    for what, all_ms in took_s.items():
        ordered = sorted(all_ms)
        p95 = ordered[int(len(ordered) * 0.95) - 1]
        print(f"{what:32} {statistics.median(all_ms):8.1f} {p95:8.1f} {all_ms[0]:8.1f}")


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.audit", description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="of a log to ask; one that is not there is built and kept")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="mitmsec-audit-"))
    try:
        if not (folder / LOG).exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix="mitmsec-audit-") as aside:
                waited(Path(aside))
            built(folder, options.events)
        asked(folder)
    finally:
        if options.folder is None:
            shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
