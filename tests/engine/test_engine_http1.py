"""HTTP/1.1 that is not as it should be, from either end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

import pytest
import trustme
from engine_world import NAME, Pages, Word, connected, curl, origin, server_context, trusting, world
from h11._receivebuffer import ReceiveBuffer
from mitmproxy.connection import Server
from mitmproxy.http import Request
from mitmproxy.proxy import events
from mitmproxy.proxy.context import Context

from mitmsec.audit.event import Outcome
from mitmsec.core.messages import Plaintext
from mitmsec.core.model import Endpoint, OnFinding
from mitmsec.engine import http1, pages
from mitmsec.engine.embedded import Embedded
from mitmsec.engine.exchange import Exchange
from mitmsec.engine.http1 import HEAD_LIMIT_BYTES


@pytest.mark.checklist("C9")
@pytest.mark.parametrize(
    "head",
    [
        "GET\r\n\r\n",
        "\x00\x01\x02\r\n\r\n",
        f"POST / HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        f"POST / HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        f"POST / HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: -1\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: {NAME}\r\nbad header: x\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: {NAME}\r\nX: {'y' * (2 * HEAD_LIMIT_BYTES)}",
    ],
    ids=["line", "bytes", "smuggling", "two-lengths", "negative", "name", "endless"],
)
def test_a_malformed_request_goes_nowhere(tmp_path: Path, head: str) -> None:
    async def main() -> None:
        ca, pages = trustme.CA(), Pages()
        async with origin(pages, server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
            reader, writer = await connected(made, trusting(tmp_path))
            writer.write(head.encode("latin-1"))
            assert (await reader.readline()).split()[1] in {b"400", b"431"}
            page = await asyncio.wait_for(reader.read(), 10)
            assert b"Connection: flow-1\n" in page
            assert b"html" not in page
            assert b"mitmproxy" not in page
            writer.close()
            assert (await made.end()).outcome == Outcome.MALFORMED
            assert pages.requests == []
            assert "malformed_request" in [fault.what for fault in made.recorder.faults]

    asyncio.run(main())


def test_a_version_that_nobody_knows_goes_nowhere(tmp_path: Path) -> None:
    async def main() -> None:
        ca, pages = trustme.CA(), Pages()
        async with origin(pages, server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
            reader, writer = await connected(made, trusting(tmp_path))
            writer.write(f"GET / HTTP/9.9\r\nHost: {NAME}\r\n\r\n".encode())
            assert (await reader.readline()).split()[1] == b"400"
            assert pages.requests == []
            assert [fault.what for fault in made.recorder.faults] == ["malformed_request"]

    asyncio.run(main())


@pytest.mark.parametrize(
    "answer",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * (2 * HEAD_LIMIT_BYTES),
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
    ids=["line", "length", "endless", "smuggling"],
)
def test_a_malformed_answer_ends_the_connection_and_shows_no_page(tmp_path: Path, answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await reader.read()

    async def main() -> None:
        ca = trustme.CA()
        async with origin(serve, server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
            status, out, _ = await curl(made, tmp_path)
            assert (status, out) == (52, "")  # an empty answer
            await made.end()

    asyncio.run(main())


def test_a_chunk_whose_head_never_ends_is_cut_off(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5;" + b"x" * (3 * HEAD_LIMIT_BYTES))
        await reader.read()

    async def main() -> None:
        ca = trustme.CA()
        async with origin(serve, server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
            assert (await curl(made, tmp_path))[0] == 18
            await made.end()

    asyncio.run(main())


def test_an_answer_that_ends_with_its_connection(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nas long as it lasts")

    async def main() -> None:
        ca = trustme.CA()
        async with origin(serve, server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
            assert (await curl(made, tmp_path))[:2] == (0, "as long as it lasts")
            assert (await made.end()).outcome == Outcome.COMPLETED

    asyncio.run(main())


@pytest.mark.parametrize(
    ("answer", "is_there"),
    [
        (b"content-length: 4\r\n\r\nbody", True),
        (b"connection: close\r\n\r\nbody", True),
        (b"transfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n", False),  # its end goes out with it
    ],
    ids=["length", "end", "chunked"],
)
def test_an_answer_that_is_whole_does_not_wait_for_the_books(
    answer: bytes, is_there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: list[bytes] = []
    finish = Exchange.finish

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n" + answer)

    async def main() -> None:
        async with origin(serve, None) as port, world(tmp_path, port, kind=Plaintext.HTTP) as made:
            with socket.create_connection(("127.0.0.1", made.port)) as client:

                def finished(self: Exchange) -> None:
                    with contextlib.suppress(BlockingIOError):
                        there.append(client.recv(1000, socket.MSG_PEEK | socket.MSG_DONTWAIT))
                    finish(self)

                monkeypatch.setattr(Exchange, "finish", finished)
                client.sendall(f"GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
                client.shutdown(socket.SHUT_WR)
                await made.end()
                assert b"body" in client.recv(1000)

    asyncio.run(main())
    assert [data.endswith(b"body") for data in there[:1]] == [True] * is_there


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "DELETE"])
def test_other_methods_pass(tmp_path: Path, method: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nx-method: %b\r\ncontent-length: 4\r\n\r\n" % head.split()[0])
        if method != "HEAD":
            writer.write(b"body")
        await reader.read()

    async def main() -> None:
        ca = trustme.CA()
        async with origin(serve, server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
            words = ("-I",) if method == "HEAD" else ("-i", "-X", method)
            status, out, _ = await curl(made, tmp_path, *words)
            assert status == 0
            assert f"x-method: {method}\r\n" in out
            assert made.recorder.requests[0].method == method

    asyncio.run(main())


def test_expectations_are_met_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        ca, pages = trustme.CA(), Pages()
        async with origin(pages, server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
            words = ("-H", "Expect: 100-continue", "--expect100-timeout", "15", "-d", "a body")
            status, _, _ = await asyncio.wait_for(curl(made, tmp_path, *words), 10)
            assert (status, pages.requests[0][2]) == (0, b"a body")

    asyncio.run(main())


def test_a_client_that_sends_its_end_gets_its_answer(tmp_path: Path) -> None:
    async def main() -> None:
        async with origin(Pages(), None) as port, world(tmp_path, port, kind=Plaintext.HTTP) as made:
            reader, writer = await connected(made, None)
            writer.write(f"GET /last HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
            writer.write_eof()
            assert (await asyncio.wait_for(reader.read(), 10)).endswith(b"you asked for /last")
            writer.close()
            end = await made.end()
            assert (end.outcome, end.error) == (Outcome.COMPLETED, "")

    asyncio.run(main())


TRAILERS = b"4\r\nbody\r\n0\r\nX-End: %b\r\nContent-Length: 3\r\nHost: evil.test\r\n\r\n"


async def _trailing(reader: asyncio.StreamReader) -> bytes:
    """A chunked message as it came, from its first chunk to the end of its trailers."""
    return await asyncio.wait_for(reader.readuntil(b"0\r\n"), 10) + await reader.readuntil(b"\r\n\r\n")


@pytest.mark.parametrize("pipelined", [False, True])
def test_trailers_pass_both_ways_and_are_inspected(tmp_path: Path, pipelined: bool) -> None:
    """But for those that a lenient reader would take for the message's framing or address."""
    got: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            got.append(await _trailing(reader))
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + TRAILERS % b"down")

    async def main() -> None:
        ca, word = trustme.CA(), Word()
        async with origin(serve, server_context(ca)) as port, world(tmp_path, port, [ca], inspectors=[word]) as made:
            reader, writer = await connected(made, trusting(tmp_path))
            request = (
                f"POST / HTTP/1.1\r\nHost: {NAME}\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + TRAILERS % b"up"
            )
            writer.write(request * (1 + pipelined))
            for number in range(2):
                await reader.readuntil(b"\r\n\r\n")
                assert await _trailing(reader) == b"4\r\nbody\r\n0\r\nX-End: down\r\n\r\n"
                if not number and not pipelined:
                    writer.write(request)
            assert got == [b"4\r\nbody\r\n0\r\nX-End: up\r\n\r\n"] * 2
            assert word.content("headers", sent=True)[1::2] == [b"X-End: up\r\n"] * 2
            assert word.content("headers", sent=False)[1::2] == [b"X-End: down\r\n"] * 2
            assert [seen.what for seen in made.recorder.faults] == []

    asyncio.run(main())


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_finding_in_trailers_breaks_the_message_off(tmp_path: Path, way: str) -> None:
    got = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if way == "down":
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + TRAILERS % b"SECRET")
        while data := await reader.read(1000):
            got.extend(data)

    async def main() -> None:
        ca = trustme.CA()
        async with (
            origin(serve, server_context(ca)) as port,
            world(tmp_path, port, [ca], inspectors=[Word()], on_finding=OnFinding.BLOCK) as made,
        ):
            reader, writer = await connected(made, trusting(tmp_path))
            head = f"POST / HTTP/1.1\r\nHost: {NAME}\r\nTransfer-Encoding: chunked\r\n\r\n"
            writer.write(head.encode() + TRAILERS % (b"SECRET" if way == "up" else b"fine"))
            assert (await made.end()).outcome == (Outcome.COMPLETED if way == "up" else Outcome.BLOCKED)
            answered = b""
            with contextlib.suppress(ConnectionError):
                answered = await asyncio.wait_for(reader.read(), 10)
            assert b"SECRET" not in got + answered
            assert answered.startswith(b"HTTP/1.1 403") is (way == "up")
            assert b"\r\n0\r\n" not in (got if way == "up" else answered)
            assert [seen.finding.location for seen in made.recorder.findings] == [
                "request.headers" if way == "up" else "response.headers"
            ]

    asyncio.run(main())


# --- costs ------------------------------------------------------------------------------------------------------------
class Buffer(ReceiveBuffer):
    """Counts the bytes that are copied out of it by looking."""

    looked_bytes = 0

    def __bytes__(self) -> bytes:
        Buffer.looked_bytes += len(self)
        return super().__bytes__()


def _context() -> Context:
    client, origin = Endpoint(address="192.0.2.1", port=1), Endpoint(address="192.0.2.2", port=2)
    context = Embedded().context("flow-1", client, origin, 0.0)
    context.server = Server(address=("192.0.2.2", 2))
    return context


def _told(side: http1.Front | http1.Back, *pieces: bytes) -> int:
    """What looking at `pieces` copied; none of it means anything yet."""
    side.buf, Buffer.looked_bytes = Buffer(), 0
    for piece in pieces:
        assert not list(side.handle_event(events.DataReceived(side.conn, piece)))
    return Buffer.looked_bytes


def test_empty_lines_before_a_request_cost_what_they_weigh() -> None:
    side = http1.Front(_context(), lambda: pages.unreadable("flow-1"), lambda: None)
    list(side.handle_event(events.Start()))
    size = 1 << 16
    assert _told(side, b"\r\n" * (size // 2)) <= 2 * size
    assert len(side.buf) == 0
    assert _told(side, *[b"\r", b"\n"] * 100, b"GET / HT") <= 1000
    assert bytes(side.buf) == b"GET / HT"
    assert _told(side, *[b"x"] * 10_000) < 1000


@pytest.mark.parametrize("empty", [b"\n", b"\r\n\n", b"\n\r\n", b"\r\n\r\n"])
def test_empty_lines_of_any_kind_before_a_request_are_skipped(empty: bytes) -> None:
    side = http1.Front(_context(), lambda: pages.unreadable("flow-1"), lambda: None)
    list(side.handle_event(events.Start()))
    said = list(side.handle_event(events.DataReceived(side.conn, empty + b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")))
    assert said
    assert side.request is not None


def test_interim_answers_cost_what_they_weigh() -> None:
    side = http1.Back(_context(), lambda: None)
    list(side.handle_event(events.Start()))
    side.request, side.stream_id = Request.make("GET", "http://a.test/"), 1
    interim = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
    assert _told(side, interim * 1000) <= 2 * len(interim * 1000)
    assert len(side.buf) == 0
    assert _told(side, *(interim[at : at + 1] for at in range(len(interim))), b"HTTP/1.1 2") < len(interim) ** 2
    assert bytes(side.buf) == b"HTTP/1.1 2"
