"""Origins that ask their clients for a certificate, which we have not: nobody is taken for somebody without one."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
import trustme
from crafted_servers import bare_server
from engine_world import NAME, Pages, blunt_origin, connected, curl, origin, server_context, trusting, world
from OpenSSL import SSL

from mitmsec.audit.event import Outcome
from mitmsec.core.messages import FlowEnded
from mitmsec.engine.contexts import client_session
from mitmsec.engine.dialogue import ANOTHER_HANDSHAKE


def asks(end: FlowEnded) -> bool | None:
    assert end.tls is not None
    assert end.tls.server is not None
    return end.tls.server.asks_certificate


@pytest.mark.checklist("C10")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("mode", [ssl.CERT_REQUIRED, ssl.CERT_OPTIONAL])
def test_who_asks_ends_the_flow_before_the_client_sees_a_certificate(
    tmp_path: Path, version: ssl.TLSVersion, mode: ssl.VerifyMode
) -> None:
    """Also where it would go on without one: what the program would have got with its own, nobody knows."""

    async def main() -> None:
        ca = trustme.CA()
        context = server_context(ca)
        context.verify_mode = mode
        context.minimum_version = context.maximum_version = version
        ca.configure_trust(context)
        async with blunt_origin(context) as port, world(tmp_path, port, [ca]) as made:
            status, out, _ = await curl(made, tmp_path)
            assert (status, out) == (35, "")
            end = await made.end()
            assert (end.outcome, end.reset, asks(end)) == (Outcome.ORIGIN_REFUSED, True, True)
            assert "client's certificate" in end.error
            assert made.mint.questions == []

    asyncio.run(main())


@pytest.mark.checklist("C10")
def test_who_asks_in_another_handshake_is_refused_it_and_ends_the_flow(tmp_path: Path) -> None:
    """TLS 1.2, as servers do that ask for some pages only."""

    async def main() -> None:
        ca = trustme.CA()
        context = bare_server(ca, NAME)
        context.set_max_proto_version(SSL.TLS1_2_VERSION)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            session = client_session(context, b"")
            while data := await reader.read(1 << 16):
                session.feed(data)
                if session.handshake() and session.read():
                    assert session._connection.renegotiate()
                    session.handshake()
                writer.write(session.outgoing())

        async with origin(serve, None) as port, world(tmp_path, port, [ca]) as made:
            reader, writer = await connected(made, trusting(tmp_path, alpn=()))
            writer.write(f"GET /secret HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
            with pytest.raises(ConnectionResetError):
                await reader.read()
            end = await made.end()
            assert (end.outcome, end.error, asks(end)) == (Outcome.ORIGIN_REFUSED, ANOTHER_HANDSHAKE, True)

    asyncio.run(main())


def test_who_does_not_ask_is_not_said_to(tmp_path: Path) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with origin(Pages(), server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
            assert (await curl(made, tmp_path))[0] == 0
            assert asks(await made.end()) is None

    asyncio.run(main())
