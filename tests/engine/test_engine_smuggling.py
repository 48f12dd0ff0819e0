"""Messages that two readers could take for different ones: what one side reads, the other gets, or nobody does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import trustme
from engine_world import NAME, World, connected, origin, server_context, trusting, world

from mitmsec.audit.event import Outcome

HOST = f"Host: {NAME}\r\n".encode()
CHUNKED, CHUNKS = b"Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n0\r\n\r\n"
FIVE = b"Content-Length: 5\r\n"


def post(fields: bytes, body: bytes = b"hello", line: bytes = b"POST / HTTP/1.1") -> bytes:
    return line + b"\r\n" + HOST + fields + b"\r\n" + body


REFUSED = {
    "CL.TE": post(FIVE + CHUNKED, CHUNKS),
    "TE.CL": post(CHUNKED + FIVE, CHUNKS),
    "another coding": post(b"Transfer-Encoding: xchunked\r\n", CHUNKS),
    "another coding, and a length": post(b"Transfer-Encoding: xchunked\r\n" + FIVE),
    "no coding, and a length": post(b"Transfer-Encoding:\r\n" + FIVE),
    "a coding behind a vertical tab, and a length": post(b"Transfer-Encoding: \x0bchunked\r\n" + FIVE),
    "chunked is not the last": post(b"Transfer-Encoding: chunked, identity\r\n", CHUNKS),
    "identity before": post(b"Transfer-Encoding: identity, chunked\r\n", CHUNKS),
    "quoted": post(b'Transfer-Encoding: "chunked"\r\n', CHUNKS),
    "TE.TE": post(CHUNKED + CHUNKED, CHUNKS),
    "TE.TE, another": post(CHUNKED + b"Transfer-Encoding: x\r\n", CHUNKS),
    "a space before the colon": post(b"Transfer-Encoding : chunked\r\n", CHUNKS),
    "the same beside a length": post(b"Content-Length: 15\r\nTransfer-Encoding : chunked\r\n", CHUNKS),
    "folded": post(b"Transfer-Encoding:\r\n chunked\r\n", CHUNKS),
    "folded beside a length": post(b"Content-Length: 15\r\nTransfer-Encoding:\r\n chunked\r\n", CHUNKS),
    "another field folded": post(b"X: a\r\n b\r\n" + FIVE),
    "the first line folded": b"POST / HTTP/1.1\r\n X: y\r\n" + HOST + FIVE + b"\r\nhello",
    "a bare CR": post(b"X: a\rTransfer-Encoding: chunked\r\n" + FIVE),
    "a bare CR in the line": post(FIVE, line=b"POST /\rx HTTP/1.1"),
    "a NUL": post(b"X: a\0b\r\n" + FIVE),
    "a NUL in a name": post(b"X\0: a\r\n" + FIVE),
    "no colon": post(b"X\r\n" + FIVE),
    "no name": post(b": a\r\n" + FIVE),
    "chunks in HTTP/1.0": post(CHUNKED, CHUNKS, b"POST / HTTP/1.0"),
    "more behind the version": post(FIVE, line=b"POST / HTTP/1.1 x"),
    **{
        f"a length of {length[:12]!r}": post(b"Content-Length: " + length + b"\r\n")
        for length in (b"+5", b"5, 5", b"5, 6", b"0x5", b"1_0", b"005", "٥".encode(), b"\xb2", b"9" * 40, b"", b"5\0")
    },
    "two equal lengths": post(FIVE + FIVE),
    "two lengths": post(FIVE + b"Content-Length: 0\r\n"),
    **{
        f"a chunk {head[:12]!r}": post(CHUNKED, head + b"\r\nhello\r\n0\r\n\r\n")
        for head in (b"0x5", b"+5", b"-5", b" 5", b"", b"0" * 30 + b"5", b"5;a\n")
    },
    "a chunk that goes on": post(CHUNKED, b"5\r\nhello!\r\n0\r\n\r\n"),
    "a chunk without its end": post(CHUNKED, b"5\r\nhelloXX0\r\n\r\n"),
}
"""None of it reaches the origin."""
AS_READ = {
    "a tab": (post(b"Transfer-Encoding:\tchunked\r\n", CHUNKS), post(CHUNKED, CHUNKS)),
    "a vertical tab": (post(b"Transfer-Encoding: \x0bchunked\r\n", CHUNKS), post(CHUNKED, CHUNKS)),
    "bare LF": (post(b"X: a\nTransfer-Encoding: chunked\r\n", CHUNKS), post(b"X: a\r\n" + CHUNKED, CHUNKS)),
    "only LF": (post(FIVE).replace(b"\r\n", b"\n"), post(FIVE)),
    "chunk extensions": (post(CHUNKED, b"5;a=b\r\nhello\r\n0;x\r\n\r\n"), post(CHUNKED, CHUNKS)),
    "a CR in an extension": (post(CHUNKED, b"5;a\rb\r\nhello\r\n0\r\n\r\n"), post(CHUNKED, CHUNKS)),
    "a space behind a chunk's size": (post(CHUNKED, b"5 \r\nhello\r\n0\r\n\r\n"), post(CHUNKED, CHUNKS)),
    "spaces in the line": (post(FIVE, line=b"POST  /  HTTP/1.1"), post(FIVE)),
    "a request in a body": (post(b"Content-Length: 3\r\n", b"GET", b"GET / HTTP/1.1"),) * 2,
    "a length by another name": (post(b"Content_Length: 0\r\n" + FIVE),) * 2,
}
"""What a client sends, and what its origin gets."""


class Heard:
    """An origin that keeps what it hears, and answers once to each connection."""

    def __init__(self) -> None:
        self.all: list[bytearray] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said = bytearray()
        self.all.append(said)
        while data := await reader.read(65536):
            said += data
            if said.endswith((b"hello", b"0\r\n\r\n", b"GET")):
                writer.write(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")

    @property
    def last(self) -> bytes:
        return bytes(self.all[-1]) if self.all else b""


@contextlib.asynccontextmanager
async def stage(tmp_path: Path) -> AsyncIterator[tuple[World, Heard]]:
    ca, heard = trustme.CA(), Heard()
    async with origin(heard, server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
        yield made, heard


async def told(made: World, tmp_path: Path, data: bytes) -> bytes:
    """What a client hears that says this, up to the end of its connection, or of a refusal."""
    reader, writer = await connected(made, trusting(tmp_path))
    writer.write(data)
    answer = await asyncio.wait_for(reader.readline(), 10)
    if b" 400 " not in answer:
        answer += await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer


def test_what_could_be_read_in_two_ways_reaches_no_origin(tmp_path: Path) -> None:
    async def main() -> None:
        async with stage(tmp_path) as (made, heard):
            for name, data in REFUSED.items():
                answer = await told(made, tmp_path, data)
                end = await made.end()
                assert heard.last == b"", (name, heard.last)
                assert answer.startswith(b"HTTP/1.1 400 ") or (answer == b"" and end.outcome == Outcome.MALFORMED), name
            assert len(made.recorder.faults) == len(REFUSED)
            assert {fault.what for fault in made.recorder.faults} == {"malformed_request"}

    asyncio.run(main())


def test_what_passes_reaches_the_origin_as_it_was_read(tmp_path: Path) -> None:
    async def main() -> None:
        async with stage(tmp_path) as (made, heard):
            for name, (data, expected) in AS_READ.items():
                answer = await told(made, tmp_path, data)
                assert answer.startswith(b"HTTP/1.1 204 "), name
                assert heard.last == expected, name
                await made.end()

    asyncio.run(main())


ANSWERS = {
    "a space before the colon": b"Content-Length : 5\r\n\r\nhello",
    "two lengths": b"Content-Length: 5\r\nContent-Length: 2\r\n\r\nhello",
    "two equal lengths": b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "a list of lengths": b"Content-Length: 5, 5\r\n\r\nhello",
    "a length and chunks": FIVE + CHUNKED + b"\r\n" + CHUNKS,
    "another coding": b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNKS,
    "chunked twice": CHUNKED + CHUNKED + b"\r\n" + CHUNKS,
    "folded": b"Transfer-Encoding:\r\n chunked\r\n\r\n" + CHUNKS,
}
HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


def test_an_answer_that_could_be_read_in_two_ways_reaches_no_client(tmp_path: Path) -> None:
    """Nor does what an origin says beyond its answer: it would be taken for the next one."""
    said = b""

    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        await reader.read()

    async def main() -> None:
        nonlocal said
        ca, asks = trustme.CA(), f"GET / HTTP/1.1\r\nHost: {NAME}\r\n".encode()
        async with origin(answers, server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
            for name, fields in ANSWERS.items():
                said = b"HTTP/1.1 200 OK\r\n" + fields
                assert await told(made, tmp_path, asks + b"\r\n") == b"", name
                end = await made.end()
                assert (end.outcome, end.error) == (Outcome.MALFORMED, "the origin broke HTTP"), name
            said = HELLO + HELLO.replace(b"hello", b"other")
            assert await told(made, tmp_path, asks + b"Connection: close\r\n\r\n") == HELLO
            said = b"HTTP/1.1 200 OK\r\n" + CHUNKED + b"\r\n5\r\nhelloXX0\r\n\r\n"
            assert (await told(made, tmp_path, asks + b"\r\n")).endswith(b"\r\n\r\n5\r\nhello\r\n")  # and no end of it
            assert [(await made.end()).outcome for _ in range(2)] == [Outcome.COMPLETED, Outcome.MALFORMED]

    asyncio.run(main())
