"""Origins that ask for a client's certificate, and programs whose rule names one."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme
from engine_world import World, curl, origin, server_context, world
from msgspec.structs import replace
from OpenSSL import SSL
from test_engine_services import known as known_service

from mitmsec.audit.event import Outcome
from mitmsec.core.identity import Identity
from mitmsec.core.messages import TlsServerFacts
from mitmsec.engine.identities import Identities
from mitmsec.engine.services import Services

CLIENTS = trustme.CA()


def identity(name: str, authority: trustme.CA = CLIENTS) -> tuple[Identity, bytes]:
    leaf = authority.create_child_ca().issue_cert(f"{name}@partner.test")
    chain = tuple(ssl.PEM_cert_to_DER_cert(pem.bytes().decode()) for pem in leaf.cert_chain_pems)
    key, sha256 = leaf.private_key_pem.bytes(), hashlib.sha256(chain[0]).hexdigest()
    return Identity(name=name, chain=chain, sha256=sha256, key_bytes=len(key)), key


ALICE, ALICE_KEY = identity("alice")
BOB, BOB_KEY = identity("bob")


class WhoIsThere:
    """Answers with the SHA-256 of the certificate that it was shown."""

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        who = hashlib.sha256(shown).hexdigest() if shown else "nobody"
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(who), who.encode()))
            await writer.drain()


@contextlib.asynccontextmanager
async def asking(
    tmp_path: Path, version: ssl.TLSVersion, mode: ssl.VerifyMode = ssl.CERT_REQUIRED, clients: trustme.CA = CLIENTS
) -> AsyncIterator[World]:
    """An origin that asks, and an engine that has two identities to show."""
    ca = trustme.CA()
    context = server_context(ca)
    context.verify_mode, context.minimum_version, context.maximum_version = mode, version, version
    clients.configure_trust(context)
    async with (
        origin(WhoIsThere(), context) as port,
        world(tmp_path, port, [ca], identities=(ALICE, BOB), keys_pem=ALICE_KEY + BOB_KEY) as made,
    ):
        yield made


async def server_facts(made: World) -> TlsServerFacts:
    end = await made.end()
    assert end.tls is not None
    assert end.tls.server is not None
    return end.tls.server


@pytest.mark.checklist("C10")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("who", [ALICE, BOB], ids=["alice", "bob"])
def test_the_origin_is_shown_the_certificate_that_the_rule_names(
    tmp_path: Path, version: ssl.TLSVersion, who: Identity
) -> None:
    """With those above it: the origin knows the root only. Tokens that are bound to it (RFC 8705) stay good."""

    async def main() -> None:
        async with asking(tmp_path, version) as made:
            made.decision = replace(made.decision, identity=who.name)
            assert await curl(made, tmp_path) == (0, who.sha256, "")
            facts = await server_facts(made)
            assert (facts.client_certificate, facts.asks_certificate) == (who.name, None)

    asyncio.run(main())


@pytest.mark.checklist("C10")
@pytest.mark.parametrize("named", ["", "somebody whose key this worker has not"])
def test_who_has_none_to_show_does_not_go_on_without(tmp_path: Path, named: str) -> None:
    async def main() -> None:
        async with asking(tmp_path, ssl.TLSVersion.TLSv1_3, ssl.CERT_OPTIONAL) as made:
            made.decision = replace(made.decision, identity=named)
            assert (await curl(made, tmp_path))[:2] == (35, "")
            end = await made.end()
            assert end.outcome == Outcome.ORIGIN_REFUSED
            assert end.tls is not None
            assert end.tls.server is not None
            assert (end.tls.server.asks_certificate, end.tls.server.client_certificate) == (True, None)

    asyncio.run(main())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_an_origin_that_does_not_accept_it_fails_the_connection(tmp_path: Path, version: ssl.TLSVersion) -> None:
    async def main() -> None:
        async with asking(tmp_path, version, clients=trustme.CA()) as made:
            made.decision = replace(made.decision, identity="alice")
            status, out, _ = await curl(made, tmp_path)
            assert (status in {35, 52, 55, 56}, out) == (True, "")
            assert (await made.end()).outcome in {Outcome.ORIGIN_REFUSED, Outcome.ORIGIN_RESET}

    asyncio.run(main())


def test_an_origin_that_does_not_ask_never_sees_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with asking(tmp_path, ssl.TLSVersion.TLSv1_3, ssl.CERT_NONE) as made:
            made.decision = replace(made.decision, identity="alice")
            assert await curl(made, tmp_path) == (0, "nobody", "")
            assert (await server_facts(made)).client_certificate is None

    asyncio.run(main())


@pytest.mark.checklist("U31")
def test_no_session_is_resumed_as_somebody_else(tmp_path: Path) -> None:
    """A resumed session is still that of whom the origin saw at first."""

    async def main() -> None:
        async with asking(tmp_path, ssl.TLSVersion.TLSv1_3) as made:
            made.owner = "one process"
            seen = []
            for name in ("alice", "alice", "bob", "alice"):
                made.decision = replace(made.decision, identity=name)
                _, out, _ = await curl(made, tmp_path)
                seen.append((out, (await server_facts(made)).resumed))
            assert seen == [(ALICE.sha256, None), (ALICE.sha256, True), (BOB.sha256, None), (ALICE.sha256, True)]

    asyncio.run(main())


def test_keys_of_services_stand_behind_those_of_identities() -> None:
    service, service_key = known_service()
    keys = ALICE_KEY + BOB_KEY + service_key
    identities = Identities((ALICE, BOB), keys, b"")
    assert identities.find("alice") is not None
    assert identities.find("nobody") is None
    assert identities.size_bytes == len(ALICE_KEY + BOB_KEY)
    assert Services((service,), keys[identities.size_bytes :]).find("shop") is not None


def test_without_keys_there_is_nobody() -> None:
    identities = Identities((ALICE,), b"", b"")
    assert (identities.find("alice"), identities.size_bytes) == (None, 0)


def test_a_key_that_is_not_the_certificates_is_an_error() -> None:
    with pytest.raises(SSL.Error):
        Identities((replace(ALICE, key_bytes=len(BOB_KEY)),), BOB_KEY, b"")
