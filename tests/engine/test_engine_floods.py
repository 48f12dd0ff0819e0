"""Peers that send without an end, or hardly at all: memory is bounded, others are served, and the end says why."""

from __future__ import annotations

import asyncio
import contextlib
import tracemalloc
import zlib
from pathlib import Path

import pytest
import trustme
from engine_h2 import Client, Origin, get
from engine_world import NAME, Pages, Word, World, connected, origin, server_context, trusting, world
from test_engine_stream import opened, serve

from mitmsec.audit.event import Outcome
from mitmsec.engine import frames

HELD_LIMIT_BYTES = 12 << 20
REQUEST = f"GET /fine HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode()


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


HEADERS = frame(1, 0, 1, b"\x82\x86\x84")  # GET, http, / and no end of the fields
NEVER_ENDING = {
    "empty": frame(9, 0, 1, b""),
    "small": frame(9, 0, 1, b"\x40\x01a\x01b"),
    "large": frame(9, 0, 1, (b"\x40\x01a\x7f\x81\x7e" + b"b" * 253) * 60),
}


@pytest.mark.parametrize("name", NEVER_ENDING)
def test_a_client_whose_header_fields_never_end_is_ended_within_bounds(tmp_path: Path, name: str) -> None:
    async def main() -> None:
        ca, server = trustme.CA(), Origin()
        async with origin(server, server_context(ca, alpn=("h2",))) as port, world(tmp_path, port, [ca]) as made:
            other = Client(*await connected(made, trusting(tmp_path, alpn=("h2",))))
            asking = Client(*await connected(made, trusting(tmp_path, alpn=("h2",))))
            asking.flush()
            tracemalloc.start()
            try:
                asking._writer.write(HEADERS + NEVER_ENDING[name] * 2000)
                end = await made.end()
                _, peak_bytes = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert (end.outcome, end.error) == (Outcome.MALFORMED, "the client broke HTTP")
            sent_bytes = 2 * 2000 * len(NEVER_ENDING[name])  # what this test itself holds of them
            assert peak_bytes < sent_bytes + HELD_LIMIT_BYTES
            await other.until_ended(other.request(get("/", NAME)))
            assert [head[":path"] for head, _ in server.requests] == ["/"]

    asyncio.run(main())


@pytest.mark.parametrize("name", NEVER_ENDING)
def test_an_origin_whose_header_fields_never_end_loses_its_connection(tmp_path: Path, name: str) -> None:
    async def main() -> None:
        ca = trustme.CA()

        async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(frame(4, 0, 0, b""))
            await reader.readexactly(24 + 9)
            await asyncio.sleep(0.1)
            writer.write(frame(1, 0, 1, b"\x88") + NEVER_ENDING[name] * 2000)
            await reader.read()

        async with origin(answers, server_context(ca, alpn=("h2",))) as port, world(tmp_path, port, [ca]) as made:
            asking = Client(*await connected(made, trusting(tmp_path, alpn=("h2",))))
            stream = asking.request(get("/", NAME))
            with contextlib.suppress(ConnectionError):
                await asking.until_ended(stream)
            assert stream not in asking.headers

    asyncio.run(main())


RESET = frame(3, 0, 1, (8).to_bytes(4))
GOAWAY = frame(7, 0, 0, (1).to_bytes(4) + bytes(4))
FROM_ORIGINS = {
    "ping": frame(6, 0, 0, bytes(8)),
    "settings": frame(4, 0, 0, b""),
    "window": frame(8, 0, 0, (1).to_bytes(4)),
    "empty data": frame(0, 0, 1, b""),
    "priority": frame(2, 0, 1, bytes(4) + b"\x0f"),
    "reset": RESET,
    "goaway": GOAWAY,
    "goaway and reset": GOAWAY + RESET,
    "push": frame(5, 4, 1, (2).to_bytes(4) + b"\x82\x86\x84"),
    "unknown": frame(0x77, 0, 0, b""),
}


class Turning(Origin):
    """Its first connection gets the head of an answer and then a flood; the others are served."""

    def __init__(self, flood: bytes) -> None:
        super().__init__()
        self._flood = flood
        self.lost = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._flood:
            return await super().__call__(reader, writer)
        flood, self._flood = self._flood, b""
        writer.write(frame(4, 0, 0, b""))
        await reader.readexactly(24)
        kind = 4
        while kind != 1:  # until the request is there
            head = await reader.readexactly(9)
            kind = head[3]
            await reader.readexactly(int.from_bytes(head[:3]))
        writer.write(frame(1, 4, 1, b"\x88"))
        with contextlib.suppress(ConnectionError):
            for _ in range(300):
                writer.write(flood)
                await writer.drain()
            await reader.read()
        self.lost.set()


@pytest.mark.checklist("C9")
@pytest.mark.parametrize("name", FROM_ORIGINS)
def test_an_origin_that_floods_loses_its_connection_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """30,000 frames that nobody asked for, behind the head of an answer. A slow machine gives credit for seconds."""
    monkeypatch.setattr(frames, "BURST", 1000.0)

    async def main() -> None:
        ca = trustme.CA()
        flood = FROM_ORIGINS[name] * 100
        server = Turning(flood)
        async with origin(server, server_context(ca, alpn=("h2",))) as port, world(tmp_path, port, [ca]) as made:
            asking = Client(*await connected(made, trusting(tmp_path, alpn=("h2",))))
            other = Client(*await connected(made, trusting(tmp_path, alpn=("h2",))))
            tracemalloc.start()
            try:
                stream = asking.request(get("/", NAME))
                with contextlib.suppress(ConnectionError):
                    await asking.until_ended(stream)
                await asyncio.wait_for(server.lost.wait(), 10)
                await other.until_ended(other.request(get("/fine", NAME)))
                _, peak_bytes = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert not asking.bodies[stream]
            assert peak_bytes < HELD_LIMIT_BYTES
            assert [head[":path"] for head, _ in server.requests] == ["/fine"]

    asyncio.run(main())


def test_an_origin_that_resets_each_request_at_once_is_no_flood_and_all_of_them_end(tmp_path: Path) -> None:
    """Rapid reset from the other side: 1,500 requests on one connection, each answered by a reset."""

    async def main() -> None:
        ca, server = trustme.CA(), Origin()
        async with origin(server, server_context(ca, alpn=("h2",))) as port, world(tmp_path, port, [ca]) as made:
            asking = Client(*await connected(made, trusting(tmp_path, alpn=("h2",))))
            for _ in range(15):
                await asking.until_ended(*(asking.request(get("/reset", NAME)) for _ in range(100)))
            fine = asking.request(get("/fine", NAME))
            await asking.until_ended(fine)
            assert asking.bodies[fine] == b"you asked for /fine"
            assert len(server.requests) == 1501
            assert made.connects == 0

    asyncio.run(main())


def test_clients_that_dribble_and_origins_that_do_hold_nobody_up(tmp_path: Path) -> None:
    """Half a request, half an answer, a byte at a time: others are served meanwhile."""

    class Dribbling(Pages):
        async def answer(self, path: str, writer: asyncio.StreamWriter) -> None:
            if path != "/slow":
                return await super().answer(path, writer)
            for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n":
                writer.write(bytes([byte]))
                await asyncio.sleep(0.01)

    async def served(made: World) -> bool:
        reader, writer = await connected(made, trusting(tmp_path))
        writer.write(REQUEST)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        return answer.endswith(b"you asked for /fine")

    async def main() -> None:
        ca = trustme.CA()
        async with origin(Dribbling(), server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
            slow = [await connected(made, trusting(tmp_path)) for _ in range(10)]
            asks = REQUEST.replace(b"/fine", b"/slow")
            for at in range(20):
                for number, (_, writer) in enumerate(slow):
                    writer.write(asks if number % 2 and not at else asks[at : at + 1] if number % 2 == 0 else b"")
                assert at % 10 or await served(made)
            for _, writer in slow:
                writer.close()

    asyncio.run(main())


# --- WebSocket --------------------------------------------------------------------------------------------------------
def test_fragments_without_an_end_are_relayed_and_held_by_nobody(tmp_path: Path) -> None:
    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n")
        writer.write(b"\x01\x00")
        for _ in range(400):
            writer.write((b"\x00\x7e\xff\xff" + bytes(65535)) + b"\x00\x00" * 20)
            await writer.drain()
        writer.close()

    async def main() -> None:
        ca = trustme.CA()
        async with origin(answers, server_context(ca)) as port, world(tmp_path, port, [ca], inspectors=[Far()]) as made:
            reader, writer = await connected(made, trusting(tmp_path))
            writer.write(
                f"GET / HTTP/1.1\r\nHost: {NAME}\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n".encode()
            )
            await reader.readuntil(b"\r\n\r\n")
            tracemalloc.start()
            got_bytes = 0
            try:
                while data := await asyncio.wait_for(reader.read(1 << 16), 10):
                    got_bytes += len(data)
                _, peak_bytes = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert got_bytes == 2 + 400 * (4 + 65535 + 40)
            assert peak_bytes < HELD_LIMIT_BYTES
            assert made.recorder.faults == []
            writer.close()

    asyncio.run(main())


class Far(Word):
    """Keeps nothing of what it reads."""

    def open(self, part: object) -> Far:  # type: ignore[override]
        return self

    def feed(self, data: bytes) -> tuple[()]:
        return ()

    def close(self) -> tuple[()]:
        return ()


def test_a_message_that_unfolds_into_far_more_is_relayed_and_said_not_to_be_read(tmp_path: Path) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with (
            origin(serve(deflate=True), server_context(ca)) as port,
            world(tmp_path, port, [ca], inspectors=[Far()]) as made,
        ):
            peer = await opened(made, tmp_path, deflate=True)
            bomb = zlib_bomb(8 << 20)
            peer.writer.write(bomb)
            async with asyncio.timeout(10):
                while not made.recorder.faults:
                    await asyncio.sleep(0.01)
            fault = made.recorder.faults[0]  # the echo may be one more
            assert (fault.what, fault.failed) == ("not_inspected", "open")
            assert "expands" in fault.detail
            peer.writer.close()

    asyncio.run(main())


def zlib_bomb(size_bytes: int) -> bytes:
    """One text message of a client's, compressed."""
    packer = zlib.compressobj(9, wbits=-15)
    packed = packer.compress(b"0" * size_bytes) + packer.flush(zlib.Z_SYNC_FLUSH)
    payload = packed.removesuffix(b"\0\0\xff\xff")
    return b"\xc1\xfe" + len(payload).to_bytes(2) + bytes(4) + payload
