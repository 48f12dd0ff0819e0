"""Programs that do not accept our certificate: how each kind says so, and what only looks like it."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import ssl
from base64 import b64encode
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from engine_world import NAME, Pages, Word, connected, curl, origin, server_context, trusting, world

from mitmsec.audit.event import Outcome
from mitmsec.core.messages import FlowEnded
from mitmsec.core.model import Refusal
from mitmsec.engine import refusals
from mitmsec.engine.refusals import after_handshake, by_alert
from mitmsec.engine.side import Ended


def refusal_of(end: FlowEnded) -> Refusal | None:
    assert end.tls is not None
    assert end.tls.client is not None
    return end.tls.client.refusal


@pytest.mark.parametrize(
    ("ended", "said", "waited_s", "expected"),
    [
        (Ended(Outcome.CLIENT_REJECTED, "TLS: unknown ca"), False, 9.0, Refusal.ALERT),
        (Ended(Outcome.COMPLETED), False, 0.1, Refusal.CLOSED),
        (Ended(Outcome.COMPLETED), False, refusals.PROMPT_S + 0.1, None),
        (Ended(Outcome.COMPLETED), True, 0.1, None),
        (Ended(Outcome.COMPLETED, "TLS: ech required"), False, 0.1, None),
        (Ended(Outcome.COMPLETED, "reset", reset=True), False, 0.1, Refusal.RESET),
        (Ended(Outcome.COMPLETED, "reset", reset=True), True, 0.1, None),
        (Ended(Outcome.ORIGIN_RESET, "", reset=True), False, 0.1, None),
    ],
)
def test_what_an_end_means(ended: Ended, said: bool, waited_s: float, expected: Refusal | None) -> None:
    assert after_handshake(ended, was_anything_said=said, waited_s=waited_s) is expected


def test_only_alerts_about_certificates_are_about_ours() -> None:
    assert {by_alert(alert) for alert in (42, 43, 44, 45, 46, 48)} == {Refusal.ALERT}
    assert {by_alert(alert) for alert in (None, 0, 40, 70, 80, 90, 121)} == {None}


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_an_alert_in_either_version(tmp_path: Path, version: str) -> None:
    """In TLS 1.3 it comes when our handshake is done already."""

    async def main() -> None:
        ca = trustme.CA()
        async with origin(Pages(), server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
            ca.cert_pem.write_to_path(tmp_path / "pinned.pem")
            words = ("--cacert", str(tmp_path / "pinned.pem"), f"--tlsv{version}", "--tls-max", version)
            status, _, _ = await curl(made, tmp_path, *words)
            assert status == 60
            end = await made.end()
            assert (end.outcome, refusal_of(end), end.was_heard) == (Outcome.CLIENT_REJECTED, Refusal.ALERT, False)
            assert "unknown ca" in end.error

    asyncio.run(main())


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_pinned_key_that_is_looked_at_after_the_handshake(tmp_path: Path, version: str) -> None:
    """curl trusts our CA, sees that the key is another one, and leaves in order without a word."""

    async def main() -> None:
        ca = trustme.CA()
        leaf = ca.issue_cert(NAME)
        key = x509.load_pem_x509_certificate(leaf.cert_chain_pems[0].bytes()).public_key()
        pin = b64encode(hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        leaf.configure_cert(context)
        async with origin(Pages(), context) as port, world(tmp_path, port, [ca]) as made:
            words = ("--pinnedpubkey", f"sha256//{pin.decode()}", f"--tlsv{version}", "--tls-max", version)
            status, _, _ = await curl(made, tmp_path, *words)
            assert status == 90
            end = await made.end()
            assert (end.outcome, refusal_of(end), end.was_heard) == (Outcome.COMPLETED, Refusal.CLOSED, False)

    asyncio.run(main())


@pytest.mark.parametrize("moment", ["in the handshake", "after it"])
@pytest.mark.parametrize("resets", [True, False])
def test_a_client_that_leaves_without_a_word(tmp_path: Path, moment: str, resets: bool) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with origin(Pages(), server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
            if moment == "after it":
                _, writer = await connected(made, trusting(tmp_path))
            else:
                reader, writer = await connected(made, None)
                writer.write(_hello(tmp_path))
                assert await reader.read(1)
            if resets:
                sock: socket.socket = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                writer.transport.abort()
            else:
                writer.close()
            end = await made.end()
            assert refusal_of(end) is (Refusal.RESET if resets else Refusal.CLOSED)
            is_orderly = moment == "after it" and not resets
            assert end.outcome == (Outcome.COMPLETED if is_orderly else Outcome.CLIENT_REJECTED)

    asyncio.run(main())


def _hello(tmp_path: Path) -> bytes:
    into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting(tmp_path).wrap_bio(into, out, server_hostname=NAME)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return out.read()


def test_a_program_that_has_said_something_took_the_certificate(tmp_path: Path) -> None:
    async def main() -> None:
        ca, word = trustme.CA(), Word()
        async with origin(Pages(), server_context(ca)) as port, world(tmp_path, port, [ca], inspectors=[word]) as made:
            assert (await curl(made, tmp_path))[0] == 0
            end = await made.end()
            assert (end.was_heard, refusal_of(end)) == (True, None)

    asyncio.run(main())


def test_an_origin_that_leaves_first_says_nothing_about_the_client(tmp_path: Path) -> None:
    async def main() -> None:
        async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        ca = trustme.CA()
        async with origin(leave, server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
            reader, writer = await connected(made, trusting(tmp_path))
            assert await reader.read() == b""
            writer.close()
            assert refusal_of(await made.end()) is None

    asyncio.run(main())
