"""Waiting for sockets and moments, on one epoll and one timer for each delay."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from gate_house import on_loop

from mitmsec.gate.lean_loop import EVENTS_LIMIT, LeanLoop


@contextmanager
def lean() -> Iterator[LeanLoop]:
    with closing(LeanLoop(asyncio.get_running_loop())) as loop:
        yield loop


@contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        one.setblocking(False)
        other.setblocking(False)
        yield one, other


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@on_loop
async def test_a_reader_is_told_for_as_long_as_there_is_something_and_it_is_wanted() -> None:
    with lean() as loop, pair() as (one, other):
        told: list[bytes] = []
        loop.add_reader(other, lambda: told.append(other.recv(1)))
        await turns()
        assert told == []
        one.send(b"abc")
        await turns()
        assert told == [b"a", b"b", b"c"]
        loop.remove_reader(other)
        loop.remove_reader(other)
        one.send(b"d")
        await turns()
        assert (len(told), len(loop)) == (3, 0)


@on_loop
async def test_a_socket_is_read_and_written_and_either_can_be_left() -> None:
    with lean() as loop, pair() as (one, other):
        told: list[str] = []
        loop.add_writer(other, lambda: told.append("writer"))
        loop.add_reader(other, lambda: told.append("reader"))
        one.send(b"x")
        await turns()
        assert set(told) == {"writer", "reader"}
        for gone, left, remove, add in (
            ("reader", "writer", loop.remove_reader, loop.add_reader),
            ("writer", "reader", loop.remove_writer, loop.add_writer),
        ):
            remove(other)
            told.clear()
            await turns()
            assert set(told) == {left}
            add(other, lambda gone=gone: told.append(gone))  # type: ignore[misc]
            await turns()
            assert set(told) == {"reader", "writer"}
        loop.remove_writer(other)
        loop.remove_reader(other)
        assert len(loop) == 0


@on_loop
async def test_a_reset_is_told_to_both() -> None:
    with lean() as loop, pair() as (one, other):
        told: set[str] = set()
        for name, add in (("reader", loop.add_reader), ("writer", loop.add_writer)):
            add(other, lambda name=name: told.add(name))  # type: ignore[misc]
        one.close()
        await turns()
        assert told == {"reader", "writer"}
        loop.remove_reader(other)
        loop.remove_writer(other)


@on_loop
async def test_who_takes_a_descriptor_over_is_not_told_of_what_its_last_owner_had() -> None:
    """Two are ready in one turn; the first to be told ends the other, and a new socket gets its descriptor."""
    with lean() as loop, pair() as (a, b), pair() as (c, d):
        told: list[str] = []
        newcomers: list[socket.socket] = []

        def first(mine: socket.socket, others: socket.socket) -> Callable[[], None]:
            def be_told() -> None:
                loop.remove_reader(mine)
                loop.remove_reader(others)
                fd = others.fileno()
                others.close()
                newcomers.extend(socket.socketpair())
                newcomer = next(sock for sock in newcomers if sock.fileno() == fd)
                loop.add_reader(newcomer, lambda: told.append("newcomer"))
                told.append("first")

            return be_told

        loop.add_reader(b, first(b, d))
        loop.add_reader(d, first(d, b))
        a.send(b"x")
        c.send(b"x")
        await turns()
        assert told == ["first"]
        for sock in newcomers:
            loop.remove_reader(sock)
            sock.close()


@on_loop
async def test_however_many_are_ready_each_is_told() -> None:
    pairs = [socket.socketpair() for _ in range(EVENTS_LIMIT + 50)]
    with lean() as loop:
        told: set[int] = set()
        for number, (one, other) in enumerate(pairs):

            def be_told(number: int = number, other: socket.socket = other) -> None:
                told.add(number)
                loop.remove_reader(other)

            loop.add_reader(other, be_told)
            one.send(b"x")
        await turns()
        assert len(told) == len(pairs)
    for one, other in pairs:
        one.close()
        other.close()


@on_loop
async def test_moments_come_in_their_order_and_never_once_they_are_cancelled() -> None:
    with lean() as loop:
        told: list[str] = []
        over = asyncio.Event()
        loop.call_later(0.06, over.set)
        late = loop.call_later(0.03, lambda: told.append("cancelled late"))
        for name in ("b", "c"):
            loop.call_later(0.03, lambda name=name: told.append(name))  # type: ignore[misc]
        loop.call_later(0.01, lambda: told.append("a"))
        loop.call_later(0.01, late.cancel)
        for _ in range(3):
            loop.call_later(0.02, lambda: told.append("cancelled")).cancel()
        loop.call_soon(lambda: told.append("soon"))
        began_s = loop.time()
        await asyncio.wait_for(over.wait(), 20)
        assert told == ["soon", "a", "b", "c"]
        assert loop.time() - began_s >= 0.06


@on_loop
async def test_one_that_fails_does_not_keep_the_others_from_being_told() -> None:
    failures: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: failures.append(context["exception"]))
    with lean() as loop, pair() as (one, other), pair() as (third, fourth):
        told: list[str] = []
        over = asyncio.Event()

        def fail(sock: socket.socket | None = None) -> None:
            if sock is not None:
                loop.remove_reader(sock)
            raise RuntimeError("a bug")

        loop.call_later(0.01, fail)
        loop.call_later(0.01, over.set)
        loop.add_reader(other, lambda: fail(other))
        loop.add_reader(fourth, lambda: told.append("fourth"))
        one.send(b"x")
        third.send(b"x")
        await asyncio.wait_for(over.wait(), 20)
        assert "fourth" in told
        assert [type(one) for one in failures] == [RuntimeError, RuntimeError]
        loop.remove_reader(fourth)


@on_loop
async def test_who_is_closed_tells_nobody() -> None:
    told: list[str] = []
    with pair() as (one, other):
        with lean() as loop:
            loop.call_later(0.01, lambda: told.append("moment"))
            loop.add_reader(other, lambda: told.append("reader"))
            one.send(b"x")
            loop.close()
        await asyncio.sleep(0.05)
    assert told == []
