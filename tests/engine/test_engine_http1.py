"""HTTP/1.1 that is not as it should be, from either end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import trustme
from engine_world import NAME, Pages, connected, curl, origin, server_context, trusting, world

from mitmsec.audit.event import Outcome
from mitmsec.core.messages import Plaintext
from mitmsec.engine.http1 import HEAD_LIMIT_BYTES


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
