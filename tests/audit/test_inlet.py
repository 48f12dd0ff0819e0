"""The recorder's end of a producer's channel: everything that was sent is read, whatever became of the sender."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from audit_events import connection
from descriptors import descriptors

from mitmsec.audit import inlet as inlets
from mitmsec.audit.event import ConnectionSeen, FaultSeen, Seen
from mitmsec.audit.inlet import BURST, Inlet
from mitmsec.audit.intake import Source
from mitmsec.channel import PACKET_LIMIT_BYTES, Channel, pair
from mitmsec.core.messages import Committed, Role, encode


class Bench:
    """An inlet and the producer's bare end of its channel."""

    def __init__(self) -> None:
        self.far, ours = pair()
        self.far.setblocking(False)
        self.seen: list[Seen] = []
        self.malformed: list[str] = []
        self.ends = 0
        self.news = asyncio.Event()
        self.inlet = Inlet(
            ours,
            Source(Role.GATE, "run-1"),
            asyncio.get_running_loop(),
            lambda inlet, seen: self._told(self.seen, seen),
            lambda inlet, why: self._told(self.malformed, why),
            self._ended,
        )

    def _told(self, into: list[Any], item: Any) -> None:
        into.append(item)
        self.news.set()

    def _ended(self, inlet: Inlet) -> None:
        self.ends += 1
        self.news.set()

    def send(self, number: int) -> None:
        self.far.send(encode(connection(f"flow-{number}")))

    def flows(self) -> list[str]:
        return [one.flow for one in self.seen if isinstance(one, ConnectionSeen)]

    async def until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self.news.clear()
            await self.news.wait()


def run(scenario: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
    async def play() -> None:
        bench = Bench()
        try:
            async with asyncio.timeout(30):
                await scenario(bench)
        finally:
            bench.inlet.close()
            bench.far.close()

    asyncio.run(play())


def test_messages_are_told_in_order_and_the_end_once() -> None:
    async def scenario(bench: Bench) -> None:
        for number in range(3):
            bench.send(number)
        bench.far.close()
        await bench.until(lambda: bench.ends > 0)
        assert bench.flows() == ["flow-0", "flow-1", "flow-2"]
        assert (bench.ends, bench.inlet.received, bench.inlet.settled) == (1, 3, 3)
        bench.inlet.read(1)
        bench.inlet.resume()
        bench.inlet.acknowledge(3)
        assert bench.ends == 1

    run(scenario)


def test_the_last_messages_of_a_producer_that_died_with_answers_unread_are_read() -> None:
    """Its death leaves ECONNRESET in front of them."""

    async def scenario(bench: Bench) -> None:
        bench.send(0)
        await bench.until(lambda: bench.inlet.received == 1)
        bench.inlet.acknowledge(1)
        for number in range(1, 5):
            bench.send(number)
        bench.far.close()
        await bench.until(lambda: bench.ends > 0)
        assert len(bench.seen) == 5

    run(scenario)


def test_what_is_no_message_is_told_and_reading_goes_on() -> None:
    async def scenario(bench: Bench) -> None:
        bench.far.send(b"\xc1 no msgpack")
        bench.far.send(encode(Committed(count=1)))
        bench.far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        bench.far.send(b"x" * (PACKET_LIMIT_BYTES + 1))
        before = len(descriptors())
        socket.send_fds(bench.far, [encode(connection())], [0, 1, 2])
        bench.send(1)
        await bench.until(lambda: bench.inlet.received == 5)
        assert len(bench.malformed) == 4
        assert bench.flows() == ["flow-1"]
        assert len(descriptors()) == before

    run(scenario)


def test_a_paused_inlet_leaves_messages_to_the_kernel_until_it_is_resumed() -> None:
    async def scenario(bench: Bench) -> None:
        bench.inlet.pause()
        bench.inlet.pause()
        bench.send(0)
        for _ in range(5):
            await asyncio.sleep(0)
        assert bench.seen == []
        bench.inlet.resume()
        bench.inlet.resume()
        await bench.until(lambda: bench.inlet.received == 1)

    run(scenario)


def test_a_busy_producer_lets_others_have_their_turn() -> None:
    async def scenario(bench: Bench) -> None:
        for number in range(BURST + 10):
            bench.send(number)
        await bench.until(lambda: bench.inlet.received >= BURST)
        assert bench.inlet.received == BURST
        await bench.until(lambda: bench.inlet.received == BURST + 10)

    run(scenario)


def test_messages_that_wait_for_judgement_are_not_settled() -> None:
    async def scenario(bench: Bench) -> None:
        for number in range(4):
            bench.send(number)
        await bench.until(lambda: bench.inlet.received == 4)
        bench.inlet.awaiting += [1, 3]
        assert bench.inlet.settled == 1
        bench.inlet.awaiting.remove(1)
        assert bench.inlet.settled == 3

    run(scenario)


def test_a_producer_that_does_not_read_gets_the_newest_answer_once_it_does() -> None:
    async def scenario(bench: Bench) -> None:
        for count in range(1, 5001):
            bench.inlet.acknowledge(count)
        channel = Channel(bench.far, [Committed])
        answers: list[int] = []
        while not answers or answers[-1] != 5000:
            try:
                received = channel.receive()
            except BlockingIOError:
                await asyncio.sleep(0)
                continue
            assert received is not None
            answers.append(received[0].count)
        assert len(answers) < 5000
        assert answers == sorted(answers)
        bench.inlet.acknowledge(4000)
        for _ in range(5):
            await asyncio.sleep(0)
        with pytest.raises(BlockingIOError):
            channel.receive()

    run(scenario)


def test_a_producer_has_so_many_messages_under_way_and_is_read_on_when_they_are_acknowledged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inlets, "GATE_WINDOW", (5, 1 << 20))
    monkeypatch.setattr(inlets, "SHARE_MESSAGES", 3)

    async def scenario(bench: Bench) -> None:
        for number in range(12):
            bench.send(number)
        await bench.until(lambda: len(bench.seen) == 5)
        await asyncio.sleep(0.05)
        bench.inlet.resume()
        await asyncio.sleep(0.05)
        assert (len(bench.seen), bench.inlet.full, bench.inlet.has_its_share) == (5, True, True)
        bench.inlet.acknowledge(2)
        assert (bench.inlet.full, bench.inlet.has_its_share) == (False, True)
        bench.inlet.acknowledge(1)  # an older one tells nothing
        bench.inlet.resume()
        await bench.until(lambda: len(bench.seen) == 7)
        await asyncio.sleep(0.05)
        assert (len(bench.seen), bench.inlet.full) == (7, True)
        bench.inlet.read(3)  # out of turn, whatever is under way
        assert len(bench.seen) == 10
        bench.inlet.acknowledge(10)
        bench.inlet.resume()
        await bench.until(lambda: len(bench.seen) == 12)
        assert not bench.inlet.full
        assert not bench.inlet.has_its_share

    run(scenario)


def test_a_producer_has_so_many_bytes_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    size_bytes = len(encode(connection("flow-1")))
    monkeypatch.setattr(inlets, "GATE_WINDOW", (1000, 3 * size_bytes))

    async def scenario(bench: Bench) -> None:
        for number in range(9):
            bench.send(number)
        await bench.until(lambda: len(bench.seen) == 3)
        await asyncio.sleep(0.05)
        assert (len(bench.seen), bench.inlet.full) == (3, True)

    run(scenario)


def test_a_turn_ends_after_so_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inlets, "BURST_BYTES", 2 * len(encode(connection("flow-1"))))

    async def scenario(bench: Bench) -> None:
        for number in range(8):
            bench.send(number)
        bench.inlet._readable()
        assert len(bench.seen) == 2

    run(scenario)


def test_a_worker_has_less_under_way_than_a_gate_whose_connections_may_all_end_at_once() -> None:
    assert inlets.WINDOW < inlets.GATE_WINDOW

    async def scenario() -> None:
        far, ours = pair()
        told: list[Seen] = []
        with far:
            far.setblocking(False)
            source = Source(Role.WORKER, "run-1", 0)
            loop = asyncio.get_running_loop()
            inlet = Inlet(ours, source, loop, lambda _, seen: told.append(seen), lambda *_: None, lambda _: None)
            for _ in range(2 * inlets.WINDOW[0]):
                with contextlib.suppress(BlockingIOError):
                    far.send(encode(FaultSeen(what="x")))
                await asyncio.sleep(0)
            await asyncio.sleep(0.05)
            assert (len(told), inlet.full) == (inlets.WINDOW[0], True)
            inlet.close()

    asyncio.run(scenario())


def test_a_producer_is_told_when_the_disk_takes_nothing_and_when_it_does_again() -> None:
    async def scenario(bench: Bench) -> None:
        bench.send(0)
        await bench.until(lambda: bench.inlet.received == 1)
        bench.inlet.tell(failing=False)  # which it knows
        bench.inlet.tell(failing=True)
        bench.inlet.tell(failing=False)
        bench.inlet.acknowledge(1)
        said = [bench.far.recv(1000) for _ in range(3)]
        told = [(0, True), (0, False), (1, False)]
        assert said == [encode(Committed(count=count, failing=failing)) for count, failing in told]

    run(scenario)
