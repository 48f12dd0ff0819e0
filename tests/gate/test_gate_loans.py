"""Origins' sockets that workers have, and how the gate gets them back."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import pytest
from gate_house import WAIT_S, linger_for, on_loop, pair_over_loopback

from mitmsec.gate import loans as module
from mitmsec.gate.hangups import Hangups
from mitmsec.gate.loans import Loans


class Counter:
    """Loans, and connections to an origin of which a worker has a duplicate."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.hangups = Hangups(loop)
        self.loans = Loans(loop, self.hangups)
        self.opened: list[socket.socket] = []

    async def lend(self, flow: str) -> tuple[socket.socket, socket.socket, bool]:
        """The worker's duplicate, the origin's end, and whether it was lent."""
        ours, origin = await pair_over_loopback()
        workers = ours.dup()
        self.opened += [workers, origin]
        return workers, origin, self.loans.lend(flow, ours)

    def close(self) -> None:
        self.loans.close()
        self.hangups.close()
        for sock in self.opened:
            sock.close()


async def empty(counter: Counter) -> None:
    async with asyncio.timeout(WAIT_S):
        while len(counter.loans):
            await asyncio.sleep(0.001)
    assert not len(counter.hangups)


async def read(sock: socket.socket) -> bytes:
    return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 10), WAIT_S)


@on_loop
async def test_what_a_worker_has_shut_is_let_go_while_the_flow_goes_on() -> None:
    counter = Counter()
    workers, origin, _ = await counter.lend("f")
    _, _, lent = await counter.lend("f")
    assert lent
    workers.send(b"x")
    workers.shutdown(socket.SHUT_RDWR)
    assert await read(origin) == b"x"
    assert await read(origin) == b""
    async with asyncio.timeout(WAIT_S):
        while len(counter.loans) > 1:
            await asyncio.sleep(0.001)
    counter.loans.recall("f", in_order=False)
    await empty(counter)
    counter.close()


@on_loop
async def test_a_flow_that_is_reset_resets_what_its_worker_still_holds() -> None:
    counter = Counter()
    first, second = await counter.lend("f"), await counter.lend("f")
    others = await counter.lend("g")
    counter.loans.recall("f", in_order=False)
    counter.loans.recall("f", in_order=False)
    for workers, origin, _ in (first, second):
        with pytest.raises(ConnectionResetError):
            await read(origin)
        with pytest.raises(OSError):
            workers.send(b"exfiltrated")
    others[0].send(b"x")
    assert await read(others[1]) == b"x"
    counter.close()


@on_loop
async def test_after_an_orderly_end_a_worker_may_finish_what_it_has_queued() -> None:
    counter = Counter()
    workers, origin, _ = await counter.lend("f")
    counter.loans.recall("f", in_order=True)
    workers.send(b"last")
    workers.shutdown(socket.SHUT_RDWR)
    assert await read(origin) == b"last"
    assert await read(origin) == b""
    await empty(counter)
    counter.close()


def test_a_worker_that_keeps_a_socket_beyond_the_end_keeps_a_dead_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAVE_S", 0.01)

    async def scenario() -> None:
        counter = Counter()
        workers, origin, _ = await counter.lend("f")
        counter.loans.recall("f", in_order=True)
        assert await read(origin) == b""
        with pytest.raises(BrokenPipeError):
            workers.send(b"exfiltrated")
        await empty(counter)
        counter.close()

    asyncio.run(scenario())


def test_of_too_many_that_leave_the_oldest_is_shut_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAVING_LIMIT", 1)

    async def scenario() -> None:
        counter = Counter()
        for flow in ("f", "g"):
            _, origin, _ = await counter.lend(flow)
            counter.loans.recall(flow, in_order=True)
            if flow == "f":
                oldest = origin
        assert await read(oldest) == b""
        assert len(counter.loans) == 1
        counter.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("name", "limit", "flows"),
    [("FURTHER_LIMIT", 1, "fff"), ("FURTHER_IN_ALL_LIMIT", 1, "ffgg"), ("FURTHER_PLENTY", 2, "fffggg")],
)
def test_further_sockets_are_limited_for_a_flow_and_in_all(
    name: str, limit: int, flows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, name, limit)

    async def scenario() -> None:
        counter = Counter()
        lent: list[Any] = [await counter.lend(flow) for flow in flows]
        assert [was_lent for _, _, was_lent in lent] == [*[True] * (len(flows) - 1), False]
        counter.loans.recall("f", in_order=False)
        assert (await counter.lend("h"))[2]
        assert (await counter.lend("h"))[2]
        counter.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("end", ["shut by the worker", "left too long", "the gate ends"])
def test_no_worker_can_have_the_gate_wait_in_close(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAVE_S", 0.01)

    async def scenario() -> None:
        counter = Counter()
        workers, _, _ = await counter.lend("f")
        linger_for(workers, 15)
        if end == "shut by the worker":
            workers.shutdown(socket.SHUT_RDWR)
        workers.close()  # so that the gate's is the last descriptor
        counter.loans.recall("f", in_order=True)
        if end == "the gate ends":
            counter.loans.close()
        await empty(counter)
        counter.close()

    before_s = time.monotonic()
    asyncio.run(asyncio.wait_for(scenario(), WAIT_S))
    assert time.monotonic() - before_s < 5


@on_loop
async def test_what_a_worker_has_let_go_of_is_taken_back_alone_and_alive() -> None:
    counter = Counter()
    workers, origin, _ = await counter.lend("f")
    workers.close()
    taken = counter.loans.take_back("f")
    assert taken is not None
    taken.send(b"x")
    assert await read(origin) == b"x"
    await empty(counter)
    assert counter.loans.take_back("f") is None
    taken.close()  # in order again: no reset
    assert await read(origin) == b""
    counter.close()


@on_loop
async def test_of_several_that_a_worker_was_lent_none_is_taken_back() -> None:
    counter = Counter()
    for _ in range(2):
        await counter.lend("f")
    assert counter.loans.take_back("f") is None
    assert len(counter.loans) == 2
    counter.loans.recall("f", in_order=False)
    counter.close()
