"""A relay of two directions: exact bytes, half-close, backpressure, and resets that pass through."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import Callable

import pytest
from gate_house import WAIT_S, Tape, on_loop, pair_over_loopback, wait_reset

from mitmsec.gate import relay
from mitmsec.gate.refuse import reset
from mitmsec.gate.relay import Relay
from mitmsec.gate.signals import Ending
from mitmsec.gate.splice import Pipes

MIXED = random.Random(1).randbytes(3 << 20)


class Line:
    """client ⇄ (near, relay, far) ⇄ server"""

    def __init__(self, pipes: Pipes, tee: Tape | None) -> None:
        self.pipes, self.tee = pipes, tee
        self.endings: asyncio.Queue[Ending] = asyncio.Queue()

    async def __aenter__(self) -> Line:
        self.client, self.near = await pair_over_loopback()
        self.far, self.server = await pair_over_loopback()
        self.loop = asyncio.get_running_loop()
        self.relay = Relay(self.loop, self.near, self.far, self.pipes, self.tee, self._ended)
        self.relay.start()
        return self

    def _ended(self, ending: Ending) -> None:
        for sock in (self.near, self.far):
            if ending is Ending.ORDERLY:
                sock.close()
            else:
                reset(sock)
        self.endings.put_nowait(ending)

    async def ending(self) -> Ending:
        return await asyncio.wait_for(self.endings.get(), WAIT_S)

    async def send(self, sock: socket.socket, data: bytes) -> None:
        await self.loop.sock_sendall(sock, data)
        sock.shutdown(socket.SHUT_WR)

    async def receive(self, sock: socket.socket) -> bytes:
        data = bytearray()
        while piece := await asyncio.wait_for(self.loop.sock_recv(sock, 65536), WAIT_S):
            data += piece
        return bytes(data)

    async def __aexit__(self, *error: object) -> None:
        if not self.relay.ended:
            self.relay.stop()
        for sock in (self.client, self.near, self.far, self.server):
            sock.close()


def lines() -> list[Callable[[], Line]]:
    """With pipes, with no pipe to be had, and with a tee."""
    return [lambda: Line(Pipes(), None), lambda: Line(Pipes(limit=0), None), lambda: Line(Pipes(), Tape())]


@pytest.mark.parametrize("make", lines(), ids=["splice", "no pipe", "tee"])
def test_bytes_arrive_exactly_both_ways_at_once_and_ends_are_passed_on(make: Callable[[], Line]) -> None:
    async def scenario() -> None:
        async with make() as line:
            back = MIXED[::-1][: 1 << 20]
            _, _, there, here = await asyncio.gather(
                line.send(line.client, MIXED),
                line.send(line.server, back),
                line.receive(line.server),
                line.receive(line.client),
            )
            assert (there, here) == (MIXED, back)
            assert await line.ending() is Ending.ORDERLY
            assert (line.relay.sent_bytes, line.relay.received_bytes) == (len(MIXED), len(back))
            if line.tee is not None:
                assert (bytes(line.tee.kept[True]), bytes(line.tee.kept[False])) == (MIXED, back)

    asyncio.run(scenario())


@on_loop
async def test_a_half_close_leaves_the_other_direction_open() -> None:
    async with Line(Pipes(), None) as line:
        await line.send(line.client, b"question")
        assert await line.receive(line.server) == b"question"
        assert not line.relay.ended
        await line.send(line.server, b"answer")
        assert await line.receive(line.client) == b"answer"
        assert await line.ending() is Ending.ORDERLY


@on_loop
async def test_an_idle_relay_holds_no_pipe() -> None:
    pipes = Pipes()
    async with Line(pipes, None) as line:
        line.client.send(b"x")
        assert await line.loop.sock_recv(line.server, 1) == b"x"
        pipe = pipes.take()
        assert pipe is not None
        assert pipes.made == 1  # the one that carried the byte has come back
        pipes.give_back(pipe)


@pytest.mark.parametrize("make", lines(), ids=["splice", "no pipe", "tee"])
def test_a_reader_who_never_reads_stops_the_writer(make: Callable[[], Line]) -> None:
    async def scenario() -> None:
        async with make() as line:
            sent, stuck = 0, 0
            while stuck < 50:  # rounds of the loop in a row in which not one more byte was taken
                await asyncio.sleep(0.002 if stuck else 0)
                try:
                    sent, stuck = sent + line.client.send(MIXED), 0
                except BlockingIOError:
                    stuck += 1
            assert line.relay.sent_bytes < sent < 64 << 20
            if line.tee is not None:
                assert len(line.tee.kept[True]) - line.relay.sent_bytes <= 65536
            line.client.shutdown(socket.SHUT_WR)
            assert len(await line.receive(line.server)) == sent  # nothing is lost either

    asyncio.run(scenario())


@pytest.mark.parametrize("side", ["client", "origin"])
@pytest.mark.parametrize("make", lines(), ids=["splice", "no pipe", "tee"])
def test_a_reset_on_one_side_is_a_reset_on_the_other(make: Callable[[], Line], side: str) -> None:
    async def scenario() -> None:
        async with make() as line:
            here, there = (line.client, line.server) if side == "client" else (line.server, line.client)
            reset(here)
            assert await line.ending() is (Ending.CLIENT_RESET if side == "client" else Ending.ORIGIN_RESET)
            there.settimeout(WAIT_S)
            assert wait_reset(there)

    asyncio.run(scenario())


@on_loop
async def test_the_last_words_of_an_origin_that_closes_under_an_upload_still_arrive() -> None:
    async with Line(Pipes(), None) as line:
        line.server.send(b"413 too large")
        line.server.close()
        assert await line.receive(line.client) == b"413 too large"
        while line.endings.empty():  # answered with a reset by the origin, which had ended in order
            line.client.send(b"more")
            await asyncio.sleep(0)
        assert await line.ending() is Ending.ORDERLY


@on_loop
async def test_what_the_tee_refuses_does_not_pass() -> None:
    tape = Tape()
    tape.refuses = True
    async with Line(Pipes(), tape) as line:
        line.client.send(b"secret")
        assert await line.ending() is Ending.UNRECORDED
        assert line.relay.sent_bytes == 0
        line.server.settimeout(WAIT_S)
        assert wait_reset(line.server)


@on_loop
async def test_a_tee_without_room_pauses_the_flow_until_it_has_some() -> None:
    tape = Tape()
    tape.full = True
    async with Line(Pipes(), tape) as line:
        line.client.send(b"x")
        async with asyncio.timeout(WAIT_S):
            while not tape.waiting:
                await asyncio.sleep(0)
        assert not tape.kept[True]
        tape.full = False
        tape.waiting[0]()
        assert await line.loop.sock_recv(line.server, 1) == b"x"
        line.relay.stop()
        tape.waiting[0]()  # too late: nothing is read any more
        line.client.send(b"y")
        for _ in range(10):
            await asyncio.sleep(0)
        assert bytes(tape.kept[True]) == b"x"


async def until_nothing_passes(line: Line) -> int:
    """Send and receive in bulk until the relay moves nothing more; how much was sent."""
    sent, stuck = 0, 0
    while stuck < 50:  # rounds of the loop in a row in which not one byte came out
        with contextlib.suppress(BlockingIOError):  # what was sent waits in the relay
            sent += line.client.send(MIXED[:65536])
        await asyncio.sleep(0.002 if stuck else 0)
        try:
            line.server.recv(1 << 20)
            stuck = 0
        except BlockingIOError:
            stuck += 1
    return sent


async def converse(line: Line, question_bytes: int, answer_bytes: int, times: int) -> None:
    for _ in range(times):
        for source, sink, size in (
            (line.client, line.server, question_bytes),
            (line.server, line.client, answer_bytes),
        ):
            source.send(MIXED[:size])
            got = 0
            while got < size:
                got += len(await asyncio.wait_for(line.loop.sock_recv(sink, size), WAIT_S))


@pytest.mark.parametrize("make", lines()[:2], ids=["splice", "no pipe"])
def test_bulk_is_let_gather_and_an_end_does_not_wait_for_it(
    make: Callable[[], Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "GATHER_S", 3600)  # what is gathered is never seen again in this test

    async def scenario() -> None:
        async with make() as line:
            assert await until_nothing_passes(line) > line.relay.sent_bytes >= relay.BULK_BYTES * relay.BULK_TURNS
            line.server.send(b"small things pass the other way")
            assert await asyncio.wait_for(line.loop.sock_recv(line.client, 64), WAIT_S)
            reset(line.server)
            assert await line.ending() is Ending.ORIGIN_RESET

    asyncio.run(scenario())


@pytest.mark.parametrize(("question_bytes", "answer_bytes"), [(10, 10), (100, 40_000), (40_000, 40_000)])
def test_question_and_answer_never_gather(
    question_bytes: int, answer_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "GATHER_S", 3600)

    async def scenario() -> None:
        async with Line(Pipes(), None) as line:
            await converse(line, question_bytes, answer_bytes, times=100)

    asyncio.run(scenario())


def test_what_the_tee_takes_arrives_whole_however_often_it_is_full_and_the_sink_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One thing resumes at a time: the sink, or the tee; gathering would be a third."""
    monkeypatch.setattr(relay, "BULK_TURNS", 1)

    class Moody(Tape):
        calls = 0

        def wait(self, resume: Callable[[], None]) -> bool:
            self.calls += 1
            if is_full := self.calls % 3 == 0:
                asyncio.get_running_loop().call_soon(resume)
            return is_full

    async def scenario() -> None:
        async with Line(Pipes(), Moody()) as line:
            sending = asyncio.ensure_future(line.send(line.client, MIXED * 4))
            line.far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
            arrived = bytearray()
            while piece := await asyncio.wait_for(line.loop.sock_recv(line.server, 16384), WAIT_S):
                arrived += piece
                await asyncio.sleep(0.002 if len(arrived) % 5 == 0 else 0)
            assert arrived == MIXED * 4
            await sending
            assert line.tee is not None
            assert bytes(line.tee.kept[True]) == MIXED * 4

    asyncio.run(scenario())


@pytest.mark.parametrize("make", lines(), ids=["splice", "no pipe", "tee"])
def test_all_that_an_origin_said_before_it_left_is_passed_on(make: Callable[[], Line]) -> None:
    """Far more than one buffer: the client's direction breaks first, and ends the relay."""

    async def scenario() -> None:
        async with make() as line:
            said = MIXED[: 1 << 20]
            line.client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            for sock in (line.near, line.server):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
            line.far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            sent = 0
            with contextlib.suppress(BlockingIOError):
                while sent < len(said):
                    sent += line.server.send(said[sent:])
            line.relay.broken(line.far)
            assert line.relay.received_bytes == sent > 4 * 65536
            assert await line.ending() is Ending.ORIGIN_RESET

    asyncio.run(scenario())


@on_loop
async def test_what_gathered_is_moved_a_moment_later() -> None:
    async with Line(Pipes(), None) as line:
        sending = asyncio.ensure_future(line.send(line.client, MIXED * 8))
        assert await line.receive(line.server) == MIXED * 8
        await sending
