"""What is on record of both handshakes, side by side."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import tempfile
from pathlib import Path

import pytest
import trustme
from badssl_certificates import root
from crafted_servers import NewServer, through
from engine_world import Pages, World, connected, origin, server_context, trusting, world

from mitmsec.core.messages import Flaw, TlsClientFacts, TlsServerFacts
from mitmsec.engine.contexts import OriginContext
from mitmsec.engine.facts import server_facts
from mitmsec.engine.openssl import TlsSession
from mitmsec.engine.services import OtherCertificate

NAME = "www.origin.test"


async def facts(made: World) -> tuple[TlsClientFacts, TlsServerFacts]:
    end = await made.end()
    assert end.tls is not None
    assert end.tls.client is not None
    assert end.tls.server is not None
    return end.tls.client, end.tls.server


@pytest.mark.checklist("C1")
def test_a_client_is_told_no_later_version_than_its_origin_speaks(tmp_path: Path) -> None:
    """Nor does it take that for a downgrade (RFC 8446 §4.1.3): for all it knows, the server is an old one."""

    async def main() -> None:
        ca = trustme.CA()
        old = server_context(ca)
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        async with origin(Pages(), old) as port, world(tmp_path, port, [ca]) as made:
            _, writer = await connected(made, trusting(tmp_path))
            assert writer.get_extra_info("ssl_object").version() == "TLSv1.2"
            writer.close()
            client, server = await facts(made)
            assert (client.version, server.version, client.exceeds_server) == ("TLSv1.2", "TLSv1.2", None)

    asyncio.run(main())


@pytest.mark.checklist("C1")
def test_a_better_suite_than_the_origins_is_on_record(tmp_path: Path) -> None:
    async def main() -> None:
        ca = trustme.CA()
        weaker = server_context(ca)
        weaker.maximum_version = ssl.TLSVersion.TLSv1_2
        weaker.set_ciphers("ECDHE+AES128+AESGCM")
        async with origin(Pages(), weaker) as port, world(tmp_path, port, [ca]) as made:
            _, writer = await connected(made, trusting(tmp_path))
            writer.close()
            client, server = await facts(made)
            assert (client.cipher, server.cipher) == ("ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES128-GCM-SHA256")
            assert client.exceeds_server == "cipher"

    asyncio.run(main())


@pytest.mark.checklist("C1", "U24")
@pytest.mark.parametrize("is_new", [True, False])
def test_a_hybrid_group_is_agreed_to_on_both_legs_or_on_neither(tmp_path: Path, is_new: bool) -> None:
    """The standard library's servers have none yet."""

    async def main() -> None:
        ca = trustme.CA()
        server, context = (NewServer(ca), None) if is_new else (Pages(), server_context(ca))
        async with origin(server, context) as port, world(tmp_path, port, [ca]) as made:
            client = OriginContext(made.mint.root_pem.encode()).session(made.name, sni=True, alpn=(), tls12=True)
            await through(made.port, client)
            assert client.verify_errors == []
            mine, theirs = await facts(made)
            groups = {(mine.group or "").lower(), (theirs.group or "").lower()}
            assert groups == ({"x25519mlkem768"} if is_new else {"x25519"})
            assert mine.exceeds_server is None

    asyncio.run(main())


def shaken() -> TlsSession:
    """A session that has met an origin, without a socket between."""
    ca = root()
    leaf = ca.leaf(NAME)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile(suffix=".pem") as file:
        file.write(leaf.pem + leaf.key_pem)
        file.flush()
        context.load_cert_chain(file.name)
    into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(into, out, server_side=True)
    session = OriginContext(ca.pem).session(NAME, sni=True, alpn=(), tls12=True)
    while not session.handshake():
        into.write(session.outgoing())
        with contextlib.suppress(ssl.SSLWantReadError):
            server.do_handshake()
        session.feed(out.read())
    return session


def test_of_one_that_holds_and_one_that_does_not() -> None:
    session = shaken()
    certificate = session.peer_certificate()
    assert certificate is not None
    told = server_facts(session, None, "a note")
    assert (told.version, told.cipher, told.group) == ("TLSv1.3", session.cipher, session.strength.group)
    assert (told.certificate_sha256, told.verified, told.error, told.note) == (certificate[0], True, None, "a note")
    refused = server_facts(session, OtherCertificate(text="why", flaw=Flaw.UNTRUSTED), None)
    assert (refused.verified, refused.error, refused.note) == (False, "why", None)
