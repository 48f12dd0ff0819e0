"""HTTP/2 end to end."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from pathlib import Path

import h2.config
import h2.connection
import pytest
import trustme
from engine_h2 import HTTP3, Client, Origin, get
from engine_world import NAME, Word, World, connected, curl, origin, server_context, trusting, world
from mitmproxy.proxy.layers.http._events import RequestData

from mitmsec.audit.event import Outcome
from mitmsec.core.model import OnFinding
from mitmsec.engine import frames, http2


async def client(made: World, tmp_path: Path) -> Client:
    return Client(*await connected(made, trusting(tmp_path, alpn=("h2",))))


def test_both_legs_speak_http2_when_both_ends_do(tmp_path: Path) -> None:
    async def main() -> None:
        ca, server = trustme.CA(), Origin()
        context = server_context(ca, alpn=("h2", "http/1.1"))
        async with origin(server, context) as port, world(tmp_path, port, [ca]) as made:
            words = ("--http2", "-w", " %{http_version}")
            assert (await curl(made, tmp_path, *words, path="/two?a=1"))[:2] == (0, "you asked for /two?a=1 2")
            end = await made.end()
            assert end.tls is not None
            assert end.tls.server is not None
            assert end.tls.client is not None
            assert (end.tls.client.alpn, end.tls.server.alpn) == ("h2", "h2")
            (seen,) = made.recorder.requests
            assert (seen.http_version, seen.status, seen.url) == ("HTTP/2", 200, f"https://{NAME}:{port}/two?a=")
            assert server.requests[0][0][":scheme"] == "https"

    asyncio.run(main())


def test_the_client_gets_what_the_origin_chose(tmp_path: Path) -> None:
    """Neither HTTP/2 towards a client whose origin has none, nor the other way round."""

    async def main() -> None:
        ca = trustme.CA()
        async with origin(Origin(), server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
            _, writer = await connected(made, trusting(tmp_path, alpn=("h2", "http/1.1")))
            assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
        async with origin(Origin(), server_context(ca, alpn=())) as port, world(tmp_path, port, [ca]) as made:
            _, writer = await connected(made, trusting(tmp_path, alpn=("h2", "http/1.1")))
            assert writer.get_extra_info("ssl_object").selected_alpn_protocol() is None

    asyncio.run(main())


@pytest.mark.parametrize("http3", [True, False])
def test_of_http3_a_client_hears_only_where_it_may_use_it_and_never_in_a_frame(tmp_path: Path, *, http3: bool) -> None:
    async def main() -> None:
        ca = trustme.CA()
        context = server_context(ca, alpn=("h2",))
        async with origin(Origin(), context) as port, world(tmp_path, port, [ca]) as made:
            made.http3 = http3
            asking = await client(made, tmp_path)
            stream = asking.request(get("/elsewhere", NAME))
            await asking.until_ended(stream)
            assert asking.headers[stream]["alt-svc"] == (HTTP3 if http3 else "clear")
            assert asking.alternatives == []
            direct = Client(*await asyncio.open_connection("127.0.0.1", port, ssl=_insecure(), server_hostname=NAME))
            await direct.until_ended(direct.request(get("/elsewhere", NAME)))
            assert direct.alternatives == [HTTP3.encode()], "the origin does send one"

    asyncio.run(main())


def _insecure() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


def test_streams_share_a_connection(tmp_path: Path) -> None:
    async def main() -> None:
        ca, server = trustme.CA(), Origin()
        async with origin(server, server_context(ca, alpn=("h2",))) as port, world(tmp_path, port, [ca]) as made:
            asking = await client(made, tmp_path)
            streams = [asking.request(get(f"/{number}", NAME)) for number in range(30)]
            upload = asking.request([(":method", "POST"), *get("/up", NAME)[1:]], b"a body")
            await asking.until_ended(*streams, upload)
            assert [asking.bodies[stream] for stream in streams] == [f"you asked for /{n}".encode() for n in range(30)]
            assert [body for head, body in server.requests if head[":path"] == "/up"] == [b"a body"]
            assert made.connects == 0

    asyncio.run(main())


def test_trailers_pass(tmp_path: Path) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with origin(Origin(), server_context(ca, alpn=("h2",))) as port, world(tmp_path, port, [ca]) as made:
            asking = await client(made, tmp_path)
            stream = asking.request(get("/trailers", NAME))
            await asking.until_ended(stream)
            assert (asking.bodies[stream], asking.trailers[stream]) == (b"and then", {"x-end": "yes"})

    asyncio.run(main())


def test_a_stream_for_another_name_is_misdirected_and_the_others_go_on(tmp_path: Path) -> None:
    async def main() -> None:
        ca, server = trustme.CA(), Origin()
        async with origin(server, server_context(ca, alpn=("h2",))) as port, world(tmp_path, port, [ca]) as made:
            asking = await client(made, tmp_path)
            bad, good = asking.request(get("/", "evil.test")), asking.request(get("/good", NAME))
            await asking.until_ended(bad, good)
            assert (asking.headers[bad][":status"], asking.headers[good][":status"]) == ("421", "200")
            assert [head[":path"] for head, _ in server.requests] == ["/good"]
            assert [seen.what for seen in made.recorder.faults] == ["misdirected_request"]
            assert sorted(seen.status or 0 for seen in made.recorder.requests) == [200, 421]

    asyncio.run(main())


@pytest.mark.checklist("C7", "C9")
@pytest.mark.parametrize(
    "headers",
    [
        get("/", NAME, host="evil.test"),
        [(":method", "CONNECT"), (":authority", "evil.test:443")],
        [(":method", "CONNECT"), (":authority", f"{NAME}:443")],
        [(":method", "GET"), (":scheme", "https"), (":path", "/")],
    ],
    ids=["host", "connect", "connect-here", "nobody"],
)
def test_what_http2_does_not_allow_goes_nowhere(tmp_path: Path, headers: list[tuple[str, str]]) -> None:
    async def main() -> None:
        ca, server = trustme.CA(), Origin()
        async with origin(server, server_context(ca, alpn=("h2",))) as port, world(tmp_path, port, [ca]) as made:
            asking = await client(made, tmp_path)
            stream = asking.request(headers)
            with contextlib.suppress(ConnectionError):  # some of it is refused, the rest ends the connection
                await asking.until_ended(stream)
                assert asking.headers[stream][":status"] in {"400", "421"}
            assert server.requests == []
            assert [fault.what for fault in made.recorder.faults] == ["malformed_request"]

    asyncio.run(main())


def test_a_refused_upload_is_drained_and_the_connection_lives(tmp_path: Path) -> None:
    async def main() -> None:
        ca, server = trustme.CA(), Origin()
        async with origin(server, server_context(ca, alpn=("h2",))) as port, world(tmp_path, port, [ca]) as made:
            asking = await client(made, tmp_path)
            bad = asking.request([(":method", "POST"), *get("/", "evil.test")[1:]], b"x" * 16000)
            await asking.until_ended(bad)
            good = asking.request(get("/good", NAME))
            await asking.until_ended(good)
            assert asking.headers[bad][":status"] == "421"
            assert len(server.requests) == 1

    asyncio.run(main())


def test_a_reset_stream_is_reset_and_never_a_page(tmp_path: Path) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with origin(Origin(), server_context(ca, alpn=("h2",))) as port, world(tmp_path, port, [ca]) as made:
            asking = await client(made, tmp_path)
            bad, good = asking.request(get("/reset", NAME)), asking.request(get("/good", NAME))
            await asking.until_ended(bad, good)
            assert bad not in asking.headers
            assert asking.headers[good][":status"] == "200"

    asyncio.run(main())


def test_a_stream_that_nobody_takes_holds_only_itself_back(tmp_path: Path) -> None:
    """Flow control reaches from one end to the other: what is kept of the stream is bounded, another one flows."""

    async def main() -> None:
        ca, server = trustme.CA(), Origin()
        async with origin(server, server_context(ca, alpn=("h2",))) as port, world(tmp_path, port, [ca]) as made:
            asking = await client(made, tmp_path)
            asking.connection.increment_flow_control_window(1 << 30)
            asking.takes = False
            slow = asking.request(get("/bytes/100000000", NAME))
            quick = asking.request(get("/quick", NAME))
            await asking.until_ended(quick)
            before = -1
            while server.sent_bytes != before or not server.sent_bytes:
                before = server.sent_bytes
                await asyncio.sleep(0.1)
            assert server.sent_bytes <= frames.WINDOW_BYTES + http2.BACKLOG_BYTES + (1 << 17)
            assert slow not in asking.ended

    asyncio.run(main())


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
def test_a_stream_that_is_taken_arrives_whole(tmp_path: Path, size: int) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with origin(Origin(), server_context(ca, alpn=("h2",))) as port, world(tmp_path, port, [ca]) as made:
            status, out, err = await curl(made, tmp_path, "--http2", path=f"/bytes/{size or 1}")
            assert (status, len(out), err) == (0, size or 1, "")
            assert made.recorder.requests[0].response_bytes == (size or 1)

    asyncio.run(main())


async def settled(count: Callable[[], int]) -> int:
    """`count` once it has not changed for a while."""
    before, now = -1, 0
    while now != before or not now:
        before = now
        await asyncio.sleep(0.3)
        now = count()
    return now


def test_what_a_client_does_not_take_of_all_streams_is_bounded(tmp_path: Path) -> None:
    async def main() -> None:
        ca, server = trustme.CA(), Origin()
        async with origin(server, server_context(ca, alpn=("h2",))) as port, world(tmp_path, port, [ca]) as made:
            asking = await client(made, tmp_path)
            asking.connection.increment_flow_control_window(1 << 30)
            asking.takes = False
            streams = [asking.request(get("/bytes/100000000", NAME)) for _ in range(40)]
            listening = asyncio.create_task(asking.until_ended(*streams))

            def taken() -> int:
                return sum(map(len, asking.bodies.values()))

            async with asyncio.timeout(60):
                while taken() <= 1 << 16:
                    await asyncio.sleep(0.05)
            passed = await settled(lambda: server.sent_bytes)
            assert passed - taken() <= frames.CONNECTION_WINDOW_BYTES + http2.HELD_BYTES + (1 << 18)
            listening.cancel()

    asyncio.run(main())


class Choosy(Origin):
    """Takes one stream at a time, and never answers it."""

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        connection.local_settings.max_concurrent_streams = 1
        connection.local_settings.acknowledge()
        connection.initiate_connection()
        writer.write(connection.data_to_send())
        while data := await reader.read(65536):
            connection.receive_data(data)
            writer.write(connection.data_to_send())


def upload(asking: Client, stream: int) -> int:
    """Send as much as may be sent."""
    sent = 0
    while room := min(asking.connection.local_flow_control_window(stream), asking.connection.max_outbound_frame_size):
        asking.connection.send_data(stream, bytes(room))
        sent += room
    asking.flush()
    return sent


def test_what_waits_for_the_origin_to_take_another_stream_is_bounded_and_goes_with_a_reset(tmp_path: Path) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with origin(Choosy(), server_context(ca, alpn=("h2",))) as port, world(tmp_path, port, [ca]) as made:
            asking = await client(made, tmp_path)
            first = asking.request(get("/", NAME))
            listening = asyncio.create_task(asking.until_ended(first))
            await asyncio.sleep(0.2)
            stream = asking.connection.get_next_available_stream_id()
            asking.connection.send_headers(stream, [(":method", "POST"), *get("/up", NAME)[1:]])
            sent = 0
            for _ in range(30):
                sent += upload(asking, stream)
                await asyncio.sleep(0.02)
            assert (1 << 16) < sent <= frames.WINDOW_BYTES + 2 * http2.BACKLOG_BYTES
            (back,) = alive(http2.Back, made)
            assert list(back.stream_queue) == [stream]
            asking.connection.reset_stream(stream)
            asking.flush()
            async with asyncio.timeout(10):
                while back.stream_queue:
                    await asyncio.sleep(0.01)
            listening.cancel()

    asyncio.run(main())


def alive[T](kind: type[T], made: World) -> list[T]:
    """The connections of the only flow there is."""
    (task,) = made.engine._flows.values()
    conversation = task.get_coro().cr_frame.f_locals["conversation"]  # type: ignore[union-attr]
    return [side for side in conversation._dialogue._layer.connections.values() if isinstance(side, kind)]


def test_a_connection_forgets_streams_that_are_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2, "REMEMBERED_STREAMS", 10)

    async def main() -> None:
        ca, server = trustme.CA(), Origin()
        async with origin(server, server_context(ca, alpn=("h2",))) as port, world(tmp_path, port, [ca]) as made:
            asking = await client(made, tmp_path)
            for number in range(40):
                stream = asking.request(get(f"/{number}", NAME))
                await asking.until_ended(stream)
                assert asking.bodies[stream] == f"you asked for /{number}".encode()
            (back,), (front,) = alive(http2.Back, made), alive(http2.Front, made)
            assert max(len(front.streams), len(back.streams)) <= 12
            assert max(len(back.our_stream_id), len(back.their_stream_id)) <= 12
            gone = [number for number in range(1, 40, 2) if number not in back.our_stream_id]
            assert gone
            monkeypatch.setattr(http2, "REMEMBERED_STREAMS", 1000)
            assert list(back.handle_event(RequestData(gone[0], b"too late"))) == []
            assert gone[0] not in back.our_stream_id

    asyncio.run(main())


def test_as_many_streams_as_may_be_open_can_begin_before_the_origin_has_said_anything(tmp_path: Path) -> None:
    async def main() -> None:
        ca, server = trustme.CA(), Origin()
        async with origin(server, server_context(ca, alpn=("h2",))) as port, world(tmp_path, port, [ca]) as made:
            asking = await client(made, tmp_path)
            streams = [asking.request(get(f"/{number}", NAME)) for number in range(100)]
            await asking.until_ended(*streams)
            assert {asking.headers[stream][":status"] for stream in streams} == {"200"}

    asyncio.run(main())


# --- floods -----------------------------------------------------------------------------------------------------------
PING = b"\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678"
FLOODS = {
    "ping": PING,
    "settings": b"\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    "reset": b"\x00\x00\x04\x03\x00\x00\x00\x00\x01\x00\x00\x00\x08",
    "window": b"\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x00\x01",
}


@pytest.mark.checklist("C9")
@pytest.mark.parametrize("name", FLOODS)
def test_a_client_that_floods_is_ended_and_the_others_go_on(tmp_path: Path, name: str) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with origin(Origin(), server_context(ca, alpn=("h2",))) as port, world(tmp_path, port, [ca]) as made:
            other, asking = await client(made, tmp_path), await client(made, tmp_path)
            await asking.until_ended(asking.request(get("/", NAME)))
            asking._writer.write(FLOODS[name] * 30_000)
            end = await made.end()
            assert (end.outcome, end.error) == (Outcome.MALFORMED, "the client broke HTTP")
            assert [(seen.what, seen.detail) for seen in made.recorder.faults] == [
                ("malformed_request", "a flood of HTTP/2 frames")
            ]
            await other.until_ended(other.request(get("/", NAME)))

    asyncio.run(main())


def test_requests_that_are_reset_at_once_are_a_flood(tmp_path: Path) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with origin(Origin(), server_context(ca, alpn=("h2",))) as port, world(tmp_path, port, [ca]) as made:
            asking = await client(made, tmp_path)
            with contextlib.suppress(ConnectionError):
                for _ in range(40):  # many at a time: a slow machine's client must not earn credit meanwhile
                    for _ in range(50):
                        asking.connection.reset_stream(asking.request(get("/", NAME)))
                    asking.flush()
                    await asking._writer.drain()
            assert (await made.end()).outcome == Outcome.MALFORMED
            assert "a flood of HTTP/2 frames" in [seen.detail for seen in made.recorder.faults]

    asyncio.run(main())


# --- trailers and pages -----------------------------------------------------------------------------------------------
def test_trailers_are_inspected(tmp_path: Path) -> None:
    async def main() -> None:
        ca, word = trustme.CA(), Word()
        async with (
            origin(Origin(), server_context(ca, alpn=("h2",))) as port,
            world(tmp_path, port, [ca], inspectors=[word]) as made,
        ):
            asking = await client(made, tmp_path)
            stream = asking.connection.get_next_available_stream_id()
            asking.connection.send_headers(stream, [(":method", "POST"), *get("/trailers", NAME)[1:]])
            asking.connection.send_data(stream, b"a body")
            asking.connection.send_headers(stream, [("x-more", "a SECRET")], end_stream=True)
            asking.flush()
            await asking.until_ended(stream)
            assert asking.trailers[stream] == {"x-end": "yes"}
            assert word.content("headers", sent=True)[1:] == [b"x-more: a SECRET\r\n"]
            assert word.content("headers", sent=False)[1:] == [b"x-end: yes\r\n"]
            assert [seen.finding.location for seen in made.recorder.findings] == ["request.headers"]

    asyncio.run(main())


@pytest.mark.parametrize("length", [None, "6"], ids=["streamed", "held"])
def test_a_finding_in_a_requests_trailers_keeps_the_request_from_being_complete(
    tmp_path: Path, length: str | None
) -> None:
    async def main() -> None:
        ca, server = trustme.CA(), Origin()
        async with (
            origin(server, server_context(ca, alpn=("h2",))) as port,
            world(tmp_path, port, [ca], inspectors=[Word()], on_finding=OnFinding.BLOCK) as made,
        ):
            asking = await client(made, tmp_path)
            stream = asking.connection.get_next_available_stream_id()
            head = [(":method", "POST"), *get("/up", NAME)[1:], *([("content-length", length)] if length else [])]
            asking.connection.send_headers(stream, head)
            asking.connection.send_data(stream, b"a body")
            asking.connection.send_headers(stream, [("x-more", "a SECRET")], end_stream=True)
            asking.flush()
            await asking.until_ended(stream)
            assert asking.headers[stream][":status"] == "403"
            assert server.requests == []

    asyncio.run(main())


def test_a_finding_in_an_answers_trailers_breaks_it_off(tmp_path: Path) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with (
            origin(Origin(), server_context(ca, alpn=("h2",))) as port,
            world(tmp_path, port, [ca], inspectors=[Word(word=b"x-end: yes")], on_finding=OnFinding.BLOCK) as made,
        ):
            asking = await client(made, tmp_path)
            stream = asking.request(get("/trailers", NAME))
            await asking.until_ended(stream)
            assert stream in asking.resets
            assert stream not in asking.trailers
            assert [seen.outcome for seen in made.recorder.requests] == [Outcome.BLOCKED]

    asyncio.run(main())


def test_what_mitmproxy_refuses_gets_a_page_of_ours(tmp_path: Path) -> None:
    async def main() -> None:
        ca, server = trustme.CA(), Origin()
        async with origin(server, server_context(ca, alpn=("h2",))) as port, world(tmp_path, port, [ca]) as made:
            asking = await client(made, tmp_path)
            lengths = [("content-length", "0"), ("content-length", "0")]
            bad = asking.request([*get("/", NAME), *lengths])
            await asking.until_ended(bad)
            assert asking.headers[bad][":status"] == "400"
            assert asking.headers[bad]["content-type"] == "text/plain; charset=utf-8"
            assert b"Connection: flow-1\n" in asking.bodies[bad]
            assert server.requests == []

    asyncio.run(main())


def test_uploads_over_http2_arrive_whole(tmp_path: Path) -> None:
    async def main() -> None:
        ca, server = trustme.CA(), Origin()
        big = tmp_path / "big"
        big.write_bytes(bytes(range(256)) * 20_000)
        async with origin(server, server_context(ca, alpn=("h2",))) as port, world(tmp_path, port, [ca]) as made:
            assert (await curl(made, tmp_path, "--http2", "--data-binary", f"@{big}"))[0] == 0
            assert server.requests[0][1] == big.read_bytes()

    asyncio.run(main())


def test_a_finding_over_http2_gives_a_page(tmp_path: Path) -> None:
    async def main() -> None:
        ca, server = trustme.CA(), Origin()
        async with (
            origin(server, server_context(ca, alpn=("h2",))) as port,
            world(tmp_path, port, [ca], inspectors=[Word()], on_finding=OnFinding.BLOCK) as made,
        ):
            status, out, _ = await curl(made, tmp_path, "--http2", "-w", "%{http_code}", "-d", "a SECRET body")
            assert (status, out[-3:]) == (0, "403")
            assert server.requests == []

    asyncio.run(main())


@pytest.mark.checklist("C9")
def test_what_is_no_http2_ends_the_connection(tmp_path: Path) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with origin(Origin(), server_context(ca, alpn=("h2",))) as port, world(tmp_path, port, [ca]) as made:
            reader, writer = await connected(made, trusting(tmp_path, alpn=("h2",)))
            writer.write(b"GET / HTTP/1.1\r\n\r\n" * 10)
            await asyncio.wait_for(reader.read(-1), 10)
            assert (await made.end()).outcome == Outcome.MALFORMED

    asyncio.run(main())
