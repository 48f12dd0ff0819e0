"""Connections that came in, decrypted with the service's own certificate and key."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from engine_h2 import Origin
from engine_world import NAME, Pages, Serve, Word, World, connected, curl, origin, trusting, world
from msgspec.structs import replace
from OpenSSL import SSL, crypto

from mitmsec.audit.event import Outcome, SecretsSeen
from mitmsec.core.known_service import KnownService
from mitmsec.core.messages import FlowEnded
from mitmsec.core.model import Direction, OnFinding
from mitmsec.engine.services import Services, refusal

CA = trustme.CA()
LEAF = CA.create_child_ca().issue_cert(NAME)
OTHER = CA.issue_cert(NAME)


def known(leaf: trustme.LeafCert = LEAF, name: str = "shop") -> tuple[KnownService, bytes]:
    chain = tuple(ssl.PEM_cert_to_DER_cert(pem.bytes().decode()) for pem in leaf.cert_chain_pems)
    key = leaf.private_key_pem.bytes()
    sha256 = hashlib.sha256(chain[0]).hexdigest()
    return KnownService(name=name, names=(NAME,), chain=chain, sha256=sha256, key_bytes=len(key)), key


def serving(leaf: trustme.LeafCert = LEAF, alpn: tuple[str, ...] = ("h2", "http/1.1")) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(context)
    context.set_alpn_protocols(list(alpn))
    return context


@contextlib.asynccontextmanager
async def shop(
    tmp_path: Path, serve: Serve, context: ssl.SSLContext, *, service: str = "shop", capture: bool = False
) -> AsyncIterator[tuple[World, Word]]:
    """The service behind an engine that has its key. Whoever calls trusts the service's CA, and nobody trusts ours."""
    one, key = known()
    word = Word()
    async with (
        origin(serve, context) as port,
        world(tmp_path, port, inspectors=(word,), services=(one,), keys_pem=key, capture=capture) as made,
    ):
        made.mint.refuses, made.direction = True, Direction.INBOUND
        made.decision = replace(made.decision, service=service)
        (tmp_path / "root.pem").write_bytes(CA.cert_pem.bytes())
        yield made, word


def server_facts(end: FlowEnded) -> tuple[bool | None, str | None, str | None]:
    assert end.tls is not None
    assert end.tls.server is not None
    return end.tls.server.verified, end.tls.server.certificate_sha256, end.tls.server.error


@pytest.mark.parametrize(("flag", "alpn", "version"), [("--http1.1", "http/1.1", "1.1"), ("--http2", "h2", "2")])
def test_the_peer_sees_the_services_own_chain_and_what_it_says_is_read(
    tmp_path: Path, flag: str, alpn: str, version: str
) -> None:
    async def main() -> None:
        server = Pages() if alpn == "http/1.1" else Origin()
        async with shop(tmp_path, server, serving(alpn=(alpn,))) as (made, _):
            words = (flag, "-d", "a SECRET", "-w", " %{http_version} %{num_certs}")
            status, out, err = await curl(made, tmp_path, *words, path="/upload")
            assert (status, out, err) == (0, f"you asked for /upload {version} 2", "")
            end = await made.end()
            assert (end.outcome, end.error) == (Outcome.COMPLETED, "")
            assert server_facts(end) == (True, known()[0].sha256, None)
            (request,) = made.recorder.requests
            assert (request.method, request.url, request.status) == (
                "POST",
                f"https://{NAME}:{made.origin.port}/upload",
                200,
            )
            assert [finding.finding.location for finding in made.recorder.findings] == ["request.body"]
            assert made.mint.questions == []

    asyncio.run(main())


def test_the_peer_gets_exactly_the_services_certificate_and_keys_are_kept_for_captures(tmp_path: Path) -> None:
    async def main() -> None:
        async with shop(tmp_path, Pages(), serving(), capture=True) as (made, _):
            _, writer = await connected(made, trusting(tmp_path))
            shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            assert hashlib.sha256(shown).hexdigest() == known()[0].sha256
            writer.close()
            await made.end()
            assert any(b"CLIENT_TRAFFIC_SECRET_0" in seen.lines for seen in made.recorder.of(SecretsSeen))

    asyncio.run(main())


def test_a_request_for_another_host_is_not_passed_on(tmp_path: Path) -> None:
    async def main() -> None:
        server = Pages()
        async with shop(tmp_path, server, serving(alpn=("http/1.1",))) as (made, _):
            _, out, _ = await curl(made, tmp_path, "-H", "Host: admin.test")
            assert out == "421 Misdirected Request\n"
            assert [request.status for request in made.recorder.requests] == [421]
            assert server.requests == []

    asyncio.run(main())


def test_what_a_finding_stops_never_reaches_the_service_and_the_peer_hears_no_more_than_that(tmp_path: Path) -> None:
    async def main() -> None:
        server = Pages()
        async with shop(tmp_path, server, serving(alpn=("http/1.1",))) as (made, _):
            made.decision = replace(made.decision, on_finding=OnFinding.BLOCK)
            _, out, _ = await curl(made, tmp_path, "-d", "a SECRET")
            assert out == "403 Forbidden\n"
            assert server.requests == []
            assert [request.outcome for request in made.recorder.requests] == [Outcome.BLOCKED]

    asyncio.run(main())


def test_broken_http_gets_no_more_than_its_status_either(tmp_path: Path) -> None:
    async def main() -> None:
        async with shop(tmp_path, Pages(), serving(alpn=("http/1.1",))) as (made, _):
            reader, writer = await connected(made, trusting(tmp_path))
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n b\r\n\x00: x\r\n\r\n")
            answer = await asyncio.wait_for(reader.read(), 20)
            assert answer.startswith(b"HTTP/1.1 400 ")
            assert answer.endswith(b"\r\n\r\n400 Bad Request\n")
            writer.close()

    asyncio.run(main())


def test_a_service_that_shows_another_certificate_gets_nothing(tmp_path: Path) -> None:
    """It is valid for the name, and from the same CA: it is not the one that is known."""

    async def main() -> None:
        async with shop(tmp_path, Pages(), serving(OTHER)) as (made, _):
            with pytest.raises(ConnectionResetError):
                await connected(made, trusting(tmp_path))
            end = await made.end()
            assert end.outcome == Outcome.ORIGIN_CERTIFICATE
            verified, sha256, error = server_facts(end)
            assert (verified, sha256) == (False, known(OTHER)[0].sha256)
            assert error == end.error == 'the service showed another certificate than that of [[inbound]] "shop"'

    asyncio.run(main())


@pytest.mark.parametrize("mode", [ssl.CERT_OPTIONAL, ssl.CERT_REQUIRED])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_service_that_asks_for_the_peers_certificate_cannot_be_decrypted_and_says_so(
    tmp_path: Path, mode: ssl.VerifyMode, version: ssl.TLSVersion
) -> None:
    async def main() -> None:
        context = serving()
        context.verify_mode, context.maximum_version = mode, version
        CA.configure_trust(context)
        async with shop(tmp_path, Pages(), context) as (made, _):
            with pytest.raises(ConnectionResetError):
                await connected(made, trusting(tmp_path))
            end = await made.end()
            assert end.outcome == Outcome.ORIGIN_REFUSED
            assert end.error == "the service asks for a client's certificate; let it pass"

    asyncio.run(main())


def test_a_service_that_asks_for_it_only_later_is_not_told_that_the_peer_has_none() -> None:
    """TLS 1.2, in a second handshake: it is refused, and the flow ends."""
    one, key = known()
    service = Services([one], key).find("shop")
    assert service is not None
    client = service.session(NAME, sni=True, alpn=(), tls12=True)
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_max_proto_version(SSL.TLS1_2_VERSION)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_session_id(b"shop")
    context.set_options(SSL.OP_NO_TICKET)
    context.use_certificate(crypto.load_certificate(crypto.FILETYPE_ASN1, one.chain[0]).to_cryptography())
    private: Any = crypto.load_privatekey(crypto.FILETYPE_PEM, key).to_cryptography_key()
    context.use_privatekey(private)
    server = SSL.Connection(context, None)
    server.set_accept_state()

    def exchanged() -> None:
        for _ in range(4):
            with contextlib.suppress(SSL.WantReadError):
                server.recv(1)
            with contextlib.suppress(SSL.WantReadError):
                client.feed(server.bio_read(1 << 16))
            if client.handshake():
                client.read()
            if ciphertext := client.outgoing():
                server.bio_write(ciphertext)

    exchanged()
    server.set_verify(SSL.VERIFY_PEER, lambda *_: True)
    assert server.renegotiate()
    with contextlib.suppress(SSL.WantReadError):
        server.do_handshake()
    with contextlib.suppress(SSL.Error):  # the service's answer to the refusal
        exchanged()
    assert (server.total_renegotiations(), client.is_asked) == (1, True), "begun, not gone along with, and noted"


def test_without_the_services_key_nobody_is_shown_anything(tmp_path: Path) -> None:
    """Nor a certificate of ours: the gate has asked for none."""

    async def main() -> None:
        async with shop(tmp_path, Pages(), serving(), service="gone") as (made, _):
            with pytest.raises(ConnectionResetError):
                await connected(made, trusting(tmp_path))
            assert (await made.end()).outcome == Outcome.FAULT
            assert [fault.what for fault in made.recorder.faults] == ["no_certificate"]

    asyncio.run(main())


def test_keys_belong_to_services_by_their_place() -> None:
    first, second = known(LEAF, "one"), known(OTHER, "two")
    services = Services([first[0], second[0]], first[1] + second[1])
    one, two = services.find("one"), services.find("two")
    assert one is not None
    assert two is not None
    assert (one.name, two.name) == ("one", "two")
    assert services.find("") is services.find("three") is None
    assert Services([first[0]], b"").find("one") is None, "a worker that is given no keys reads nothing"


def test_what_openssl_does_not_take_is_told_in_its_words() -> None:
    one, key = known()
    assert refusal(one, key) is None
    assert refusal(one, known(OTHER)[1]) == "key values mismatch"
    assert refusal(replace(one, chain=(b"x",)), key) == "not a certificate"
