"""One socket: counting, back-pressure, and the three ways to end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from mitmsec.engine.leg import HIGH_BYTES, Leg


def over_tcp(test: Callable[[Leg, socket.socket], Coroutine[Any, Any, None]]) -> None:
    """Run `test` with a leg and the blocking socket at its other end."""

    async def main() -> None:
        with (
            socket.create_server(("127.0.0.1", 0)) as listener,
            socket.create_connection(listener.getsockname()) as far,
        ):
            near, _ = listener.accept()
            far.settimeout(10)
            leg = Leg(near, asyncio.get_running_loop())
            try:
                await test(leg, far)
            finally:
                leg.abort()

    asyncio.run(main())


async def closed(leg: Leg) -> None:
    event = asyncio.Event()
    leg.on_closed = event.set
    if not leg.closed:
        await asyncio.wait_for(event.wait(), 10)


def test_chunks_come_before_anybody_listens_and_then_to_whoever_does() -> None:
    async def test(leg: Leg, far: socket.socket) -> None:
        far.sendall(b"first")
        assert await leg.chunk() == b"first"
        far.sendall(b"second")
        assert await leg.chunk() == b"second"
        got: asyncio.Queue[bytes] = asyncio.Queue()
        leg.inbox.append(b"kept")
        leg.listen(got.put_nowait, lambda: got.put_nowait(b"end"))
        far.sendall(b"third")
        assert [await got.get(), await got.get()] == [b"kept", b"third"]
        far.shutdown(socket.SHUT_WR)
        assert await got.get() == b"end"
        assert leg.received == len(b"firstsecondthird")

    over_tcp(test)


def test_the_end_and_the_reset_are_told_apart() -> None:
    async def test(leg: Leg, far: socket.socket) -> None:
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        far.close()
        with pytest.raises(ConnectionResetError):
            await leg.chunk()

    async def ends(leg: Leg, far: socket.socket) -> None:
        far.close()
        assert await leg.chunk() == b""
        assert await leg.chunk() == b""

    over_tcp(test)
    over_tcp(ends)


def test_a_peer_that_does_not_read_fills_the_leg_and_room_is_told() -> None:
    async def test(leg: Leg, far: socket.socket) -> None:
        room = asyncio.Event()
        leg.on_room = room.set
        pieces = 0
        while not leg.full:
            leg.write(b"x" * 65536)
            pieces += 1
        assert leg.queued > HIGH_BYTES
        loop = asyncio.get_running_loop()

        def drain() -> int:
            left = pieces * 65536
            while left:
                left -= len(far.recv(min(left, 1 << 20)))
            return left

        assert await loop.run_in_executor(None, drain) == 0
        await asyncio.wait_for(room.wait(), 10)
        assert (leg.queued, leg.sent) == (0, pieces * 65536)

    over_tcp(test)


def test_finish_ends_one_direction_only() -> None:
    async def test(leg: Leg, far: socket.socket) -> None:
        leg.write(b"last words")
        leg.finish()
        leg.write(b"too late")
        assert far.recv(100) == b"last words"
        assert far.recv(100) == b""
        far.sendall(b"still here")
        assert await leg.chunk() == b"still here"

    over_tcp(test)


def test_close_sends_what_is_queued_then_the_end_though_a_duplicate_lives() -> None:
    """As with the gate's duplicate: closing a descriptor alone would tell the peer nothing."""

    async def test(leg: Leg, far: socket.socket) -> None:
        with leg._sock.dup():
            data = b"y" * (3 << 20)
            leg.write(data)
            leg.close()
            got = b""
            loop = asyncio.get_running_loop()
            while piece := await loop.run_in_executor(None, far.recv, 1 << 20):
                got += piece
            assert got == data
            far.close()
            await closed(leg)
            assert leg.sent == len(data)

    over_tcp(test)


def test_close_waits_a_moment_for_the_peer_so_that_nothing_sent_is_lost_to_a_reset() -> None:
    async def test(leg: Leg, far: socket.socket) -> None:
        leg.write(b"an answer")
        leg.close()
        far.sendall(b"z" * 100_000)  # nobody wants it any more, and unread it would turn the end into a reset
        assert far.recv(100) == b"an answer"
        assert far.recv(100) == b""
        far.shutdown(socket.SHUT_WR)
        await closed(leg)

    over_tcp(test)


def test_what_is_put_off_goes_in_front_of_what_is_written_next_and_in_one_piece_with_it() -> None:
    async def test(leg: Leg, far: socket.socket) -> None:
        leg.put_off(b"finished, ")
        far.setblocking(False)
        with pytest.raises(BlockingIOError):
            far.recv(100)
        leg.write(b"")  # says nothing, so it takes nothing along
        with pytest.raises(BlockingIOError):
            far.recv(100)
        seen: list[bytes] = []
        leg._on_wire = lambda sent, data: seen.append(data)
        leg.write(b"request")
        far.settimeout(10)
        assert far.recv(100) == b"finished, request"
        assert seen == [b"finished, request"]

    over_tcp(test)


@pytest.mark.parametrize("end", [Leg.catch_up, Leg.finish, Leg.close])
def test_what_is_put_off_is_sent_at_the_latest_with_the_end(end: Callable[[Leg], None]) -> None:
    async def test(leg: Leg, far: socket.socket) -> None:
        leg.put_off(b"finished")
        end(leg)
        assert far.recv(100) == b"finished"

    over_tcp(test)


def test_abort_resets() -> None:
    async def test(leg: Leg, far: socket.socket) -> None:
        leg.abort()
        leg.abort()
        leg.write(b"nothing")
        with pytest.raises(ConnectionResetError):
            far.recv(1)
        assert leg.closed

    over_tcp(test)


def test_raw_bytes_are_seen_as_the_kernel_takes_and_gives_them() -> None:
    async def test(leg: Leg, far: socket.socket) -> None:
        wire: list[tuple[bool, bytes]] = []
        leg._on_wire = lambda sent, data: wire.append((sent, data))
        leg.write(b"out")
        far.sendall(b"in")
        assert await leg.chunk() == b"in"
        assert wire == [(True, b"out"), (False, b"in")]

    over_tcp(test)


def test_writing_to_a_peer_that_has_gone_is_found_out_by_reading() -> None:
    async def test(leg: Leg, far: socket.socket) -> None:
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        far.close()
        for _ in range(3):
            leg.write(b"hello?")
        ended = asyncio.Event()
        leg.listen(lambda _: None, ended.set)
        await asyncio.wait_for(ended.wait(), 10)
        assert leg.ended
        assert isinstance(leg.error, ConnectionError)
        assert leg.queued == 0

    over_tcp(test)
