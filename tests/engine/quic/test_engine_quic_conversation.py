"""HTTP/3 through the engine: handshakes and their ends. aioquic on both sides, datagrams carried as a gate does it."""

from __future__ import annotations

import asyncio
import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from engine_world import NAME, Word
from quic_world import hello_of, origin, story, world

from mitmsec.audit.event import Outcome
from mitmsec.core.clienthello import ClientHello
from mitmsec.core.model import OnFailure, Refusal, Upstream, UpstreamTrust
from mitmsec.core.quic_opening import QuicOpening
from mitmsec.engine.quic import conversation
from mitmsec.engine.side import Ended
from mitmsec_certs.packet_cipher import Aes128
from mitmsec_certs.upstream import Terms


def hello() -> ClientHello:
    one = QuicConnection(configuration=QuicConfiguration(alpn_protocols=["h3"], server_name=NAME))
    one.connect(("192.0.2.1", 443), now=0.0)
    opening = QuicOpening(Aes128())
    for datagram, _ in one.datagrams_to_send(now=0.0):
        opening.fed(datagram)
    assert isinstance(opening.answer, ClientHello)
    return opening.answer


@story
async def test_a_request_is_read_and_its_origin_verified(tmp_path: Path) -> None:
    ca = trustme.CA()
    async with origin(ca) as port, world(tmp_path, port, [ca]) as the:
        async with the.client() as client:
            answer = await client.got("/page?token=secret")
            assert (answer.status, answer.body) == ("200", f"GET {NAME}/page?token=secret 0".encode())
        ended = await the.end()
        assert (ended.outcome, ended.error) == (Outcome.COMPLETED, "")
        assert ended.was_heard
        assert ended.tls is not None
        assert ended.tls.server is not None
        assert (ended.tls.server.verified, ended.tls.server.alpn) == (True, "h3")
        assert ended.tls.client is not None
        assert (ended.tls.client.version, ended.tls.client.alpn) == ("TLSv1.3", "h3")
        (request,) = the.recorder.requests
        assert (request.method, request.status, request.http_version) == ("GET", 200, "HTTP/3")
        assert request.url == f"https://{NAME}:{port}/page?token="
        assert [question.name for question in the.mint.questions] == [NAME]
        assert the.recorder.faults == []


EXPIRED = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)


@pytest.mark.parametrize("upstream", list(Upstream))
@pytest.mark.parametrize("flaw", ["untrusted", "expired", "another name"])
def test_an_origin_whose_certificate_does_not_hold_is_refused_before_the_client_hears_anything(
    tmp_path: Path, upstream: Upstream, flaw: str
) -> None:
    """Whatever the policy does with such: by TCP it is done. No certificate is made."""

    async def main() -> None:
        ca = trustme.CA()
        names = ["other.test"] if flaw == "another name" else []
        more = {"not_after": EXPIRED} if flaw == "expired" else {}
        roots = [] if flaw == "untrusted" else [ca]
        async with origin(ca, hello_of, *names, **more) as port:
            async with world(tmp_path, port, roots, upstream=upstream) as the:
                asking = asyncio.ensure_future(_ask(the))
                ended = await the.end()
                assert (ended.outcome, ended.bytes_received) == (Outcome.ORIGIN_CERTIFICATE, 0)
                assert ended.tls is not None
                assert ended.tls.server is not None
                assert (ended.tls.server.verified, ended.tls.server.error) == (False, ended.error)
                assert ended.tls.server.certificate_sha256
                assert (the.mint.questions, the.recorder.requests) == ([], [])
                asking.cancel()

    asyncio.run(main())


async def _ask(the: Any, **more: Any) -> Any:
    async with the.client(**more) as client:
        return await client.got()


@story
async def test_what_the_policy_asks_of_origins_beyond_a_chain_is_asked_here_too(tmp_path: Path) -> None:
    ca = trustme.CA()
    terms = Terms(trust=UpstreamTrust.PUBLIC)
    async with origin(ca) as port, world(tmp_path, port, [ca], terms=terms) as the:
        asking = asyncio.ensure_future(_ask(the))
        ended = await the.end()
        assert (ended.outcome, ended.bytes_received) == (Outcome.ORIGIN_CERTIFICATE, 0)
        assert "vendor" in ended.error
        asking.cancel()


@story
async def test_an_origin_that_asks_for_a_certificate_is_told_nothing_and_that_is_known(tmp_path: Path) -> None:
    ca, asked = trustme.CA(), []

    def never(*_: object) -> None:
        asked.append(1)

    async with origin(ca, never, asks=True) as port, world(tmp_path, port, [ca]) as the:
        asking = asyncio.ensure_future(_ask(the))
        ended = await the.end()
        assert (ended.outcome, ended.error) == (
            Outcome.ORIGIN_REFUSED,
            "the origin asks for a client's certificate",
        )
        assert ended.tls is not None
        assert ended.tls.server is not None
        assert ended.tls.server.asks_certificate
        assert (asked, the.mint.questions) == ([], [])
        asking.cancel()


@story
async def test_a_client_that_pins_is_told_apart(tmp_path: Path) -> None:
    ca = trustme.CA()
    async with origin(ca) as port, world(tmp_path, port, [ca]) as the:
        with pytest.raises(ConnectionError):
            await _ask(the, root_pem=ca.cert_pem.bytes().decode())
        ended = await the.end()
        assert ended.outcome == Outcome.CLIENT_REJECTED
        assert ended.tls is not None
        assert ended.tls.client is not None
        assert ended.tls.client.refusal is Refusal.ALERT
        assert not ended.was_heard


@story
async def test_an_origin_without_http3_is_refused(tmp_path: Path) -> None:
    ca = trustme.CA()
    async with origin(ca, alpn="other") as port, world(tmp_path, port, [ca]) as the:
        asking = asyncio.ensure_future(_ask(the))
        assert (await the.end()).outcome == Outcome.ORIGIN_REFUSED
        assert the.mint.questions == []
        asking.cancel()


@story
async def test_an_origin_that_says_nothing_is_not_waited_for_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "ORIGIN_DEADLINE_S", 0.3)
    ca = trustme.CA()
    async with origin(ca) as port, world(tmp_path, port, [ca]) as the:
        the.deaf = True
        asking = asyncio.ensure_future(_ask(the))
        assert (await the.end()).outcome == Outcome.ORIGIN_TIMEOUT
        asking.cancel()


@story
async def test_without_a_certificate_nothing_is_said_to_the_client(tmp_path: Path) -> None:
    ca = trustme.CA()
    async with origin(ca) as port, world(tmp_path, port, [ca]) as the:
        the.mint.refuses = True
        asking = asyncio.ensure_future(_ask(the))
        ended = await the.end()
        assert (ended.outcome, ended.bytes_received) == (Outcome.FAULT, 0)
        assert [fault.what for fault in the.recorder.faults] == ["no_certificate"]
        asking.cancel()


@story
async def test_a_hello_for_another_host_than_the_decided_one_goes_nowhere(tmp_path: Path) -> None:
    ca = trustme.CA()
    async with origin(ca) as port, world(tmp_path, port, [ca]) as the:
        the.name = "other.test"
        asking = asyncio.ensure_future(_ask(the))
        ended = await the.end()
        assert (ended.outcome, ended.error) == (
            Outcome.FAULT,
            "the hello names another host than the one that was decided",
        )
        assert (the.mint.questions, the.recorder.requests) == ([], [])
        asking.cancel()


@story
async def test_what_an_inspector_misses_closes_where_failures_close(tmp_path: Path) -> None:
    ca = trustme.CA()
    async with origin(ca) as port, world(tmp_path, port, [ca], on_failure=OnFailure.CLOSED) as the:
        the.decision = msgspec.structs.replace(the.decision, inspect=("nobody",))
        asking = asyncio.ensure_future(_ask(the))
        assert (await the.end()).outcome == Outcome.BLOCKED
        assert [fault.what for fault in the.recorder.faults] == ["not_inspected"]
        assert the.recorder.requests == []
        asking.cancel()


@story
async def test_a_worker_that_stops_cuts_what_it_has(tmp_path: Path) -> None:
    ca = trustme.CA()
    async with origin(ca) as port, world(tmp_path, port, [ca], inspectors=[Word()]) as the:
        async with the.client() as client:
            await client.got()
            await the.engine.stop()
            ended = await the.end()
            assert ended.outcome == Outcome.CUT
            await asyncio.wait_for(client.wait_closed(), 10)


def test_nothing_weaker_is_offered_than_the_client_takes() -> None:
    offered = hello()
    assert conversation._towards(NAME, offered).cipher_suites is None
    strong = msgspec.structs.replace(offered, ciphers=(0x1302, 0x1303))
    assert conversation._towards(NAME, strong).cipher_suites == conversation.SUITES_256
    for groups in ((0x11EC,), (0x0018,)):
        with pytest.raises(Ended):
            conversation._towards(NAME, msgspec.structs.replace(offered, groups=groups))


@story
async def test_a_worker_that_decrypts_no_quic_takes_none(tmp_path: Path) -> None:
    ca = trustme.CA()
    async with origin(ca) as port, world(tmp_path, port, [ca], decrypts=False) as the:
        asking = asyncio.ensure_future(_ask(the))
        ended = await the.end()
        assert (ended.outcome, ended.reset, ended.tls) == (Outcome.FAULT, True, None)
        asking.cancel()
