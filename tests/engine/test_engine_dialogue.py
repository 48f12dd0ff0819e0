"""Plaintext in both directions: HTTP/1.1, streams, inspection, and what a finding does."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import resource
import socket
from pathlib import Path
from typing import Any

import pytest
import trustme
from engine_h2 import Origin
from engine_world import NAME, Pages, Word, connected, curl, origin, server_context, trusting, world
from OpenSSL import SSL

from mitmsec.audit.event import Outcome, Seen
from mitmsec.core.inspection import Inspection, Part, PartKind
from mitmsec.core.messages import Plaintext
from mitmsec.core.model import OnFailure, OnFinding
from mitmsec.engine import dialogue
from mitmsec.engine.dialogue import SNIFF_S
from mitmsec.engine.leg import LEAST_CHUNK_BYTES, Leg


def test_a_request_is_recorded_without_its_query_values(tmp_path: Path) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with origin(Pages(), server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
            assert (await curl(made, tmp_path, path="/a?user=me&token=hidden"))[0] == 0
            (seen,) = made.recorder.requests
            assert seen.url == f"https://{NAME}:{port}/a?user=&token="
            assert (seen.method, seen.status, seen.http_version) == ("GET", 200, "HTTP/1.1")
            assert (seen.content_type, seen.response_bytes) == (
                "text/plain",
                len("you asked for /a?user=me&token=hidden"),
            )

    asyncio.run(main())


def test_plain_http_is_read_without_tls(tmp_path: Path) -> None:
    async def main() -> None:
        async with origin(Pages(), None) as port, world(tmp_path, port, kind=Plaintext.HTTP) as made:
            assert (await curl(made, tmp_path, path="/plain"))[:2] == (0, "you asked for /plain")
            end = await made.end()
            assert (end.outcome, end.tls) == (Outcome.COMPLETED, None)
            assert made.recorder.requests[0].url == f"http://{NAME}:{port}/plain"

    asyncio.run(main())


def test_nobodys_answer_waits_for_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    write = Leg.write

    def written(leg: Leg, data: bytes) -> None:
        if b"you asked" in data:
            order.append("answered")
        write(leg, data)

    async def main() -> None:
        async with origin(Pages(), None) as port, world(tmp_path, port, kind=Plaintext.HTTP) as made:
            record = made.recorder.record

            def recorded(seen: Seen) -> None:
                order.append(type(seen).__name__)
                record(seen)

            monkeypatch.setattr(made.recorder, "record", recorded)
            monkeypatch.setattr(Leg, "write", written)
            reader, writer = await connected(made, None)
            writer.write(f"GET /1 HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
            assert await reader.readuntil(b"for /1")
            writer.close()
            await made.end()
            assert order == ["answered", "RequestSeen"]

    asyncio.run(main())


def test_a_connection_serves_many_requests(tmp_path: Path) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with origin(Pages(), server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
            reader, writer = await connected(made, trusting(tmp_path))
            for path in ("/1", "/2", "/3"):
                writer.write(f"GET {path} HTTP/1.1\r\nHost: {NAME.upper()}:443\r\n\r\n".encode())
                assert await reader.readuntil(f"for {path}".encode())
            writer.close()
            assert (await made.end()).outcome == Outcome.COMPLETED
            assert len(made.recorder.requests) == 3
            assert made.connects == 0

    asyncio.run(main())


def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with origin(Pages(), server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
            reader, writer = await connected(made, trusting(tmp_path))
            for path in ("/1", "/2", "/3"):
                writer.write(f"GET {path} HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
            for path in ("/1", "/2", "/3"):
                assert await reader.readuntil(f"for {path}".encode())
            writer.close()
            await made.end()

    asyncio.run(main())


def test_an_origin_that_closed_is_reached_again_through_the_gate(tmp_path: Path) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with origin(Pages(), server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
            reader, writer = await connected(made, trusting(tmp_path))
            for number in (1, 2):
                writer.write(f"GET /close/{number} HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
                assert await reader.readuntil(f"for /close/{number}".encode())
                await asyncio.sleep(0.05)  # the origin's end is on its way, and nothing at the client tells of it
            assert made.connects == 1
            writer.close()
            assert (await made.end()).outcome == Outcome.COMPLETED

    asyncio.run(main())


def test_an_origin_that_cannot_be_reached_again_ends_the_connection(tmp_path: Path) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with origin(Pages(), server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
            made.refuses_connects = True
            reader, writer = await connected(made, trusting(tmp_path))
            writer.write(f"GET /close HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
            assert await reader.readuntil(b"for /close")
            await asyncio.sleep(0.05)
            writer.write(f"GET /again HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
            assert await reader.read() == b""  # the end, and no page of ours
            assert (await made.end()).outcome == Outcome.ORIGIN_UNREACHABLE

    asyncio.run(main())


@pytest.mark.checklist("U15")
@pytest.mark.parametrize(
    "head",
    [
        "GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n",
        f"GET http://evil.test/ HTTP/1.1\r\nHost: {NAME}\r\n\r\n",
        f"GET https://{NAME}/ HTTP/1.1\r\nHost: evil.test\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: {NAME}\r\nHost: evil.test\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: {NAME}.evil.test\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: user@{NAME}\r\n\r\n",
        f"CONNECT {NAME}:443 HTTP/1.1\r\nHost: {NAME}\r\n\r\n",
        "CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: evil.test\r\nContent-Length: 5\r\n\r\nhello",
        "POST / HTTP/1.1\r\nHost: evil.test\r\nExpect: 100-continue\r\nContent-Length: 5000000\r\n\r\n",
    ],
)
def test_a_request_for_another_name_is_misdirected(tmp_path: Path, head: str) -> None:
    async def main() -> None:
        ca, pages = trustme.CA(), Pages()
        async with origin(pages, server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
            reader, writer = await connected(made, trusting(tmp_path))
            writer.write(head.encode())
            assert (await reader.readline()).startswith(b"HTTP/1.1 421 ")
            writer.close()
            await made.end()
            assert pages.requests == []
            assert [seen.status for seen in made.recorder.requests] == [421]
            assert [(fault.what, fault.failed) for fault in made.recorder.faults] == [("misdirected_request", "closed")]

    asyncio.run(main())


@pytest.mark.parametrize("http", ["--http1.1", "--http2"])
def test_a_refused_head_request_has_a_head_only(tmp_path: Path, http: str) -> None:
    async def main() -> None:
        ca = trustme.CA()
        context = server_context(ca, alpn=("h2",) if http == "--http2" else ("http/1.1",))
        async with origin(Pages(), context) as port, world(tmp_path, port, [ca]) as made:
            status, out, _ = await curl(made, tmp_path, http, "-I", "-H", "Host: evil.test")
            assert (status, out.split()[1]) == (0, "421")

    asyncio.run(main())


@pytest.mark.parametrize("alpn", [("http/1.1",), ()], ids=["http", "stream"])
def test_an_origin_that_resets_in_the_middle_is_a_reset(tmp_path: Path, alpn: tuple[str, ...]) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\n\n" if not alpn else b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
        await writer.drain()
        sock: Any = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()

    async def main() -> None:
        ca = trustme.CA()
        async with origin(serve, server_context(ca, alpn=alpn)) as port, world(tmp_path, port, [ca]) as made:
            reader, writer = await connected(made, trusting(tmp_path, alpn=alpn))
            writer.write(f"GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode() if alpn else b"\0hello\n\n")
            with pytest.raises(ConnectionResetError):
                await reader.read()
            end = await made.end()
            assert (end.outcome, end.reset) == (Outcome.ORIGIN_RESET, True)

    asyncio.run(main())


def test_a_request_without_a_host_is_refused_but_for_http_1_0(tmp_path: Path) -> None:
    async def main() -> None:
        ca, pages = trustme.CA(), Pages()
        async with origin(pages, server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
            for version, status in (("1.1", b"400"), ("1.0", b"200")):
                reader, writer = await connected(made, trusting(tmp_path))
                writer.write(f"GET / HTTP/{version}\r\n\r\n".encode())
                assert (await reader.readline()).split()[1] == status
                writer.close()
            assert len(pages.requests) == 1

    asyncio.run(main())


def test_a_second_request_for_another_name_is_misdirected_on_a_good_connection(tmp_path: Path) -> None:
    async def main() -> None:
        ca, pages = trustme.CA(), Pages()
        async with origin(pages, server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
            reader, writer = await connected(made, trusting(tmp_path))
            writer.write(f"GET /good HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
            await reader.readuntil(b"for /good")
            writer.write(b"GET /bad HTTP/1.1\r\nHost: evil.test\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 421 ")
            assert len(pages.requests) == 1

    asyncio.run(main())


def test_chunks_interim_answers_and_half_answers(tmp_path: Path) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with origin(Pages(), server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
            assert (await curl(made, tmp_path, path="/chunked"))[:2] == (0, "hello, world")
            assert (await curl(made, tmp_path, path="/hints"))[:2] == (0, "ok")
            assert (await curl(made, tmp_path, path="/half"))[0] == 18  # partial file
            ends = [await made.end() for _ in range(3)]
            assert [end.outcome for end in ends] == [Outcome.COMPLETED, Outcome.COMPLETED, Outcome.ORIGIN_RESET]

    asyncio.run(main())


def test_a_head_that_never_ends_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        ca, pages = trustme.CA(), Pages()
        async with origin(pages, server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
            reader, writer = await connected(made, trusting(tmp_path))
            writer.write(f"GET / HTTP/1.1\r\nHost: {NAME}\r\nX: ".encode() + b"y" * (1 << 19))
            assert (await reader.readline()).startswith(b"HTTP/1.1 431 ")
            assert pages.requests == []

    asyncio.run(main())


def test_uploads_arrive_whole(tmp_path: Path) -> None:
    async def main() -> None:
        ca, pages = trustme.CA(), Pages()
        big = tmp_path / "big"
        big.write_bytes(bytes(range(256)) * 20_000)
        async with origin(pages, server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
            assert (await curl(made, tmp_path, "--data-binary", f"@{big}"))[0] == 0
            assert (await curl(made, tmp_path, "-H", "Transfer-Encoding: chunked", "--data-binary", f"@{big}"))[0] == 0
            assert [body == big.read_bytes() for _, _, body in pages.requests] == [True, True]
            assert [seen.request_bytes for seen in made.recorder.requests] == [big.stat().st_size] * 2

    asyncio.run(main())


@pytest.mark.slow
def test_a_large_download_takes_no_memory(tmp_path: Path) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with origin(Pages(), server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
            sink = ("-o", "/dev/null", "-w", "%{size_download}", "--max-time", "100")  # a busy machine takes its time
            await curl(made, tmp_path, *sink, path="/bytes/50000000")
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            assert (await curl(made, tmp_path, *sink, path="/bytes/400000000"))[1] == "400000000"
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024  # KiB

    asyncio.run(main())


def test_a_client_that_never_reads_holds_the_origin_back(tmp_path: Path) -> None:
    """What is buffered is bounded by the sockets and by the legs, not by the answer."""

    async def main() -> None:
        ca = trustme.CA()
        served = 0

        async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal served
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n")
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()
                served += 65536

        async with origin(endless, server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
            reader, writer = await connected(made, trusting(tmp_path))
            transport: Any = writer.transport
            transport.pause_reading()
            writer.write(f"GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
            before = -1
            while served != before or not served:
                before = served
                await asyncio.sleep(0.3)
            assert served < 64 << 20
            del reader

    asyncio.run(main())


# --- inspection -------------------------------------------------------------------------------------------------------
def test_inspectors_read_every_part(tmp_path: Path) -> None:
    async def main() -> None:
        ca, word = trustme.CA(), Word()
        async with origin(Pages(), server_context(ca)) as port, world(tmp_path, port, [ca], inspectors=[word]) as made:
            words = ("-H", "X-One: two", "--data-binary", "a body")
            assert (await curl(made, tmp_path, *words, path="/look?at=me"))[0] == 0
            await made.end()
            assert word.content("url", sent=True) == [f"https://{NAME}/look?at=me".encode()]
            assert b"X-One: two\r\n" in word.content("headers", sent=True)[0]
            assert word.content("body", sent=True) == [b"a body"]
            assert b"content-type: text/plain\r\n" in word.content("headers", sent=False)[0]
            assert word.content("body", sent=False) == [b"you asked for /look?at=me"]
            part = next(part for part, _ in word.parts if part.kind == "body" and part.sent)
            assert (part.method, part.host) == ("POST", NAME)
            assert "me" not in part.url.partition("?")[2]

    asyncio.run(main())


def test_an_alert_lets_everything_through(tmp_path: Path) -> None:
    async def main() -> None:
        ca, pages = trustme.CA(), Pages()
        async with (
            origin(pages, server_context(ca)) as port,
            world(tmp_path, port, [ca], inspectors=[Word()]) as made,
        ):
            assert (await curl(made, tmp_path, "-d", "a SECRET body"))[0] == 0
            (seen,) = made.recorder.findings
            assert (seen.verdict, seen.finding.location) == (OnFinding.ALERT, "request.body")
            assert pages.requests[0][2] == b"a SECRET body"

    asyncio.run(main())


@pytest.mark.parametrize(
    "words",
    [("-d", "a SECRET body"), ("-H", "X-Key: SECRET"), ("--url-query", "key=SECRET")],
    ids=["body", "head", "url"],
)
def test_a_finding_in_a_small_request_gives_a_page_and_the_origin_nothing(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    async def main() -> None:
        ca, pages = trustme.CA(), Pages()
        async with (
            origin(pages, server_context(ca)) as port,
            world(tmp_path, port, [ca], inspectors=[Word()], on_finding=OnFinding.BLOCK) as made,
        ):
            status, out, _ = await curl(made, tmp_path, "-w", "%{http_code}", *words)
            assert status == 0
            assert out.endswith("403")
            end = await made.end()
            assert "Rule: the rule" in out
            assert f"Connection: {end.flow}" in out
            assert pages.requests == []
            assert made.recorder.findings[0].verdict is OnFinding.BLOCK
            assert [seen.status for seen in made.recorder.requests] == [403]

    asyncio.run(main())


def test_a_clean_small_body_is_held_and_then_forwarded(tmp_path: Path) -> None:
    async def main() -> None:
        ca, pages = trustme.CA(), Pages()
        async with (
            origin(pages, server_context(ca)) as port,
            world(tmp_path, port, [ca], inspectors=[Word()], on_finding=OnFinding.BLOCK) as made,
        ):
            assert (await curl(made, tmp_path, "-d", "harmless"))[0] == 0
            assert pages.requests[0][2] == b"harmless"
            assert made.recorder.requests[0].request_bytes == 8

    asyncio.run(main())


def test_a_finding_in_a_large_request_breaks_it_off(tmp_path: Path) -> None:
    async def main() -> None:
        ca, pages = trustme.CA(), Pages()
        big = tmp_path / "big"
        big.write_bytes(b"x" * 300_000 + b"SECRET" + b"x" * 300_000)
        async with (
            origin(pages, server_context(ca)) as port,
            world(tmp_path, port, [ca], inspectors=[Word()], on_finding=OnFinding.BLOCK) as made,
        ):
            _, out, _ = await curl(made, tmp_path, "-w", "%{http_code}", "--data-binary", f"@{big}")
            assert out.endswith("403")
            assert "Rule: the rule" in out
            await made.end()
            assert pages.requests == []  # never a complete one
            assert [(seen.status, seen.outcome) for seen in made.recorder.requests] == [(403, Outcome.BLOCKED)]

    asyncio.run(main())


@pytest.mark.parametrize("coding", ["identity", "gzip"])
def test_a_finding_in_an_answer_that_has_begun_breaks_it_off(tmp_path: Path, coding: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = b"an answer with a SECRET in it"
        body = gzip.compress(body) if coding == "gzip" else body
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-encoding: %b\r\ntransfer-encoding: chunked\r\n\r\n" % coding.encode())
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        await reader.read()

    async def main() -> None:
        ca = trustme.CA()
        async with (
            origin(serve, server_context(ca)) as port,
            world(tmp_path, port, [ca], inspectors=[Word()], on_finding=OnFinding.BLOCK) as made,
        ):
            status, out, _ = await curl(made, tmp_path)
            assert status != 0
            assert "SECRET" not in out
            assert (await made.end()).outcome == Outcome.BLOCKED
            assert made.recorder.findings[0].finding.location == "response.body"

    asyncio.run(main())


class Broken:
    """An inspector that fails in the way it is told."""

    name = "broken"

    def __init__(self, how: str) -> None:
        self.how = how

    def open(self, part: Part) -> Inspection | None:
        if self.how == "open":
            raise RuntimeError("cannot open")
        return self if part.kind == "body" else None

    def feed(self, data: bytes) -> tuple[()]:
        if self.how == "feed":
            raise RuntimeError(f"no idea of {data!r}")
        while self.how == "endless":
            pass
        return ()

    def close(self) -> tuple[()]:
        if self.how == "close":
            raise RuntimeError("cannot close")
        return ()


@pytest.mark.parametrize("on_failure", list(OnFailure))
@pytest.mark.parametrize("how", ["open", "feed", "endless", "close"])
def test_an_inspector_that_fails_falls_the_way_the_policy_says(tmp_path: Path, how: str, on_failure: OnFailure) -> None:
    async def main() -> None:
        ca, pages = trustme.CA(), Pages()
        async with (
            origin(pages, server_context(ca)) as port,
            world(tmp_path, port, [ca], inspectors=[Broken(how)], on_failure=on_failure) as made,
        ):
            status, out, _ = await curl(made, tmp_path, "-f", "-d", "a body")
            faults = {(fault.what, fault.failed) for fault in made.recorder.faults}
            assert ("inspector_failed", on_failure) in faults
            assert not any("body" in fault.detail for fault in made.recorder.faults)  # content stays out of the record
            if on_failure is OnFailure.OPEN:
                assert (status, out) == (0, "you asked for /")
            else:
                assert status != 0
                assert pages.requests == [] or how == "close"

    asyncio.run(main())


@pytest.mark.parametrize("on_failure", list(OnFailure))
def test_a_coding_that_nobody_knows_is_not_inspected(tmp_path: Path, on_failure: OnFailure) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with (
            origin(Pages(), server_context(ca)) as port,
            world(tmp_path, port, [ca], inspectors=[Word()], on_failure=on_failure) as made,
        ):
            status, _, _ = await curl(made, tmp_path, "-f", "-H", "Content-Encoding: secret-sauce", "-d", "a body")
            assert (status == 0) == (on_failure is OnFailure.OPEN)
            assert ("not_inspected", on_failure) in {(fault.what, fault.failed) for fault in made.recorder.faults}

    asyncio.run(main())


# --- what is not HTTP -------------------------------------------------------------------------------------------------
async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


def test_other_protocols_are_relayed_and_read_as_a_stream(tmp_path: Path) -> None:
    async def main() -> None:
        ca, word = trustme.CA(), Word()
        async with (
            origin(echo, server_context(ca, alpn=())) as port,
            world(tmp_path, port, [ca], inspectors=[word]) as made,
        ):
            reader, writer = await connected(made, trusting(tmp_path, alpn=()))
            for piece in (b"\x00\x01binary SEC", b"RET"):
                writer.write(piece)
                assert await reader.readexactly(len(piece)) == piece
            writer.close()
            assert (await made.end()).outcome == Outcome.COMPLETED
            assert word.content("stream", sent=True) == [b"\x00\x01binary SECRET"]
            assert word.content("stream", sent=False) == [b"\x00\x01binary SECRET"]
            assert {seen.finding.location for seen in made.recorder.findings} == {"request.stream", "response.stream"}

    asyncio.run(main())


def test_a_finding_in_a_stream_breaks_it_off(tmp_path: Path) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with (
            origin(echo, server_context(ca, alpn=())) as port,
            world(tmp_path, port, [ca], inspectors=[Word()], on_finding=OnFinding.BLOCK) as made,
        ):
            reader, writer = await connected(made, trusting(tmp_path, alpn=()))
            writer.write(b"\x00the SECRET")
            with pytest.raises(ConnectionResetError):
                await reader.read()
            assert (await made.end()).outcome == Outcome.BLOCKED

    asyncio.run(main())


def test_a_server_that_speaks_first_is_no_http(tmp_path: Path) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"* OK IMAP4rev1 ready\r\n")
        await echo(reader, writer)

    async def main() -> None:
        ca = trustme.CA()
        async with origin(greet, server_context(ca, alpn=())) as port, world(tmp_path, port, [ca]) as made:
            reader, writer = await connected(made, trusting(tmp_path, alpn=()))
            assert await reader.readline() == b"* OK IMAP4rev1 ready\r\n"
            writer.write(b"GET / HTTP/1.1\r\n")
            assert await reader.readline() == b"GET / HTTP/1.1\r\n"
            assert made.recorder.requests == []

    asyncio.run(main())


def test_http_without_alpn_is_found_out(tmp_path: Path) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with origin(Pages(), server_context(ca, alpn=())) as port, world(tmp_path, port, [ca]) as made:
            reader, writer = await connected(made, trusting(tmp_path, alpn=()))
            for piece in (b"\r\nGE", b"T /slow", f" HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode()):
                writer.write(piece)
                await asyncio.sleep(0.01)
            assert await reader.readuntil(b"for /slow")
            writer.close()
            await made.end()
            assert made.recorder.requests[0].status == 200

    asyncio.run(main())


def test_http_that_dribbles_in_cannot_escape_the_comparison_of_names(tmp_path: Path) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with origin(Pages(), server_context(ca, alpn=())) as port, world(tmp_path, port, [ca]) as made:
            reader, writer = await connected(made, trusting(tmp_path, alpn=()))
            writer.write(b"GET")
            await asyncio.sleep(2 * SNIFF_S)
            writer.write(b" / HTTP/1.1\r\nHost: evil.test\r\n\r\n")
            with pytest.raises(ConnectionResetError):
                await reader.read()
            assert (await made.end()).outcome == Outcome.BLOCKED
            assert [fault.what for fault in made.recorder.faults] == ["late_http"]

    asyncio.run(main())


def test_a_client_that_says_half_a_word_and_waits_is_relayed(tmp_path: Path) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with origin(echo, server_context(ca, alpn=())) as port, world(tmp_path, port, [ca]) as made:
            reader, writer = await connected(made, trusting(tmp_path, alpn=()))
            writer.write(b"HELO")
            assert await asyncio.wait_for(reader.readexactly(4), 5) == b"HELO"

    asyncio.run(main())


def test_whatever_fails_while_the_origin_is_reached_again_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(_flow: str) -> socket.socket:
        raise ZeroDivisionError

    async def main() -> None:
        ca = trustme.CA()
        async with origin(Pages(), server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
            monkeypatch.setattr(made, "connect", fails)
            reader, writer = await connected(made, trusting(tmp_path))
            writer.write(f"GET /close HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
            assert await reader.readuntil(b"for /close")
            await asyncio.sleep(0.05)
            writer.write(f"GET /again HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
            assert (await made.end()).outcome == Outcome.FAULT

    asyncio.run(main())


# --- who takes too much -----------------------------------------------------------------------------------------------
class Calls(Word):
    """Counts calls that feed."""

    calls = 0

    def open(self, part: Part) -> Any:
        reading: Any = super().open(part)
        feed = reading.feed

        def counted(data: bytes) -> Any:
            self.calls += part.kind is PartKind.BODY and part.sent
            return feed(data)

        reading.feed = counted
        return reading


@pytest.mark.parametrize("on_finding", list(OnFinding))
def test_a_body_of_tiny_chunks_costs_few_calls_of_an_inspector(tmp_path: Path, on_finding: OnFinding) -> None:
    async def main() -> None:
        word, pages = Calls(), Pages()
        async with (
            origin(pages, None) as port,
            world(tmp_path, port, inspectors=[word], on_finding=on_finding, kind=Plaintext.HTTP) as made,
        ):
            reader, writer = await connected(made, None)
            writer.write(f"POST / HTTP/1.1\r\nHost: {NAME}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
            writer.write(b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\n")
            assert await asyncio.wait_for(reader.readuntil(b"for /"), 20)
            assert word.content("body", sent=True) == [b"x" * 20_000]
            assert word.calls < 200
            assert pages.requests[0][2] == b"x" * 20_000

    asyncio.run(main())


@pytest.mark.parametrize("after", [b"", b"broken\r\n"], ids=["", "broken"])
def test_nothing_of_a_turn_goes_on_before_inspectors_have_read_it(tmp_path: Path, after: bytes) -> None:
    """Nor when the same turn brings the end of the flow, as a broken chunk does."""

    async def main() -> None:
        got = bytearray()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(1000):
                got.extend(data)

        async with (
            origin(serve, None) as port,
            world(tmp_path, port, inspectors=[Word()], on_finding=OnFinding.BLOCK, kind=Plaintext.HTTP) as made,
        ):
            reader, writer = await connected(made, None)
            writer.write(f"POST / HTTP/1.1\r\nHost: {NAME}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
            writer.write(b"3\r\nSEC\r\n3\r\nRET\r\n" + after)
            if not after:
                assert (await reader.readline()).startswith(b"HTTP/1.1 403 ")
                writer.close()
            await made.end()
            assert b"SEC" not in got
            assert [seen.outcome for seen in made.recorder.requests] == [None if after else Outcome.BLOCKED]

    asyncio.run(main())


def test_an_alert_about_a_stream_that_falls_silent_comes_all_the_same(tmp_path: Path) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with (
            origin(echo, server_context(ca, alpn=())) as port,
            world(tmp_path, port, [ca], inspectors=[Word()]) as made,
        ):
            reader, writer = await connected(made, trusting(tmp_path, alpn=()))
            writer.write(b"no HTTP, a SECRET\r\n")
            await reader.readuntil(b"\n")
            async with asyncio.timeout(10):
                while len(made.recorder.findings) < 2:
                    await asyncio.sleep(0.01)

    asyncio.run(main())


def test_a_client_that_makes_us_answer_and_reads_nothing_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialogue, "QUEUE_LIMIT_BYTES", 1 << 14)

    async def main() -> None:
        ca = trustme.CA()
        async with (
            origin(Origin(), server_context(ca, alpn=("h2",))) as port,
            world(tmp_path, port, [ca], client_send_buffer_bytes=4096) as made,
        ):
            reader, writer = await connected(made, trusting(tmp_path, alpn=("h2",)))
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
            writer.write(b"\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678" * 19_000)
            end = await made.end()
            assert (end.outcome, end.reset) == (Outcome.MALFORMED, True)
            assert [(seen.what, seen.detail) for seen in made.recorder.faults] == [("flood", "client")]
            del reader

    asyncio.run(main())


def test_a_leg_whose_bytes_are_dear_is_read_less_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialogue, "TURN_S", -1.0)

    async def main() -> None:
        paced: list[int] = []
        pace = Leg.pace

        def seen(leg: Leg, *, slower: bool) -> None:
            pace(leg, slower=slower)
            paced.append(leg.chunk_bytes)

        monkeypatch.setattr(Leg, "pace", seen)
        async with origin(Pages(), None) as port, world(tmp_path, port, kind=Plaintext.HTTP) as made:
            assert len((await curl(made, tmp_path, path="/bytes/100000"))[1]) == 100_000
        assert min(paced) == LEAST_CHUNK_BYTES

    asyncio.run(main())


# --- the client's end -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("is_last", [True, False])
def test_a_client_that_says_close_notify_after_its_request_still_gets_its_answer(tmp_path: Path, is_last: bool) -> None:
    """Over TLS an end of one direction is an alert (RFC 8446 §6.1), with or without a FIN behind it."""

    async def main() -> None:
        ca = trustme.CA()
        asked = asyncio.Event()
        may_answer = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            asked.set()
            await may_answer.wait()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello")
            await writer.drain()
            await reader.read()

        def ask() -> bytes:
            context = SSL.Context(SSL.TLS_CLIENT_METHOD)
            raw = socket.create_connection(("127.0.0.1", made.port), timeout=10)
            raw.settimeout(None)
            client = SSL.Connection(context, raw)
            client.set_tlsext_host_name(NAME.encode())
            client.set_connect_state()
            client.do_handshake()
            client.sendall(f"GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
            client.shutdown()
            if is_last:
                raw.shutdown(socket.SHUT_WR)
            got = b""
            with contextlib.suppress(SSL.ZeroReturnError, SSL.SysCallError):
                while data := client.recv(1000):
                    got += data
            raw.close()
            return got

        async with origin(serve, server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
            answer = asyncio.create_task(asyncio.to_thread(ask))
            await asyncio.wait_for(asked.wait(), 10)
            await asyncio.sleep(0.1)  # the client's end has come, and must not end anything
            may_answer.set()
            assert (await asyncio.wait_for(answer, 10)).endswith(b"hello")
            end = await made.end()
            assert (end.outcome, end.error) == (Outcome.COMPLETED, "")

    asyncio.run(main())


def test_a_dialogue_that_the_origin_ends_first_is_over_when_the_client_has_ended_too(tmp_path: Path) -> None:
    """As those of mail servers: the last word is theirs."""

    async def bids_farewell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"* BYE\r\n")
        await writer.drain()
        writer.close()

    async def main() -> None:
        ca = trustme.CA()
        async with (
            origin(bids_farewell, server_context(ca, alpn=())) as port,
            world(tmp_path, port, [ca]) as made,
        ):
            reader, writer = await connected(made, trusting(tmp_path, ()))
            writer.write(b"a LOGOUT\r\n")
            assert await reader.read() == b"* BYE\r\n"
            writer.close()
            end = await made.end()
            assert (end.outcome, end.error) == (Outcome.COMPLETED, "")

    asyncio.run(main())
