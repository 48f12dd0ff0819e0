"""HTTP/3 through the engine: requests and answers, many and large, findings, ends."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
import trustme
from aioquic.h3.connection import HeadersState
from engine_world import NAME, Word
from mitmproxy.connection import Client, ConnectionState, Server
from mitmproxy.options import Options
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http._http3 import Http3Client
from mitmproxy.proxy.layers.quic import QuicStreamReset, QuicStreamStopSending
from quic_world import Origin, hello_of, origin, story, world

from mitmsec.audit.event import OURS, Outcome
from mitmsec.core.model import OnFinding
from mitmsec.engine.quic import dialogue
from mitmsec.engine.quic.connection import STREAM_WINDOW_BYTES
from mitmsec.engine.quic.http3 import Back


def echo(origin: Origin, stream_id: int, head: dict[str, str], body: bytes) -> None:
    """The body again, and trailers."""
    origin.say(stream_id, body, trailers=[(b"x-said", b"all")])


@story
async def test_bodies_and_trailers_pass_and_are_read(tmp_path: Path) -> None:
    ca, word = trustme.CA(), Word()
    async with origin(ca, echo) as port, world(tmp_path, port, [ca], inspectors=[word]) as the:
        async with the.client() as client:
            answer = await client.got("/up", body=b"a SECRET that passes", fields=[(b"x-own", b"kept")])
            assert (answer.status, answer.body) == ("200", b"a SECRET that passes")
            assert answer.trailers == {"x-said": "all"}
        await the.end()
        assert word.content("body", sent=True) == word.content("body", sent=False) == [b"a SECRET that passes"]
        assert b"x-own: kept" in word.content("headers", sent=True)[0]
        assert {finding.finding.location for finding in the.recorder.findings} == {"request.body", "response.body"}
        (request,) = the.recorder.requests
        assert (request.method, request.request_bytes, request.response_bytes) == ("POST", 20, 20)


@story
async def test_many_requests_run_at_once_and_one_after_another(tmp_path: Path) -> None:
    """More than are remembered at once, and than may be open at once."""
    ca = trustme.CA()
    async with origin(ca) as port, world(tmp_path, port, [ca]) as the:
        async with the.client() as client:
            for batch in range(12):
                answers = [client.ask(f"/{batch}/{number}") for number in range(100)]
                for number, answer in enumerate(answers):
                    await answer.complete()
                    assert answer.body == f"GET {NAME}/{batch}/{number} 0".encode(), answer.status
        assert (await the.end()).outcome == Outcome.COMPLETED
        assert len(the.recorder.requests) == 1200


@story
async def test_a_request_for_another_host_is_answered_421_and_never_forwarded(tmp_path: Path) -> None:
    ca, asked = trustme.CA(), []

    def remember(origin: Origin, stream_id: int, head: dict[str, str], body: bytes) -> None:
        asked.append(head[":authority"])
        origin.say(stream_id, b"")

    async with origin(ca, remember) as port, world(tmp_path, port, [ca]) as the:
        async with the.client() as client:
            other = await client.got("/", authority="bank.test")
            assert (other.status, asked) == ("421", [])
            assert (await client.got("/")).status == "200"
            assert asked == [NAME]
            hidden = await client.got("/", fields=[(b"host", b"bank.test")])
            assert (hidden.status, asked) == ("421", [NAME])
        await the.end()
        statuses = [(request.status, request.answered_by) for request in the.recorder.requests]
        assert statuses == [(421, OURS), (200, None), (421, OURS)]
        assert {fault.what for fault in the.recorder.faults} == {"misdirected_request"}


@story
async def test_a_finding_stops_a_request_before_its_origin_sees_it_and_an_answer_on_its_way(tmp_path: Path) -> None:
    ca, asked = trustme.CA(), []

    def remember(origin: Origin, stream_id: int, head: dict[str, str], body: bytes) -> None:
        asked.append(body)
        origin.say(stream_id, b"a SECRET", [(b"content-length", b"8")] if head[":path"] == "/told" else [])

    blocks = OnFinding.BLOCK
    async with origin(ca, remember) as port:
        async with world(tmp_path, port, [ca], inspectors=[Word()], on_finding=blocks) as the:
            async with the.client() as client:
                length = [(b"content-length", b"8")]
                stopped = await client.got("/", body=b"a SECRET", fields=length)
                assert (stopped.status, asked) == ("403", [])
                for _ in range(2):  # a stream ends, the connection goes on
                    answer = await client.got("/down")
                    assert answer.failed
                    assert b"SECRET" not in answer.body
                held = await client.got("/told")  # nothing of it has gone on
                assert (held.status, held.body.partition(b"\n")[0]) == ("403", b"403 Forbidden")
            ended = await the.end()
            assert (ended.outcome, asked) == (Outcome.COMPLETED, [b"", b"", b""])
            assert [seen.outcome for seen in the.recorder.requests] == [Outcome.BLOCKED] * 4
            assert len(the.recorder.findings) == 4


@story
async def test_of_http3_elsewhere_a_client_hears_nothing(tmp_path: Path) -> None:
    """There it would be no QUIC that is led to the gate, but UDP."""
    ca = trustme.CA()

    def offers(origin: Origin, stream_id: int, head: dict[str, str], body: bytes) -> None:
        origin.say(stream_id, b"", [(b"alt-svc", b'h3=":443"; ma=9, h3=":8443", h2=":8443"')])

    async with origin(ca, offers) as port, world(tmp_path, port, [ca]) as the:
        async with the.client() as client:
            assert (await client.got("/")).head["alt-svc"] == 'h3=":443"; ma=9, h2=":8443"'


@story
async def test_an_interim_answer_is_followed_by_the_real_one(tmp_path: Path) -> None:
    ca = trustme.CA()

    def hints(origin: Origin, stream_id: int, head: dict[str, str], body: bytes) -> None:
        assert origin.http is not None
        for _ in range(2):
            origin.http.send_headers(stream_id, [(b":status", b"103"), (b"link", b"</x>; rel=preload")])
            origin.http._stream[stream_id].headers_send_state = HeadersState.INITIAL
        origin.say(stream_id, b"at last", trailers=[(b"x-said", b"all")])

    async with origin(ca, hints) as port, world(tmp_path, port, [ca]) as the:
        async with the.client() as client:
            answer = await client.got("/")
            assert (answer.status, answer.body, answer.trailers) == ("200", b"at last", {"x-said": "all"})
        assert (await the.end()).outcome == Outcome.COMPLETED
        assert [request.status for request in the.recorder.requests] == [200]


@pytest.mark.parametrize("status", [200, 304])
def test_an_answer_without_a_body_may_say_how_long_that_would_be(tmp_path: Path, status: int) -> None:
    async def main() -> None:
        ca = trustme.CA()

        def short(origin: Origin, stream_id: int, head: dict[str, str], body: bytes) -> None:
            assert origin.http is not None
            fields = [(b":status", str(status).encode()), (b"content-length", b"1234")]
            origin.http.send_headers(stream_id, fields, end_stream=True)
            origin.transmit()

        async with origin(ca, short) as port, world(tmp_path, port, [ca]) as the:
            async with the.client() as client:
                client.http._check_content_length = lambda stream: None  # type: ignore[method-assign]
                answer = await client.got("/", method=b"HEAD")
                assert (answer.status, answer.head["content-length"]) == (str(status), "1234")
            assert (await the.end()).outcome == Outcome.COMPLETED

    asyncio.run(main())


@story
async def test_a_body_that_is_not_as_long_as_it_says_ends_the_flow(tmp_path: Path) -> None:
    ca = trustme.CA()

    def short(origin: Origin, stream_id: int, head: dict[str, str], body: bytes) -> None:
        origin.say(stream_id, b"short", [(b"content-length", b"1234")])

    async with origin(ca, short) as port, world(tmp_path, port, [ca]) as the:
        async with the.client() as client:
            assert (await client.got("/")).failed
        assert (await the.end()).outcome == Outcome.MALFORMED


@story
async def test_large_bodies_pass_both_ways(tmp_path: Path) -> None:
    ca, body = trustme.CA(), os.urandom(3 * STREAM_WINDOW_BYTES)
    async with origin(ca, echo) as port, world(tmp_path, port, [ca]) as the:
        async with the.client() as client:
            answer = client.ask("/", body=body)
            await asyncio.wait_for(answer.whole.wait(), 60)
            assert answer.body == body
        assert (await the.end()).outcome == Outcome.COMPLETED


@story
async def test_what_a_client_does_not_take_is_not_fetched(tmp_path: Path) -> None:
    ca, takes_bytes = trustme.CA(), 1 << 20  # aioquic's first windows
    held_bytes = dialogue.BACKLOG_BYTES + STREAM_WINDOW_BYTES
    whole = bytes(takes_bytes + 8 * held_bytes)

    def much(origin: Origin, stream_id: int, head: dict[str, str], body: bytes) -> None:
        origin.say(stream_id, whole)

    async with origin(ca, much) as port, world(tmp_path, port, [ca]) as the:
        async with the.client() as client:
            client._quic._write_connection_limits = lambda **_: None  # type: ignore[method-assign]
            client._quic._write_stream_limits = lambda **_: None  # type: ignore[method-assign]
            answer = client.ask("/")
            (flow,) = the._flows.values()
            before = -1
            while before != (now := len(answer.body)) or not now:
                before = now
                await asyncio.sleep(2.0)
            assert now > takes_bytes // 2
            assert now < flow.carried < takes_bytes + 2 * held_bytes
            assert not answer.whole.is_set()


@story
async def test_a_client_that_cancels_ends_its_request_and_no_other(tmp_path: Path) -> None:
    ca, cancelled = trustme.CA(), asyncio.Event()

    def slow(origin: Origin, stream_id: int, head: dict[str, str], body: bytes) -> None:
        if head[":path"] == "/slow":
            cancelled.set()
        else:
            origin.say(stream_id, b"quick")

    async with origin(ca, slow) as port, world(tmp_path, port, [ca]) as the:
        async with the.client() as client:
            client.ask("/slow")
            await asyncio.wait_for(cancelled.wait(), 20)
            client._quic.reset_stream(0, 0x10C)
            client._quic.stop_stream(0, 0x10C)
            client.transmit()
            assert (await client.got("/quick")).body == b"quick"
        assert (await the.end()).outcome == Outcome.COMPLETED
        assert {request.url[-5:]: request.status for request in the.recorder.requests} == {"/slow": None, "quick": 200}


@story
async def test_an_origin_that_ends_before_its_answer_is_on_record(tmp_path: Path) -> None:
    ca = trustme.CA()

    def ends(origin: Origin, stream_id: int, head: dict[str, str], body: bytes) -> None:
        origin._quic.close(error_code=0x102)
        origin.transmit()

    async with origin(ca, ends) as port, world(tmp_path, port, [ca]) as the:
        async with the.client() as client:
            assert (await client.got("/")).failed
        ended = await the.end()
        assert ended.outcome == Outcome.ORIGIN_RESET
        assert [request.status for request in the.recorder.requests] == [None]


@story
async def test_a_client_has_an_answer_whole_though_its_origin_has_ended(tmp_path: Path) -> None:
    ca, body = trustme.CA(), os.urandom(1 << 20)

    def ends(origin: Origin, stream_id: int, head: dict[str, str], _: bytes) -> None:
        origin.say(stream_id, body)
        origin.end_once_taken()

    async with origin(ca, ends) as port, world(tmp_path, port, [ca]) as the:
        async with the.client() as client:
            assert (await client.got("/")).body == body
        assert (await the.end()).outcome == Outcome.COMPLETED


@story
async def test_a_program_that_has_gone_ends_its_flow_and_the_origin_hears_that(tmp_path: Path) -> None:
    ca = trustme.CA()
    async with origin(ca, hello_of) as port, world(tmp_path, port, [ca]) as the:
        async with the.client() as client:
            await client.got("/")
            the.let_go()
            ended = await the.end()
            assert (ended.outcome, ended.error) == (Outcome.COMPLETED, "")


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(b"\x01\x02\xff\xff", id="fields that are none"),
        pytest.param(b"\x00\x01a", id="a body before the head"),
        pytest.param(b"\x01\x80\x02\x00\x00" + bytes(70_000), id="a head that is too long"),
    ],
)
def test_a_client_that_breaks_http_ends_its_flow_and_nothing_reaches_the_origin(tmp_path: Path, broken: bytes) -> None:
    async def main() -> None:
        ca, asked = trustme.CA(), []
        async with origin(ca, lambda *_: asked.append(1)) as port, world(tmp_path, port, [ca]) as the:
            async with the.client() as client:
                stream_id = client._quic.get_next_available_stream_id()
                client._quic.send_stream_data(stream_id, broken)
                client.transmit()
                ended = await the.end()
                assert ended.outcome == Outcome.MALFORMED
                assert asked == []
                assert [fault.what for fault in the.recorder.faults] == ["malformed_request"]

    asyncio.run(main())


@story
async def test_connect_goes_nowhere(tmp_path: Path) -> None:
    ca, asked = trustme.CA(), []
    async with origin(ca, lambda *_: asked.append(1)) as port, world(tmp_path, port, [ca]) as the:
        async with the.client() as client:
            stream_id = client._quic.get_next_available_stream_id()
            client.http.send_headers(stream_id, [(b":method", b"CONNECT"), (b":authority", NAME.encode())])
            client.transmit()
            assert (await the.end()).outcome == Outcome.MALFORMED
            assert asked == []


@pytest.mark.parametrize("broken_off", [QuicStreamStopSending, QuicStreamReset])
def test_an_origin_that_breaks_off_what_is_over_and_forgotten_disturbs_nobody(broken_off: type[Any]) -> None:
    """Its word may come after the answer, and the stream be forgotten by then. mitmproxy's own layer would fail."""
    context = Context(Client(peername=("", 0), sockname=("", 0), timestamp_start=0), Options())
    context.server = Server(address=("origin.test", 443))
    context.server.state = ConnectionState.OPEN
    late = broken_off(context.server, 8, 0)
    assert list(Back(context)._handle_event(late)) == []
    with pytest.raises(KeyError):
        list(Http3Client._handle_event(Back(context), late))
