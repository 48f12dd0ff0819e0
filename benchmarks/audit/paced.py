"""What producers wait for: events sent to a real recorder at an even rate, and as fast as it takes them.

producer ── record ──► channel ──► recorder process ──► disk ──► Committed
   └─ how long that call takes     └─ how long until it is acknowledged
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path

from benchmarks.audit.traffic import BEGINS, Machine
from mitmsec.audit.event import ConnectionSeen, Seen
from mitmsec.audit.producer import Producer
from mitmsec.channel import Channel, pair
from mitmsec.core.messages import Fault, ProducerUp, Ready, RecorderSettings, Role, SessionFlushed
from mitmsec.core.model import Value

KINDS = 500  # different connections that are sent in turns


class Paced(Value, frozen=True):
    """Of one rate: milliseconds at these shares of all events."""

    rate: int
    put_ms: tuple[float, float]  # p50, p99
    acknowledged_ms: tuple[float, float]


@contextlib.asynccontextmanager
async def _gate(folder: Path) -> AsyncIterator[Producer]:
    """A gate's line to a recorder that has begun."""
    ours, theirs = pair()
    command = [sys.executable, "-m", "mitmsec.service", "recorder", str(theirs.fileno())]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
    theirs.close()
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    control = Channel(ours, [Ready, Fault, SessionFlushed])
    control.attach(loop, lambda message, fds: ready.set(), lambda: None)
    control.send(RecorderSettings(folder=str(folder), quarantine=""))
    await ready.wait()
    mine, its = pair()
    control.send(ProducerUp(role=Role.GATE, session="run-1", worker=-1), its.fileno())
    its.close()
    producer = Producer(mine, loop, limit=16_384, limit_bytes=32 << 20)
    try:
        yield producer
    finally:
        producer.close()
        control.close()
        await asyncio.to_thread(process.wait)


def _events() -> list[Seen]:
    machine = Machine()
    return [machine.connection(BEGINS) for _ in range(KINDS)]


async def _at_rate(folder: Path, rate: int, span_s: float) -> Paced:
    folder.mkdir()
    events, put_s, acknowledged_s = _events(), list[float](), list[float]()
    async with _gate(folder) as producer:
        sent: deque[float] = deque()

        async def looking() -> None:
            """A thousandth of a second behind what is acknowledged."""
            seen = producer.committed
            while True:
                await asyncio.sleep(0.001)
                now_s = time.perf_counter()
                for _ in range(producer.committed - seen):
                    acknowledged_s.append(now_s - sent.popleft())
                seen = producer.committed

        task = asyncio.create_task(looking())
        begun_s = time.perf_counter()
        for number in range(int(rate * span_s)):
            if (early_s := begun_s + number / rate - time.perf_counter()) > 0:
                await asyncio.sleep(early_s)
            at_s = time.perf_counter()
            sent.append(at_s)
            producer.record(_again(events[number % KINDS], number))
            put_s.append(time.perf_counter() - at_s)
        await producer.flushed()
        await asyncio.sleep(0.01)
        task.cancel()
        assert producer.lost == 0
    return Paced(rate=rate, put_ms=_shares(put_s), acknowledged_ms=_shares(acknowledged_s))


async def _as_fast_as_can_be(folder: Path, events: int) -> float:
    folder.mkdir()
    made = _events()
    async with _gate(folder) as producer:
        begun_s = time.perf_counter()
        for number in range(events):
            if producer.congested:
                await producer.relieved()
            producer.record(_again(made[number % KINDS], number))
            if number % 100 == 0:
                await asyncio.sleep(0)
        await producer.flushed()
        took_s = time.perf_counter() - begun_s
        assert (producer.lost, producer.committed) == (0, producer.sent)
    return events / took_s


def _again(seen: Seen, number: int) -> Seen:
    assert isinstance(seen, ConnectionSeen)
    return ConnectionSeen(**{name: getattr(seen, name) for name in seen.__struct_fields__} | {"flow": f"{number:026d}"})


def _shares(all_s: list[float]) -> tuple[float, float]:
    ordered = sorted(all_s)
    return ordered[len(ordered) // 2] * 1000, ordered[int(len(ordered) * 0.99)] * 1000


def paced(folder: Path, rate: int = 1000, span_s: float = 20.0) -> Paced:
    """Events at an even rate."""
    return asyncio.run(_at_rate(folder, rate, span_s))


def flooded(folder: Path, events: int = 100_000) -> float:
    """Events a second that one producer gets onto the disk."""
    return asyncio.run(_as_fast_as_can_be(folder, events))
