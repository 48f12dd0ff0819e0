"""What of a body waits for inspectors, and what becomes of what they find in it: stopped, masked, or only told."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme
from engine_h2 import Client, Origin, get
from engine_world import NAME, Word, World, connected, origin, server_context, trusting, world

from mitmsec.audit.event import Outcome
from mitmsec.core.inspection import Inspection, Part, PartKind
from mitmsec.core.messages import Plaintext
from mitmsec.core.model import Delivery, Finding, OnFinding, Severity
from mitmsec.engine.withheld import TAIL_BYTES, WINDOW_BYTES

WORD = b"SECRET"


class Placed:
    """Finds each SECRET in bodies and says where; where `late`, only at their end."""

    def __init__(self, *, late: bool = False) -> None:
        self.name, self._late = "placed", late

    def open(self, part: Part) -> Inspection | None:
        return _Placing(self._late) if part.kind is PartKind.BODY else None


class _Placing:
    def __init__(self, late: bool) -> None:
        self._late, self._content, self._from = late, b"", 0

    def feed(self, data: bytes) -> Sequence[Finding]:
        self._content += data
        return () if self._late else self._found()

    def close(self) -> Sequence[Finding]:
        return self._found()

    def _found(self) -> list[Finding]:
        found = []
        while (at := self._content.find(WORD, self._from)) >= 0:
            self._from = at + len(WORD)
            found.append(
                Finding(
                    detector="placed",
                    severity=Severity.HIGH,
                    confidence=1.0,
                    summary="the word",
                    evidence="",
                    location=f"body+{at}",
                    offset=at,
                    size_bytes=len(WORD),
                )
            )
        return found


class Sink:
    """An HTTP/1.1 origin that keeps what comes, and answers once a request is complete."""

    def __init__(self, answer: bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok") -> None:
        self.got, self.heads, self._answer = bytearray(), bytearray(), answer

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads += head
        if head.startswith(b"GET"):
            writer.write(self._answer)
            await writer.drain()
        while data := await reader.read(65536):
            self.got += data
            if self.got.endswith(b"\r\n0\r\n\r\n") or self.got.endswith(b"THE END"):
                writer.write(self._answer)


def told(made: World, delivery: Delivery) -> None:
    made.decision = msgspec.structs.replace(made.decision, delivery=delivery)


def plain_world(tmp_path: Path, port: int, on_finding: OnFinding, **more: Any) -> Any:
    return world(tmp_path, port, inspectors=[Placed(**more)], on_finding=on_finding, kind=Plaintext.HTTP)


POST = f"POST /up HTTP/1.1\r\nHost: {NAME}\r\n".encode()


async def all_of(reader: asyncio.StreamReader, got: bytearray) -> None:
    while data := await asyncio.wait_for(reader.read(65536), 10):
        got += data


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("delivery", Delivery)
@pytest.mark.parametrize("framing", ["chunked", "length"])
def test_an_upload_whose_end_gives_it_away_is_never_complete(tmp_path: Path, delivery: Delivery, framing: str) -> None:
    async def main() -> None:
        sink = Sink()
        body = b"x" * 200_000 + b"SECRET" + b"x" * 5 + b"THE END"
        async with origin(sink, None) as port, plain_world(tmp_path, port, OnFinding.BLOCK, late=True) as made:
            told(made, delivery)
            reader, writer = await connected(made, None)
            if framing == "length":
                writer.write(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            else:
                writer.write(POST + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
            answer = await asyncio.wait_for(reader.read(), 10)
            assert answer.startswith(b"HTTP/1.1 403 ")
            assert b"Finding: placed: the word\nRule: the rule\nConnection: flow-1\n" in answer
            assert not sink.got.endswith((b"THE END", b"0\r\n\r\n"))
            if delivery is not Delivery.HOLD:
                assert b"SECRET" not in sink.got
            await made.end()

    asyncio.run(main())


def test_a_download_whose_end_gives_it_away_is_reset_over_http1(tmp_path: Path) -> None:
    """Even one whose end is the connection's: no client takes it for whole."""

    async def main() -> None:
        answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + b"x" * 100_000 + b"SECRET"

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()

        async with origin(serve, None) as port, plain_world(tmp_path, port, OnFinding.BLOCK) as made:
            reader, writer = await connected(made, None)
            writer.write(f"GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
            got = bytearray()
            with pytest.raises(ConnectionResetError):
                await all_of(reader, got)
            assert WORD not in got
            assert (await made.end()).outcome == Outcome.BLOCKED

    asyncio.run(main())


ANSWERS: dict[str, tuple[str, dict[str, str], bytes]] = {
    "/clean": ("200", {"content-length": "5"}, b"clean"),
    "/small": ("200", {"content-length": "30000"}, b"SECRET".rjust(30_000, b"x")),
    "/part": ("206", {"content-length": "8", "content-range": "bytes 0-7/100"}, b"a SECRET"),
    "/head": ("200", {"content-length": "70000", "x-note": "a SECRET"}, b"x" * 70_000),
    "/same": ("304", {"content-length": "70000", "x-note": "a SECRET"}, b""),
    "/none": ("204", {"x-note": "a SECRET"}, b""),
    "/same-clean": ("304", {"content-length": "70"}, b""),
    "/trailed": ("200", {"content-length": "5"}, b"clean"),  # over HTTP/2, which has trailers after such a body
}


class Answering(Origin):
    def _answer(self, connection: Any, stream: int, path: str, left: dict[int, int]) -> None:
        status, fields, body = ANSWERS[path]
        is_empty = not body or self.requests[-1][0][":method"] == "HEAD"
        connection.send_headers(stream, [(":status", status), *fields.items()], end_stream=is_empty)
        for at in () if is_empty else range(0, len(body), 16_000):
            is_last = path != "/trailed" and at + 16_000 >= len(body)
            connection.send_data(stream, body[at : at + 16_000], end_stream=is_last)
        if path == "/trailed":
            connection.send_headers(stream, [("x-note", "a SECRET")], end_stream=True)


async def answer_plainly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        method, path, _ = line.decode().split()
        await reader.readuntil(b"\r\n\r\n")
        status, fields, body = ANSWERS[path]
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        writer.write(f"HTTP/1.1 {status} So\r\n{head}\r\n".encode() + (b"" if method == "HEAD" else body))


PASSED = {("GET", "/clean"): "200", ("GET", "/same-clean"): "304", ("HEAD", "/clean"): "200", ("HEAD", "/small"): "200"}
STOPPED = [("GET", path) for path in ("/small", "/part", "/head", "/same", "/none")] + [("HEAD", "/head")]


def check_page(method: str, got: tuple[str, bytes], number: int) -> None:
    status, body = got
    assert status == "403"
    text = (
        "403 Forbidden\n\nmitmsec blocked the answer to this request because of what it carries.\nFinding: word: the "
    )
    assert body == (b"" if method == "HEAD" else f"{text}word\nRule: the rule\nConnection: flow-{number}\n".encode())


def check_record(made: World, count: int) -> None:
    blocked = [seen for seen in made.recorder.requests if seen.outcome is Outcome.BLOCKED]
    assert len(blocked) == count
    assert {(seen.status, seen.answered_by, seen.content_type) for seen in blocked} == {(403, "mitmsec", None)}
    assert made.recorder.faults == []


def test_a_small_answer_that_must_not_arrive_is_a_page_over_http1(tmp_path: Path) -> None:
    """Nothing of it has gone on, its head not either. What may arrive does, and its connection stays."""

    async def ask(made: World, method: str, path: str) -> tuple[str, bytes]:
        reader, writer = await connected(made, None)
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode() * 2)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        status = head.split()[1].decode()
        if status == "403":  # which ends the connection, in order
            return status, await asyncio.wait_for(reader.read(), 10)
        size_bytes = len(ANSWERS[path][2]) if method == "GET" else 0
        body = await reader.readexactly(size_bytes)
        assert head + body == (await reader.readuntil(b"\r\n\r\n")) + await reader.readexactly(size_bytes)
        return status, body

    async def main() -> None:
        async with (
            origin(answer_plainly, None) as port,
            world(tmp_path, port, inspectors=[Word()], on_finding=OnFinding.BLOCK, kind=Plaintext.HTTP) as made,
        ):
            for (method, path), status in PASSED.items():
                assert await ask(made, method, path) == (status, ANSWERS[path][2] if method == "GET" else b"")
            for number, (method, path) in enumerate(STOPPED, start=len(PASSED) + 1):
                check_page(method, await ask(made, method, path), number)
            check_record(made, len(STOPPED))

    asyncio.run(main())


def test_a_small_answer_that_must_not_arrive_is_a_page_over_http2(tmp_path: Path) -> None:
    """The other streams of its connection go on."""

    async def main() -> None:
        ca = trustme.CA()
        async with (
            origin(Answering(), server_context(ca, alpn=("h2",))) as port,
            world(tmp_path, port, [ca], inspectors=[Word()], on_finding=OnFinding.BLOCK) as made,
        ):
            client = Client(*await connected(made, trusting(tmp_path, alpn=("h2",))))
            asked = [*STOPPED, ("GET", "/trailed"), *PASSED]
            streams = [client.request([(":method", method), *get(path, NAME)[1:]]) for method, path in asked]
            await client.until_ended(*streams)
            for stream, (method, path) in zip(streams, asked, strict=True):
                got = client.headers[stream][":status"], bytes(client.bodies[stream])
                if (method, path) in PASSED:
                    assert got == (PASSED[method, path], ANSWERS[path][2] if method == "GET" else b"")
                else:
                    check_page(method, got, 1)
            assert not client.resets
            check_record(made, len(STOPPED) + 1)

    asyncio.run(main())


@pytest.mark.parametrize("delivery", [Delivery.WINDOW, Delivery.TAIL])
def test_the_end_of_what_has_come_waits(tmp_path: Path, delivery: Delivery) -> None:
    keep_bytes = WINDOW_BYTES if delivery is Delivery.WINDOW else TAIL_BYTES

    async def main() -> None:
        sink = Sink()
        async with origin(sink, None) as port, plain_world(tmp_path, port, OnFinding.BLOCK) as made:
            told(made, delivery)
            reader, writer = await connected(made, None)
            writer.write(POST + b"Content-Length: 200000\r\n\r\n" + b"x" * 199_000)
            await until(lambda: len(sink.got) >= 199_000 - keep_bytes)
            if delivery is Delivery.TAIL:
                await asyncio.sleep(0.5)
                assert len(sink.got) == 199_000 - keep_bytes
            else:  # somebody may wait for what has come: it goes on when nothing follows it
                await until(lambda: len(sink.got) == 199_000)
            writer.write(b"y" * 993 + b"THE END")
            assert (await reader.readline()) == b"HTTP/1.1 200 OK\r\n"
            assert len(sink.got) == 200_000

    asyncio.run(main())


@pytest.mark.parametrize("size_bytes", [40_000, 400_000], ids=["held", "streamed"])
@pytest.mark.parametrize("framing", ["chunked", "length"])
def test_what_is_found_in_an_upload_is_masked_and_its_framing_stays(
    tmp_path: Path, size_bytes: int, framing: str
) -> None:
    async def main() -> None:
        sink = Sink()
        body = b"SECRET".ljust(size_bytes, b"x") + b"SECRET and THE END"
        masked = body.replace(b"SECRET", b"******")
        async with origin(sink, None) as port, plain_world(tmp_path, port, OnFinding.REDACT) as made:
            reader, writer = await connected(made, None)
            if framing == "length":
                writer.write(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            else:
                writer.write(POST + b"Transfer-Encoding: chunked\r\n\r\n")
                for at in range(0, len(body), 1003):
                    piece = body[at : at + 1003]
                    writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                writer.write(b"0\r\n\r\n")
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
            assert (masked if framing == "length" else _unchunked(bytes(sink.got))) == (
                bytes(sink.got) if framing == "length" else masked
            )
            assert b"accept-encoding: identity\r\n" in sink.heads.lower()
            assert [seen.verdict for seen in made.recorder.findings] == [OnFinding.REDACT] * 2

    asyncio.run(main())


def _unchunked(data: bytes) -> bytes:
    body = b""
    while True:
        line, _, data = data.partition(b"\r\n")
        size = int(line, 16)
        if not size:
            return body
        body, data = body + data[:size], data[size + 2 :]


@pytest.mark.parametrize("version", ["1.1", "2"])
def test_what_is_found_in_a_download_is_masked(tmp_path: Path, version: str) -> None:
    class Telling(Origin):
        def _answer(self, connection: Any, stream: int, path: str, left: dict[int, int]) -> None:
            connection.send_headers(stream, [(":status", "200"), ("content-length", "20006")])
            connection.send_data(stream, b"x" * 10_000 + b"SEC")
            connection.send_data(stream, b"RET" + b"x" * 10_000, end_stream=True)

    async def main() -> None:
        ca, h2 = trustme.CA(), version == "2"
        body = b"x" * 10_000 + b"SECRET" + b"x" * 10_000
        serve = Telling() if h2 else Sink(b"HTTP/1.1 200 OK\r\ncontent-length: 20006\r\n\r\n" + body)
        alpn = ("h2",) if h2 else ("http/1.1",)
        async with (
            origin(serve, server_context(ca, alpn=alpn)) as port,
            world(tmp_path, port, [ca], inspectors=[Placed()], on_finding=OnFinding.REDACT) as made,
        ):
            reader, writer = await connected(made, trusting(tmp_path, alpn=alpn))
            if h2:
                asking = Client(reader, writer)
                stream = asking.request(get("/", NAME))
                await asking.until_ended(stream)
                got = asking.bodies[stream]
            else:
                writer.write(f"GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
                await reader.readuntil(b"\r\n\r\n")
                got = await asyncio.wait_for(reader.readexactly(20_006), 10)
            assert got == body.replace(b"SECRET", b"******")

    asyncio.run(main())


def test_what_cannot_be_masked_does_not_go_on(tmp_path: Path) -> None:
    """Under a content coding, or where it has gone on already."""

    async def main() -> None:
        sink = Sink()
        coded = gzip.compress(b"a SECRET")
        async with origin(sink, None) as port, plain_world(tmp_path, port, OnFinding.REDACT) as made:
            reader, writer = await connected(made, None)
            head = b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(coded)
            writer.write(POST + head + coded)
            assert (await reader.readline()).startswith(b"HTTP/1.1 403 ")
            reader, writer = await connected(made, None)
            writer.write(POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nSEC\r\n")
            await until(lambda: b"SEC" in sink.got)  # after a while
            writer.write(b"3\r\nRET\r\n0\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 403 ")
            assert b"RET" not in sink.got
            assert [seen.verdict for seen in made.recorder.findings] == [OnFinding.BLOCK] * 2
            with contextlib.suppress(ConnectionError):
                writer.close()

    asyncio.run(main())


@pytest.mark.parametrize("on_finding", [OnFinding.ALERT, OnFinding.BLOCK])
def test_an_upload_that_unfolds_to_a_lot_of_work_holds_nobody_up(tmp_path: Path, on_finding: OnFinding) -> None:
    """Each of its messages takes a millisecond to begin: 0.9 s in all, out of one read."""

    class Dear(Placed):
        def open(self, part: Any) -> Any:
            end_s = time.process_time() + 0.001
            while time.process_time() < end_s:
                pass
            return super().open(part)

    async def main() -> None:
        sink, longest_s = Sink(), 0.0
        body = gzip.compress(b"\0\0\0\0\1x" * 900)
        head = b"Content-Type: application/grpc\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"

        async def beat() -> None:
            nonlocal longest_s
            before_s = time.process_time()
            while True:
                await asyncio.sleep(0)
                longest_s = max(longest_s, time.process_time() - before_s)
                before_s = time.process_time()

        async with (
            origin(sink, None) as port,
            world(tmp_path, port, inspectors=[Dear()], on_finding=on_finding, kind=Plaintext.HTTP) as made,
        ):
            reader, writer = await connected(made, None)
            beating = asyncio.create_task(beat())
            writer.write(POST + head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
            answer = await asyncio.wait_for(reader.readuntil(b"ok"), 20)
            beating.cancel()
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert 0 < longest_s < 0.25
            assert made.recorder.faults == []
            writer.close()
            await made.end()

    asyncio.run(main())
