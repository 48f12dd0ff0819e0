"""Peeking without taking and without spinning."""

from __future__ import annotations

import asyncio
import select
import socket

from gate_house import on_loop, pair_over_loopback

from mitmsec.gate.peek import Peek
from mitmsec.gate.refuse import reset


class Watch:
    """A peek, and what it told."""

    def __init__(self, sock: socket.socket) -> None:
        self.told: asyncio.Queue[tuple[bytes, bool] | None] = asyncio.Queue()
        self.peek = Peek(
            asyncio.get_running_loop(),
            sock,
            lambda data, more: self.told.put_nowait((data, more)),
            lambda: self.told.put_nowait(None),
        )

    async def next(self) -> tuple[bytes, bool] | None:
        return await asyncio.wait_for(self.told.get(), 20)


@on_loop
async def test_bytes_are_told_and_stay() -> None:
    one, other = await pair_over_loopback()
    with one, other:
        watch = Watch(other)
        watch.peek.wait(1)
        one.send(b"abc")
        assert await watch.next() == (b"abc", True)
        watch.peek.stop()
        assert other.recv(10) == b"abc"


@on_loop
async def test_what_has_come_already_is_told_at_once() -> None:
    one, other = await pair_over_loopback()
    with one, other:
        watch = Watch(other)
        one.send(b"abc")
        assert select.select([other], [], [], 20)[0]
        watch.peek.wait(1)
        assert watch.told.get_nowait() == (b"abc", True)
        await asyncio.sleep(0)
        assert watch.told.empty(), "and once"


@on_loop
async def test_nothing_is_told_before_enough_bytes_are_there() -> None:
    one, other = await pair_over_loopback()
    with one, other:
        watch = Watch(other)
        one.send(b"abc")
        watch.peek.wait(5)
        for _ in range(20):  # rounds of a loop that polls: a readable socket would be seen in the first
            await asyncio.sleep(0)
        assert watch.told.empty()
        one.send(b"de")
        assert await watch.next() == (b"abcde", True)
        watch.peek.stop()
        assert other.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1


@on_loop
async def test_an_end_of_stream_tells_that_no_more_will_come() -> None:
    one, other = await pair_over_loopback()
    with one, other:
        watch = Watch(other)
        one.send(b"abc")
        watch.peek.wait(5)
        one.shutdown(socket.SHUT_WR)
        assert await watch.next() == (b"abc", False)
        watch.peek.stop()


@on_loop
async def test_a_reset_is_told_as_such() -> None:
    one, other = await pair_over_loopback()
    with other:
        watch = Watch(other)
        watch.peek.wait(1)
        reset(one)
        assert await watch.next() is None
