"""What goes wrong where content is inspected in mitmproxy's own hooks, and does not here.

Each story is told twice: through mitmproxy as it comes, in this process, with an addon that does what its documentation
says; and through this engine. The first must fail: should a story begin to pass there, it is no trap any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import h2.config
import h2.connection
import h2.settings
import msgspec
import pytest
import trustme
import zstandard
from engine_world import NAME, connected, origin, server_context, trusting, world
from mitmproxy import http
from mitmproxy.net import encoding
from mitmproxy.proxy import layers, mode_specs
from mitmproxy.proxy.layers.http import HTTPMode
from mitmproxy.proxy.server import SimpleConnectionHandler

from mitmsec.core.inspection import Inspection, Part, PartKind
from mitmsec.core.messages import Plaintext
from mitmsec.core.model import Delivery, Finding, OnFailure, OnFinding, Severity
from mitmsec.engine.content import Undecodable, decoder
from mitmsec.engine.embedded import Embedded
from mitmsec.engine.websocket import Frames

MIB = 1 << 20
MITMPROXY, OURS = "mitmproxy", "ours"


def trap(why: str) -> Callable[[Any], Any]:
    """A story that fails on mitmproxy, for `why`."""
    plain = pytest.param(MITMPROXY, marks=pytest.mark.xfail(strict=True, reason=why))
    return pytest.mark.parametrize("proxy", [plain, OURS])


# --- mitmproxy as it comes --------------------------------------------------------------------------------------------
Chunks = Callable[[http.HTTPFlow, bytes], bytes | Iterable[bytes]]


@contextlib.asynccontextmanager
async def mitmproxy(
    origin_port: int, *, up: Chunks | None = None, down: Chunks | None = None, alpn: bytes | None = None
) -> AsyncIterator[tuple[int, list[Any]]]:
    """A proxy of mitmproxy's that streams, through `up` and `down`. Its port, and the flows that it has made."""
    options, flows = Embedded().options, []

    def request_head(flow: http.HTTPFlow) -> None:
        flows.append(flow)
        flow.request.stream = True if up is None else lambda data: up(flow, data)

    def response_head(flow: http.HTTPFlow) -> None:
        assert flow.response is not None
        flow.response.stream = True if down is None else lambda data: down(flow, data)

    def next_layer(chosen: Any) -> None:
        chosen.context.client.alpn = alpn
        chosen.context.server.address = ("127.0.0.1", origin_port)
        chosen.layer = layers.HttpLayer(chosen.context, HTTPMode.transparent)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mode = mode_specs.ProxyMode.parse(f"reverse:http://127.0.0.1:{origin_port}")
        hooks = {"requestheaders": request_head, "responseheaders": response_head, "next_layer": next_layer}
        with contextlib.suppress(asyncio.CancelledError):
            await SimpleConnectionHandler(reader, writer, options, mode, hooks).handle_client()  # type: ignore[no-untyped-call]

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], flows
    finally:
        server.close()


# --- the same world for both ------------------------------------------------------------------------------------------
class Sink:
    """An origin over HTTP/1.1 that answers `answer` once a request's end, or its beginning without a body, is there."""

    def __init__(self, answer: bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok") -> None:
        self.got, self._answer = bytearray(), answer

    @property
    def has_complete_request(self) -> bool:
        return self.got.endswith(b"\r\n0\r\n\r\n")

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        while not head.startswith(b"GET") and not self.has_complete_request and (data := await reader.read(65536)):
            self.got += data
        writer.write(self._answer)
        await writer.drain()


class Finder:
    """What our own side inspects with: finds SECRET in bodies, and says where."""

    name = "finder"

    def open(self, part: Part) -> Inspection | None:
        return _Finding() if part.kind is PartKind.BODY else None


class _Finding:
    def __init__(self) -> None:
        self._content, self._from = b"", 0

    def feed(self, data: bytes) -> Sequence[Finding]:
        self._content += data
        at = self._content.find(b"SECRET", self._from)
        if at < 0:
            return ()
        self._from = at + 6
        words = {"detector": "finder", "summary": "it", "evidence": "", "location": "body"}
        return [Finding(severity=Severity.HIGH, confidence=1.0, offset=at, size_bytes=6, **words)]

    def close(self) -> Sequence[Finding]:
        return ()


class Broken(Finder):
    def open(self, part: Part) -> Inspection | None:
        return _Broken() if part.kind is PartKind.BODY else None


class _Broken(_Finding):
    def feed(self, data: bytes) -> Sequence[Finding]:
        raise LookupError


class Address(Protocol):
    @property
    def port(self) -> int: ...


@contextlib.asynccontextmanager
async def through(
    proxy: str,
    tmp_path: Path,
    origin_port: int,
    *,
    up: Chunks | None = None,
    down: Chunks | None = None,
    inspector: Finder | None = None,
    on_finding: OnFinding = OnFinding.BLOCK,
    on_failure: OnFailure = OnFailure.CLOSED,
    delivery: Delivery = Delivery.HOLD,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A client's connection in plain HTTP/1.1 through either."""
    if proxy == MITMPROXY:
        async with mitmproxy(origin_port, up=up, down=down) as (port, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                yield reader, writer
            finally:
                writer.transport.abort()
        return
    async with world(
        tmp_path,
        origin_port,
        inspectors=[inspector or Finder()],
        on_finding=on_finding,
        on_failure=on_failure,
        kind=Plaintext.HTTP,
    ) as made:
        made.decision = msgspec.structs.replace(made.decision, delivery=delivery)
        reader, writer = await connected(made, None)
        yield reader, writer
        writer.transport.abort()


def post(*pieces: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    head = f"POST /up HTTP/1.1\r\nHost: {NAME}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    return head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + end


def unchunked(data: bytes) -> bytes:
    """As who reads it in earnest: what follows the end is another request."""
    line, _, rest = data.partition(b"\r\n")
    size = int(line, 16)
    return rest[:size] + unchunked(rest[size + 2 :]) if size else b""


GET = f"GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode()


def test_mitmproxy_works_where_nothing_is_in_its_way(tmp_path: Path) -> None:
    """What fails below does for its own reason."""

    async def main() -> None:
        sink = Sink()
        async with origin(sink, None) as port, through(MITMPROXY, tmp_path, port) as (reader, writer):
            writer.write(post(b"some", b" more"))
            assert await asyncio.wait_for(reader.readline(), 5) == b"HTTP/1.1 200 OK\r\n"
            assert sink.has_complete_request

    asyncio.run(main())


# --- the traps --------------------------------------------------------------------------------------------------------
@trap("an empty answer in the middle of a chunked body is written as its end; the rest is another request")
def test_a_piece_that_is_kept_back_does_not_end_the_body(proxy: str, tmp_path: Path) -> None:
    def until_more_is_there(flow: http.HTTPFlow, data: bytes) -> bytes:
        kept = flow.metadata.get("kept", b"") + data
        flow.metadata["kept"] = b"" if not data or len(kept) > 8 else kept
        return kept if not data or len(kept) > 8 else b""

    async def main() -> None:
        sink = Sink()
        async with (
            origin(sink, None) as port,
            through(proxy, tmp_path, port, up=until_more_is_there, delivery=Delivery.WINDOW) as (reader, writer),
        ):
            writer.write(post(b"some", end=b""))
            await asyncio.sleep(0.1)
            writer.write(b"5\r\n more\r\n0\r\n\r\n")
            assert await asyncio.wait_for(reader.readline(), 5) == b"HTTP/1.1 200 OK\r\n"
            assert unchunked(bytes(sink.got)) == b"some more"

    asyncio.run(main())


@trap("what the callable raises is logged, that piece is lost, and the next ones pass unread")
def test_an_inspector_that_breaks_lets_nothing_pass(proxy: str, tmp_path: Path) -> None:
    def breaks(flow: http.HTTPFlow, data: bytes) -> bytes:
        if data.startswith(b"first"):
            raise LookupError
        return data

    async def main() -> None:
        sink = Sink()
        async with (
            origin(sink, None) as port,
            through(proxy, tmp_path, port, up=breaks, inspector=Broken()) as (reader, writer),
        ):
            writer.write(post(b"first", end=b""))
            await asyncio.sleep(0.1)
            writer.write(b"6\r\nSECRET\r\n0\r\n\r\n")
            with contextlib.suppress(TimeoutError, ConnectionError):
                await asyncio.wait_for(reader.readline(), 2)
            assert b"SECRET" not in sink.got

    asyncio.run(main())


@trap("a flow that is killed while its request is streamed goes on")
def test_an_upload_that_is_stopped_is_never_complete(proxy: str, tmp_path: Path) -> None:
    def kills(flow: http.HTTPFlow, data: bytes) -> bytes:
        if b"SECRET" in data and flow.killable:
            flow.kill()
        return data

    async def main() -> None:
        sink = Sink()
        async with origin(sink, None) as port, through(proxy, tmp_path, port, up=kills) as (reader, writer):
            writer.write(post(b"x" * 60_000, b"SECRET", b"x" * 60_000))
            with contextlib.suppress(TimeoutError, ConnectionError):
                await asyncio.wait_for(reader.read(), 2)
            assert not sink.has_complete_request

    asyncio.run(main())


@trap("by then the head has been sent: a status that is set is lost without a word")
def test_who_uploads_what_is_stopped_is_told_so(proxy: str, tmp_path: Path) -> None:
    def refuses(flow: http.HTTPFlow, data: bytes) -> bytes:
        if b"SECRET" in data:
            flow.metadata["refused"] = True
        return data

    def down(flow: http.HTTPFlow, data: bytes) -> bytes:
        assert flow.response is not None
        if flow.metadata.get("refused"):
            flow.response.status_code = 403
        return data

    async def main() -> None:
        async with (
            origin(Sink(), None) as port,
            through(proxy, tmp_path, port, up=refuses, down=down) as (reader, writer),
        ):
            writer.write(post(b"x" * 1000, b"SECRET"))
            assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 403 ")

    asyncio.run(main())


@trap("a body that gets shorter than its Content-Length leaves the client waiting, or with the next answer's head")
def test_what_is_redacted_keeps_its_framing(proxy: str, tmp_path: Path) -> None:
    def redacts(flow: http.HTTPFlow, data: bytes) -> bytes:
        return data.replace(b"SECRET", b"[gone]"[:3])

    async def main() -> None:
        sink = Sink(b"HTTP/1.1 200 OK\r\ncontent-length: 16\r\n\r\nsome SECRET here")
        async with (
            origin(sink, None) as port,
            through(proxy, tmp_path, port, down=redacts, on_finding=OnFinding.REDACT) as (reader, writer),
        ):
            writer.write(GET)
            await reader.readuntil(b"\r\n\r\n")
            body = await asyncio.wait_for(reader.readexactly(16), 1)
            assert b"SECRET" not in body

    asyncio.run(main())


@trap("HTTP/2 windows are opened as far as they go, and what a client does not take is kept")
def test_a_client_that_takes_nothing_holds_back_the_origin(proxy: str, tmp_path: Path) -> None:
    pushed = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal pushed
        if proxy == OURS:
            return await frames(reader, writer)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (48 * MIB))
        while pushed < 48 * MIB:
            writer.write(bytes(65536))
            pushed += 65536
            await writer.drain()

    async def frames(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal pushed
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        connection.initiate_connection()
        writer.write(connection.data_to_send())
        while data := await reader.read(65536):
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    connection.send_headers(1, [(":status", "200")])
            with contextlib.suppress(h2.exceptions.ProtocolError):
                while pushed < 48 * MIB and (room := connection.local_flow_control_window(1)) > 0:
                    size = min(room, 16384)
                    connection.send_data(1, bytes(size))
                    pushed += size
            writer.write(connection.data_to_send())
            await writer.drain()

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        client.initiate_connection()
        client.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
        client.send_headers(
            1, [(":method", "GET"), (":scheme", "https"), (":authority", NAME), (":path", "/")], end_stream=True
        )
        writer.write(client.data_to_send())
        before = -1
        try:
            while before != pushed or not pushed:
                before = pushed
                await asyncio.sleep(0.3)
            assert pushed < 16 * MIB
        finally:
            writer.transport.abort()

    async def main() -> None:
        ca = trustme.CA()
        if proxy == MITMPROXY:
            async with origin(serve, None) as port, mitmproxy(port, alpn=b"h2") as (at, _):
                await asyncio.wait_for(ask(*await asyncio.open_connection("127.0.0.1", at)), 20)
            return
        async with (
            origin(serve, server_context(ca, alpn=("h2",))) as port,
            world(tmp_path, port, [ca], inspectors=[Finder()], on_finding=OnFinding.BLOCK) as made,
        ):
            await asyncio.wait_for(ask(*await connected(made, trusting(tmp_path, alpn=("h2",)))), 20)

    asyncio.run(main())


# --- decoders ---------------------------------------------------------------------------------------------------------
def decoded(proxy: str, coding: str, data: bytes) -> Iterator[bytes]:
    """What an inspector gets to see."""
    if proxy == MITMPROXY:
        content = encoding.decode(data, coding)
        assert isinstance(content, bytes)
        yield content
    else:
        for at in range(0, len(data), 1 << 16):
            yield from decoder(coding).feed(data) if at == 0 else ()


@trap("a second member is ignored")
def test_a_second_gzip_member_is_read(proxy: str) -> None:
    assert b"SECRET" in b"".join(decoded(proxy, "gzip", gzip.compress(b"first ") + gzip.compress(b"SECRET")))


@trap("codings on top of each other are not known")
def test_codings_on_top_of_each_other_are_undone(proxy: str) -> None:
    data = zstandard.compress(gzip.compress(b"a SECRET"))
    assert b"SECRET" in b"".join(decoded(proxy, "gzip, zstd", data))


def bombs() -> dict[str, bytes]:
    """Some hundred kilobytes or less that become 64 MiB, or ask for a window of 128 MiB."""
    wide = zstandard.ZstdCompressionParameters(window_log=27, write_content_size=0, compression_level=1)
    packer = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    window = b"".join(packer.compress(bytes(MIB)) for _ in range(64)) + packer.flush()
    return {"gzip": gzip.compress(bytes(64 * MIB), 1), "zstd": window}


@trap("content is decoded at once, as large as it gets")
@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_a_bomb_takes_no_memory(proxy: str, coding: str) -> None:
    bomb = bombs()[coding]
    tracemalloc.start()
    try:
        with contextlib.suppress(Undecodable):
            for _ in decoded(proxy, coding, bomb):
                pass
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 16 * MIB


def test_websocket_messages_are_not_kept(tmp_path: Path) -> None:
    """mitmproxy puts each together, and keeps it as long as the connection lives. Its layer for that is not even loaded
    here (mitmsec.engine.left_out), so there is nobody to compare with.
    """
    count, size_bytes = 64, 1 << 16
    head = b"\x82\xff" + size_bytes.to_bytes(8) + bytes(4)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n")
        writer.write(b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
        got = 0
        while got < count * size_bytes and (data := await reader.read(1 << 16)):
            got += len(data)
        writer.write(b"\x82\x01.")
        await writer.drain()
        await reader.read()

    async def main() -> None:
        async with origin(serve, None) as port, through(OURS, tmp_path, port) as (reader, writer):
            writer.write(f"GET / HTTP/1.1\r\nHost: {NAME}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n".encode())
            writer.write(b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            tracemalloc.start()
            try:
                for _ in range(count):
                    writer.write(head + bytes(size_bytes))
                    await writer.drain()
                assert await asyncio.wait_for(reader.readexactly(3), 10) == b"\x82\x01."
                kept_bytes = tracemalloc.get_traced_memory()[0]
            finally:
                tracemalloc.stop()
            assert kept_bytes < count * size_bytes // 2

    asyncio.run(main())


def test_a_websocket_message_without_an_end_takes_no_memory() -> None:
    """Pieces come out as they come in."""
    frames, out = Frames(), 0
    tracemalloc.start()
    try:
        for _ in frames.feed(b"\x02\xff" + (1 << 40).to_bytes(8) + bytes(4)):
            pass
        for _ in range(64):
            out += sum(map(len, frames.feed(bytes(MIB))))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert out == 64 * MIB
    assert peak_bytes < 16 * MIB
