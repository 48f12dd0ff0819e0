"""Origins that ask for a certificate, and whose own does not hold: they are shown nobody's, and teach nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme
from crafted_servers import bare_server
from engine_world import NAME, World, curl, origin, world
from msgspec.structs import replace
from OpenSSL import SSL, crypto
from test_engine_identities import ALICE, ALICE_KEY

from mitmsec.audit.event import Outcome
from mitmsec.core.messages import FlowEnded, TlsServerFacts
from mitmsec.core.model import Upstream
from mitmsec.engine.contexts import client_session
from mitmsec.engine.openssl import TlsFailed

VERSIONS = [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION]
EARS = ["", "alice"]


class Impostor:
    """Asks whoever comes for a certificate, and keeps what it is shown. Nobody has told the world of its own CA."""

    def __init__(self, version: int) -> None:
        self.shown: list[str] = []
        self._context = bare_server(trustme.CA(), NAME)
        self._context.set_min_proto_version(version)
        self._context.set_max_proto_version(version)
        self._context.set_verify(SSL.VERIFY_PEER, self._note)

    def _note(self, _connection: SSL.Connection, certificate: crypto.X509, *_word: int) -> bool:
        self.shown.append(str(certificate.get_subject()))
        return True

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = client_session(self._context, b"")
        while data := await reader.read(1 << 16):
            session.feed(data)
            with contextlib.suppress(TlsFailed):
                if session.handshake():
                    session.read()
            writer.write(session.outgoing())


@contextlib.asynccontextmanager
async def impostor(tmp_path: Path, version: int, upstream: Upstream) -> AsyncIterator[tuple[Impostor, World]]:
    server = Impostor(version)
    identities = {"identities": (ALICE,), "keys_pem": ALICE_KEY}
    async with (
        origin(server, None) as port,
        world(tmp_path, port, [trustme.CA()], upstream=upstream, **identities) as made,  # type: ignore[arg-type]
    ):
        yield server, made


def server_facts(end: FlowEnded) -> TlsServerFacts:
    assert end.tls is not None
    assert end.tls.server is not None
    return end.tls.server


@pytest.mark.checklist("C10", "C11")
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("identity", EARS)
def test_an_impostor_that_asks_is_mirrored_is_shown_nothing_and_teaches_nothing(
    tmp_path: Path, version: int, identity: str
) -> None:
    """Whoever sits on the network could else have a program's next connections pass, by asking once."""

    async def main() -> None:
        async with impostor(tmp_path, version, Upstream.MIRROR) as (server, made):
            made.decision = replace(made.decision, identity=identity)
            status, out, why = await curl(made, tmp_path)
            assert (status, out) == (60, ""), why
            end = await made.end()
            facts = server_facts(end)
            assert end.outcome == Outcome.ORIGIN_CERTIFICATE
            assert (facts.verified, facts.asks_certificate, facts.client_certificate) == (False, None, None)
            assert server.shown == []

    asyncio.run(main())


@pytest.mark.parametrize("version", VERSIONS)
def test_a_program_that_does_not_mind_the_impostor_gets_no_further(tmp_path: Path, version: int) -> None:
    async def main() -> None:
        async with impostor(tmp_path, version, Upstream.MIRROR) as (server, made):
            made.decision = replace(made.decision, identity="alice")
            status, out, _ = await curl(made, tmp_path, "--insecure")
            assert (status in {35, 52, 55, 56}, out) == (True, "")
            end = await made.end()
            assert (end.outcome, end.reset) == (Outcome.ORIGIN_CERTIFICATE, True)
            assert "asks for a client's certificate" in end.error
            assert server.shown == []

    asyncio.run(main())


@pytest.mark.parametrize("identity", EARS)
def test_where_policy_blocks_bad_certificates_the_impostor_is_blocked(tmp_path: Path, identity: str) -> None:
    async def main() -> None:
        async with impostor(tmp_path, SSL.TLS1_3_VERSION, Upstream.BLOCK) as (server, made):
            made.decision = replace(made.decision, identity=identity)
            assert (await curl(made, tmp_path))[:2] == (35, "")
            end = await made.end()
            assert (end.outcome, end.reset, server_facts(end).asks_certificate) == (
                Outcome.ORIGIN_CERTIFICATE,
                True,
                None,
            )
            assert server.shown == []

    asyncio.run(main())


@pytest.mark.parametrize("version", VERSIONS)
def test_where_policy_accepts_them_it_is_taken_at_its_word(tmp_path: Path, version: int) -> None:
    async def main() -> None:
        async with impostor(tmp_path, version, Upstream.ACCEPT) as (server, made):
            assert (await curl(made, tmp_path))[:2] == (35, "")
            assert server_facts(await made.end()).asks_certificate is True
            assert server.shown == []
            made.decision = replace(made.decision, identity="alice")
            await curl(made, tmp_path, "--max-time", "2")
            assert server.shown != []

    asyncio.run(main())


class TwoFaced:
    """Shows a certificate of each authority in turn, answers one request, and ends the connection."""

    def __init__(self, *authorities: trustme.CA, asks: bool = False) -> None:
        self._contexts = [bare_server(authority, NAME) for authority in authorities]
        for context in self._contexts if asks else ():
            context.set_verify(SSL.VERIFY_PEER, lambda *_: True)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = client_session(self._contexts.pop(0), b"")
        while data := await reader.read(1 << 16):
            session.feed(data)
            if session.handshake() and session.read():
                session.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                session.close_notify()
                return writer.write(session.outgoing())
            writer.write(session.outgoing())


def test_a_further_connection_that_is_right_does_not_whitewash_the_first(tmp_path: Path) -> None:
    """The program was shown an error and went on; the record says so, whatever came later."""

    async def main() -> None:
        good = trustme.CA()
        async with origin(TwoFaced(trustme.CA(), good), None) as port, world(tmp_path, port, [good]) as made:
            status, out, why = await curl(made, tmp_path, "--insecure", f"https://{NAME}/first")
            assert (status, out) == (0, "okok"), why
            end = await made.end()
            assert made.connects == 1
            assert (server_facts(end).verified, server_facts(end).error is not None) == (False, True)

    asyncio.run(main())


@pytest.mark.parametrize(("upstream", "expected"), [(Upstream.ACCEPT, "okok"), (Upstream.MIRROR, "")])
def test_a_further_connection_that_asks_is_treated_as_the_first(
    tmp_path: Path, upstream: Upstream, expected: str
) -> None:
    async def main() -> None:
        lab = trustme.CA()
        server = TwoFaced(lab, lab, asks=True)
        async with (
            origin(server, None) as port,
            world(tmp_path, port, [trustme.CA()], upstream=upstream, identities=(ALICE,), keys_pem=ALICE_KEY) as made,
        ):
            made.decision = replace(made.decision, identity="alice")
            _, out, why = await curl(made, tmp_path, "--insecure", f"https://{NAME}/first")
            assert out == expected, why

    asyncio.run(main())
