"""What a worker has of a flow of QUIC, and how that ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

import pytest

from mitmsec.gate import quic_pairs
from mitmsec.gate.quic_pairs import GOODBYE_BYTES, Outlets, Pairs


class Stage:
    """Pairs, the worker's ends, and what came out."""

    def __init__(self) -> None:
        self.client: list[bytes] = []
        self.origin: list[bytes] = []
        self.closed = 0
        outlets = Outlets(self.client.append, self.origin.append, self._closed)
        self.pairs = Pairs(asyncio.get_running_loop(), outlets)
        self.front, self.back = (socket.socket(fileno=os.dup(fd)) for fd in self.pairs.theirs)
        self.pairs.handed()

    def _closed(self) -> None:
        self.closed += 1

    def leave(self) -> None:
        self.front.close()
        self.back.close()
        self.pairs.close()


async def until(holds: object) -> None:
    for _ in range(500):
        if callable(holds) and holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("never")


def test_datagrams_go_both_ways_on_both_legs_and_stay_apart() -> None:
    async def story() -> None:
        stage = Stage()
        stage.pairs.client_sent(b"one")
        stage.pairs.client_sent(b"")
        stage.pairs.client_sent(b"two")
        stage.pairs.origin_sent(b"three")
        assert [stage.front.recv(99), stage.front.recv(99), stage.back.recv(99)] == [b"one", b"two", b"three"]
        stage.front.send(b"four")
        stage.back.send(b"five")
        stage.back.send(b"six")
        await until(lambda: len(stage.origin) == 2)
        assert (stage.client, stage.origin) == ([b"four"], [b"five", b"six"])
        stage.leave()
        assert stage.closed == 1

    asyncio.run(story())


def test_a_worker_that_does_not_read_gets_no_more_than_there_is_room_for() -> None:
    async def story() -> None:
        stage = Stage()
        for _ in range(20_000):
            stage.pairs.client_sent(bytes(1200))
        stage.front.setblocking(False)
        count = 0
        with contextlib.suppress(BlockingIOError):
            while stage.front.recv(65535):
                count += 1
        assert 10 < count < 5000
        stage.leave()

    asyncio.run(story())


def test_a_worker_that_is_let_go_sees_that_and_its_last_words_go_out() -> None:
    async def story() -> None:
        stage = Stage()
        stage.pairs.let_go()
        stage.pairs.let_go()
        stage.pairs.client_sent(b"too late")
        assert stage.front.recv(99) == stage.back.recv(99) == b""
        stage.front.send(b"goodbye")
        stage.front.close()
        await until(lambda: stage.client == [b"goodbye"])
        assert stage.closed == 0
        await until(lambda: stage.closed == 1)  # its other end, it has still
        with pytest.raises(BrokenPipeError):
            stage.back.send(b"to nobody")
        stage.leave()
        assert stage.closed == 1

    asyncio.run(story())


def test_what_is_more_than_a_goodbye_goes_nowhere() -> None:
    async def story() -> None:
        stage = Stage()
        stage.pairs.let_go()
        for end in (stage.front, stage.back):
            end.send(b"x" * GOODBYE_BYTES)
            end.send(b"y")
        await until(lambda: len(stage.client) == len(stage.origin) == 1)
        stage.pairs.read()
        assert [*stage.client, *stage.origin] == [b"x" * GOODBYE_BYTES] * 2
        stage.leave()

    asyncio.run(story())


def test_what_was_sent_before_a_worker_ended_is_passed_on() -> None:
    async def story() -> None:
        stage = Stage()
        stage.front.send(b"last")
        stage.front.close()
        stage.back.close()
        stage.pairs.read()
        assert (stage.client, stage.closed) == ([b"last"], 1)
        stage.pairs.let_go()
        stage.pairs.read()
        stage.leave()

    asyncio.run(story())


def test_without_descriptors_there_are_none_and_none_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        made = []
        pair = quic_pairs._pair

        def one_only() -> tuple[socket.socket, socket.socket]:
            if made:
                raise OSError(24, "too many")
            made.append(pair())
            return made[0]

        monkeypatch.setattr(quic_pairs, "_pair", one_only)
        with pytest.raises(OSError, match="too many"):
            Pairs(asyncio.get_running_loop(), Outlets(print, print, print))
        assert [end.fileno() for end in made[0]] == [-1, -1]

    asyncio.run(story())
