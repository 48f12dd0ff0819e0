"""A producer: it never waits for the recorder, its memory is bounded, and what it gave up is told."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest
from audit_events import connection, request

from mitmsec.audit.event import BytesSeen, FaultSeen, SecretsSeen
from mitmsec.audit.producer import CAPTURE_LOST, EVENT_UNSENDABLE, EVENTS_LOST, Producer
from mitmsec.channel import pair
from mitmsec.core.messages import Committed, encode

Scenario = Callable[["Bench"], Coroutine[Any, Any, None]]


class Bench:
    """A producer and the recorder's bare end of its channel."""

    def __init__(self, **options: Any) -> None:
        ours, self.far = pair()
        self.overflows: list[int] = []
        self.gone = 0
        self.producer = Producer(
            ours, asyncio.get_running_loop(), on_overflow=self.overflows.append, on_gone=self._gone, **options
        )

    def _gone(self) -> None:
        self.gone += 1

    def received(self) -> list[dict[str, Any]]:
        """What has arrived at the recorder's end so far."""
        self.far.setblocking(False)
        packets = []
        while True:
            try:
                packets.append(msgspec.msgpack.decode(self.far.recv(200_000)))
            except BlockingIOError:
                return packets

    async def acknowledge(self, count: int) -> None:
        self.far.send(encode(Committed(count=count)))
        while self.producer.committed < min(count, self.producer.sent):
            await asyncio.sleep(0)


def run(scenario: Scenario, **options: Any) -> None:
    async def play() -> None:
        bench = Bench(**options)
        try:
            async with asyncio.timeout(30):
                await scenario(bench)
        finally:
            bench.producer.close()
            bench.far.close()

    asyncio.run(play())


def test_events_arrive_in_order_and_are_counted_when_committed() -> None:
    async def scenario(bench: Bench) -> None:
        for number in range(3):
            bench.producer.record(connection(f"flow-{number}"))
        assert [packet["flow"] for packet in bench.received()] == ["flow-0", "flow-1", "flow-2"]
        assert (bench.producer.sent, bench.producer.committed) == (3, 0)
        await bench.acknowledge(2)
        assert bench.producer.committed == 2
        await bench.acknowledge(3)
        assert (bench.producer.sent, bench.producer.committed, bench.producer.lost) == (3, 3, 0)

    run(scenario)


def test_flushed_returns_once_everything_is_committed_and_not_before() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.producer.flushed()
        bench.producer.record(connection())
        bench.producer.record(request())
        flushed = asyncio.create_task(bench.producer.flushed())
        await bench.acknowledge(1)
        await asyncio.sleep(0)
        assert not flushed.done()
        await bench.acknowledge(2)
        await flushed

    run(scenario)


def test_a_recorder_is_waited_for_as_long_as_more_is_on_disk_than_before() -> None:
    async def scenario(bench: Bench) -> None:
        for _ in range(3):
            bench.producer.record(connection())
        waiting = asyncio.create_task(bench.producer.flushed_while_it_moves(quiet_s=0.3, limit_s=20))
        for count in (1, 2):
            await asyncio.sleep(0.2)
            await bench.acknowledge(count)
            assert not waiting.done()
        await asyncio.sleep(0.2)
        assert not waiting.done(), "it has not been quiet for so long yet, though more has passed in all"
        await bench.acknowledge(3)
        await waiting
        assert bench.producer.committed == 3

    run(scenario)


@pytest.mark.parametrize(("quiet_s", "limit_s"), [(0.05, 20), (20, 0.05)])
def test_and_no_longer_nor_for_ever(quiet_s: float, limit_s: float) -> None:
    async def scenario(bench: Bench) -> None:
        bench.producer.record(connection())
        await bench.producer.flushed_while_it_moves(quiet_s=quiet_s, limit_s=limit_s)
        assert bench.producer.committed == 0

    run(scenario)


def test_flushed_and_relieved_return_when_the_recorder_is_gone_or_the_producer_closed() -> None:
    async def gone(bench: Bench) -> None:
        for _ in range(2):
            bench.producer.record(connection())
        waiting = asyncio.gather(bench.producer.flushed(), bench.producer.relieved())
        await asyncio.sleep(0)
        bench.far.close()
        await waiting
        assert bench.producer.gone
        assert bench.gone == 1
        await bench.producer.flushed()

    async def closed(bench: Bench) -> None:
        bench.producer.record(connection())
        waiting = asyncio.create_task(bench.producer.flushed())
        await asyncio.sleep(0)
        bench.producer.close()
        await waiting
        assert bench.gone == 0

    run(gone, limit=2)
    run(closed)


def test_a_waiter_that_was_cancelled_is_no_trouble() -> None:
    async def scenario(bench: Bench) -> None:
        bench.producer.record(connection())
        impatient = asyncio.create_task(bench.producer.flushed())
        patient = asyncio.create_task(bench.producer.flushed())
        await asyncio.sleep(0)
        impatient.cancel()
        await bench.acknowledge(1)
        await patient
        assert impatient.cancelled()

    run(scenario)


def test_a_full_window_loses_events_and_tells_how_many_once_there_is_room() -> None:
    async def scenario(bench: Bench) -> None:
        for number in range(10):
            bench.producer.record(connection(f"flow-{number}"))
        assert (bench.producer.sent, bench.producer.lost) == (4, 6)
        assert bench.overflows == [1, 2, 3, 4, 5, 6]
        assert len(bench.received()) == 4
        await bench.acknowledge(1)
        assert bench.received() == []
        await bench.acknowledge(2)
        (fault,) = bench.received()
        assert (fault["type"], fault["what"], fault["count"]) == ("FaultSeen", EVENTS_LOST, 6)
        bench.producer.record(connection("flow-10"))
        bench.producer.record(connection("flow-11"))
        assert bench.overflows[-1] == 1
        assert [packet["flow"] for packet in bench.received()] == ["flow-10"]
        await bench.acknowledge(6)
        (fault,) = bench.received()
        assert fault["count"] == 1
        await bench.acknowledge(7)
        assert (bench.producer.sent, bench.producer.committed, bench.producer.lost) == (7, 7, 7)

    run(scenario, limit=4)


def test_the_window_is_bounded_in_bytes_and_lost_capture_is_told_apart() -> None:
    piece = BytesSeen(flow="f", sent=True, data=b"x" * 10_000)

    async def scenario(bench: Bench) -> None:
        for _ in range(5):
            bench.producer.record(piece)
        bench.producer.record(SecretsSeen(flow="f", lines=b"y" * 20_000))
        assert (bench.producer.sent, bench.producer.lost) == (2, 4)
        assert bench.producer.congested
        relieved = asyncio.create_task(bench.producer.relieved())
        bench.received()
        await bench.acknowledge(2)
        await relieved
        (fault,) = bench.received()
        assert (fault["what"], fault["count"]) == (CAPTURE_LOST, 4)

    run(scenario, limit_bytes=25_000)


def test_a_single_event_larger_than_the_window_still_goes() -> None:
    async def scenario(bench: Bench) -> None:
        bench.producer.record(BytesSeen(flow="f", sent=True, data=b"x" * 10_000))
        assert bench.producer.sent == 1

    run(scenario, limit_bytes=100)


@pytest.mark.parametrize("url", ["https://a.example/" + "x" * 200_000, "https://a.example/\udc80"])
def test_an_event_that_cannot_be_sent_is_told_and_never_raised(url: str) -> None:
    async def scenario(bench: Bench) -> None:
        bench.producer.record(request(url=url))
        assert bench.overflows == [1]
        bench.producer.record(connection())
        fault, event = bench.received()
        assert (fault["what"], fault["count"]) == (EVENT_UNSENDABLE, 1)
        assert event["type"] == "ConnectionSeen"

    run(scenario)


def test_what_the_kernel_does_not_take_at_once_waits_and_leaves_later() -> None:
    async def scenario(bench: Bench) -> None:
        for number in range(3000):
            bench.producer.record(FaultSeen(what="x", detail=f"{number}"))
        assert (bench.producer.sent, bench.producer.lost) == (3000, 0)
        received = bench.received()
        assert len(received) < 3000
        while len(received) < 3000:
            await asyncio.sleep(0)
            received += bench.received()
        assert [int(packet["detail"]) for packet in received] == list(range(3000))

    run(scenario)


def test_recording_for_a_recorder_that_is_gone_only_counts() -> None:
    async def scenario(bench: Bench) -> None:
        bench.far.shutdown(socket.SHUT_RDWR)
        while not bench.producer.gone:
            await asyncio.sleep(0)
        for _ in range(3):
            bench.producer.record(connection())
        assert bench.overflows == [1, 2, 3]
        await bench.producer.flushed()

    run(scenario)


def test_a_recorder_that_acknowledges_more_than_was_sent_is_not_believed() -> None:
    async def scenario(bench: Bench) -> None:
        bench.producer.record(connection())
        await bench.acknowledge(1000)
        assert bench.producer.committed == 1

    run(scenario)


def test_a_disk_that_takes_nothing_is_known_at_once_and_nothing_is_lost_for_that() -> None:
    async def scenario(bench: Bench) -> None:
        bench.producer.record(connection())
        for failing in (True, False):
            bench.far.send(encode(Committed(count=0, failing=failing)))
            while bench.producer.failing is not failing:
                await asyncio.sleep(0)
        bench.producer.record(connection())
        assert (bench.producer.sent, bench.producer.committed, bench.producer.lost) == (2, 0, 0)

    run(scenario)
