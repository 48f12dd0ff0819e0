"""Answers without an end in sight, event by event and message by message: nothing waits for what comes later."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from engine_h2 import Client, get
from engine_world import NAME, Word, World, connected, origin, server_context, trusting, world
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RequestReceived

from mitmsec.audit.event import Outcome
from mitmsec.core.model import OnFinding

EVENTS = [b"data: %d\n\n" % number for number in range(5)]
SSE = [("content-type", "text/event-stream"), ("cache-control", "no-store")]


class Events:
    """Server-sent events, over HTTP/1.1 or 2: each is sent when the one before has arrived."""

    def __init__(self) -> None:
        self.next = asyncio.Semaphore(1)

    async def http1(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        fields = "".join(f"{name}: {value}\r\n" for name, value in SSE)
        writer.write(f"HTTP/1.1 200 OK\r\n{fields}transfer-encoding: chunked\r\n\r\n".encode())
        for event in EVENTS:
            await self.next.acquire()
            writer.write(b"%x\r\n%b\r\n" % (len(event), event))
        await reader.read()

    async def http2(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        connection.initiate_connection()
        while data := await reader.read(65536):
            for event in connection.receive_data(data):
                if isinstance(event, RequestReceived):
                    connection.send_headers(event.stream_id, [(":status", "200"), *SSE])
                    for one in EVENTS:
                        await self.next.acquire()
                        connection.send_data(event.stream_id, one)
                        writer.write(connection.data_to_send())
            writer.write(connection.data_to_send())


@pytest.mark.parametrize("on_finding", [OnFinding.ALERT, OnFinding.BLOCK])
def test_each_server_sent_event_arrives_before_the_next_is_sent(tmp_path: Path, on_finding: OnFinding) -> None:
    async def main() -> None:
        ca, events, word = trustme.CA(), Events(), Word(word=b"data: 3")
        async with (
            origin(events.http1, server_context(ca)) as port,
            world(tmp_path, port, [ca], inspectors=[word], on_finding=on_finding) as made,
        ):
            reader, writer = await connected(made, trusting(tmp_path))
            writer.write(f"GET /events HTTP/1.1\r\nHost: {NAME}\r\nAccept: text/event-stream\r\n\r\n".encode())
            seen = EVENTS if on_finding is OnFinding.ALERT else EVENTS[:3]
            assert b"text/event-stream" in await reader.readuntil(b"\r\n\r\n")
            for event in seen:
                size = int(await asyncio.wait_for(reader.readline(), 10), 16)
                assert (await reader.readexactly(size), await reader.readline()) == (event, b"\r\n")
                events.next.release()
            if on_finding is OnFinding.BLOCK:  # the one with the word is not passed on
                with pytest.raises(ConnectionError):
                    await reader.read(1)
                assert (await made.end()).outcome == Outcome.BLOCKED
            writer.close()

    asyncio.run(main())


def test_each_server_sent_event_arrives_before_the_next_is_sent_over_http2(tmp_path: Path) -> None:
    async def main() -> None:
        ca, events = trustme.CA(), Events()
        context = server_context(ca, alpn=("h2",))
        async with origin(events.http2, context) as port, world(tmp_path, port, [ca], inspectors=[Word()]) as made:
            reader, writer = await connected(made, trusting(tmp_path, alpn=("h2",)))
            client = Client(reader, writer)
            stream = client.request(get("/events", NAME))
            for number in range(len(EVENTS)):
                while client.bodies[stream] != b"".join(EVENTS[: number + 1]):
                    client._heard(await asyncio.wait_for(reader.read(65536), 10))
                events.next.release()
            writer.close()

    asyncio.run(main())


# --- gRPC -------------------------------------------------------------------------------------------------------------
class Calls(grpc.GenericRpcHandler):  # type: ignore[misc]
    """/t/Once says what it was told; /t/Talk answers each message when it has come; /t/No refuses, with a status."""

    def service(self, details: Any) -> Any:
        match details.method:
            case "/t/Once":
                return grpc.unary_unary_rpc_method_handler(lambda said, _: b"once " + said)
            case "/t/Talk":
                return grpc.stream_stream_rpc_method_handler(_talk)
            case "/t/No":
                return grpc.unary_unary_rpc_method_handler(_refuse)
        return None


def _talk(said: Iterator[bytes], context: Any) -> Iterator[bytes]:
    for message in said:
        yield b"heard " + message
    context.set_trailing_metadata((("x-count", "3"),))


def _refuse(_said: bytes, context: Any) -> bytes:
    context.abort(grpc.StatusCode.PERMISSION_DENIED, "not you")
    return b""


@contextlib.contextmanager
def grpc_origin(ca: trustme.CA) -> Iterator[tuple[int, Any]]:
    """Its port, and the server, which is to be started once the world is there: it has threads, and that forks."""
    leaf = ca.issue_cert(NAME)
    server = grpc.server(futures.ThreadPoolExecutor(4), handlers=[Calls()])
    pair = (leaf.private_key_pem.bytes(), b"".join(one.bytes() for one in leaf.cert_chain_pems))
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    try:
        yield port, server
    finally:
        server.stop(None).wait()


def _called(made: World, tmp_path: Path) -> tuple[bytes, Sequence[bytes], str, tuple[Any, str]]:
    """What a real client is told: once, in a conversation (with its trailers), and when it is refused."""
    trusted = grpc.ssl_channel_credentials((tmp_path / "root.pem").read_bytes())
    options = [("grpc.ssl_target_name_override", NAME), ("grpc.enable_http_proxy", 0)]
    with grpc.secure_channel(f"127.0.0.1:{made.port}", trusted, options) as channel:
        once = channel.unary_unary("/t/Once")(b"hello", timeout=20)
        answers: list[bytes] = []
        heard: queue.SimpleQueue[bytes] = queue.SimpleQueue()

        def asks() -> Iterator[bytes]:
            for number in range(3):
                yield b"%d" % number
                heard.get(timeout=10)  # the next is not sent before this one's answer is there

        talk = channel.stream_stream("/t/Talk")(asks(), timeout=20)
        for answer in talk:
            answers.append(answer)
            heard.put(answer)
        (count,) = [value for key, value in talk.trailing_metadata() if key == "x-count"]
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary("/t/No")(b"", timeout=20)
        status: Any = refused.value
        return once, answers, count, (status.code(), status.details())


def test_grpc_calls_conversations_and_refusals_pass_and_are_read(tmp_path: Path) -> None:
    async def main() -> None:
        ca, word = trustme.CA(), Word()
        with grpc_origin(ca) as (port, server):
            async with world(tmp_path, port, [ca], inspectors=[word]) as made:
                server.start()
                once, answers, count, refused = await asyncio.to_thread(_called, made, tmp_path)
                assert (once, answers, count) == (b"once hello", [b"heard 0", b"heard 1", b"heard 2"], "3")
                assert refused == (grpc.StatusCode.PERMISSION_DENIED, "not you")
                end = await made.end()
                assert end.outcome == Outcome.COMPLETED
                seen = made.recorder.requests
                assert [one.url.rpartition("/t/")[2] for one in seen] == ["Once", "Talk", "No"]
                assert {(one.method, one.http_version, one.status) for one in seen} == {("POST", "HTTP/2", 200)}
                assert b"hello" in word.content("body", sent=True)
                assert any(b"grpc-message: not you" in one for one in word.content("headers", sent=False))
                assert made.recorder.faults == []

    asyncio.run(main())
