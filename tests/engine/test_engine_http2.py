"""HTTP/2 end to end."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
import trustme
from engine_h2 import Client, Origin, get
from engine_world import NAME, Word, World, connected, curl, origin, server_context, trusting, world

from mitmsec.audit.event import Outcome
from mitmsec.core.model import OnFinding
from mitmsec.engine import http2


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


def test_streams_share_a_connection(tmp_path: Path) -> None:
    async def main() -> None:
        ca, server = trustme.CA(), Origin()
        async with origin(server, server_context(ca, alpn=("h2",))) as port, world(tmp_path, port, [ca]) as made:
            asking = await client(made, tmp_path)
            streams = [asking.request(get(f"/{number}", NAME)) for number in range(30)]
            upload = asking.request([(":method", "POST"), *get("/up", NAME)[1:]], b"a body")
            await asking.until_ended(*streams, upload)
            assert [asking.bodies[stream] for stream in streams] == [f"you asked for /{n}".encode() for n in range(30)]
            assert server.requests[-1][1] == b"a body"
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
            assert server.sent_bytes <= http2.WINDOW_BYTES + http2.BACKLOG_BYTES + (1 << 17)
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


def test_what_is_no_http2_ends_the_connection(tmp_path: Path) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with origin(Origin(), server_context(ca, alpn=("h2",))) as port, world(tmp_path, port, [ca]) as made:
            reader, writer = await connected(made, trusting(tmp_path, alpn=("h2",)))
            writer.write(b"GET / HTTP/1.1\r\n\r\n" * 10)
            await asyncio.wait_for(reader.read(-1), 10)
            assert (await made.end()).outcome == Outcome.MALFORMED

    asyncio.run(main())
