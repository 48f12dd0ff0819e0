"""Servers that say whatever a test wants to a ClientHello, and what was said to them; hellos taken to pieces."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from engine_world import NAME
from hellos import Extension, alpn, body, message, numbers, records, server_name, vector
from OpenSSL import SSL

from mitmsec.core import clienthello
from mitmsec.core.clienthello import ClientHello
from mitmsec.engine.contexts import client_session
from mitmsec.engine.openssl import TlsSession

RENEGOTIATION_INFO: Extension = (0xFF01, b"\x00")
EXTENDED_MASTER_SECRET: Extension = (0x0017, b"")
MODERN = (0x1301, 0x1302, 0xC02B, 0xC02F)
TLS13: Extension = (0x002B, b"\x03\x04")
DOWNGRADE = b"DOWNGRD"


def server_hello(
    suite: int = 0xC02F,
    *,
    version: int = 0x0303,
    random: bytes = bytes(32),
    compression: int = 0,
    extensions: Sequence[Extension] = (RENEGOTIATION_INFO, EXTENDED_MASTER_SECRET),
) -> bytes:
    """One record with a ServerHello."""
    inner = version.to_bytes(2) + random + vector(b"", 1) + suite.to_bytes(2) + bytes([compression])
    if version > 0x0300:
        inner += vector(b"".join(kind.to_bytes(2) + vector(data) for kind, data in extensions))
    message = b"\x02" + vector(inner, 3)
    return b"\x16" + min(version, 0x0303).to_bytes(2) + vector(message)


class Crafted:
    """Answers the first bytes of each connection with `answer`. Keeps what came first, and the alert after that."""

    def __init__(self, answer: bytes = b"") -> None:
        self.answer = answer
        self.hellos: list[bytes] = []
        self.alerts: list[int | None] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.hellos.append(await _record(reader))
        writer.write(self.answer)
        self.alerts.append(await self._alert(reader) if self.answer else None)

    async def _alert(self, reader: asyncio.StreamReader) -> int | None:
        """The number of the next alert; None: none comes, because more of the server's is awaited."""
        try:
            while record := await asyncio.wait_for(_record(reader), 0.5):
                if record[0] == 21:
                    return record[-1]
        except (TimeoutError, asyncio.IncompleteReadError):
            pass
        return None


async def _record(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(5)
    return head + await reader.readexactly(int.from_bytes(head[3:]))


# -- hellos ----------------------------------------------------------------------------------------------------------
def parsed(raw: bytes) -> ClientHello:
    hello = clienthello.parse(raw)
    assert isinstance(hello, ClientHello)
    return hello


def parts(raw: bytes) -> tuple[bytes, bytes, dict[int, bytes]]:
    """Random, compression methods, extensions: what the parser does not tell."""
    at = 5 + 4 + 2
    random, at = raw[at : at + 32], at + 32
    at += 1 + raw[at]
    at += 2 + int.from_bytes(raw[at : at + 2])
    compression, at = raw[at + 1 : at + 1 + raw[at]], at + 1 + raw[at]
    extensions, at = {}, at + 2
    while at < len(raw):
        kind, size = int.from_bytes(raw[at : at + 2]), int.from_bytes(raw[at + 2 : at + 4])
        extensions[kind], at = raw[at + 4 : at + 4 + size], at + 4 + size
    return random, compression, extensions


def client_hello(
    name: str = NAME,
    ciphers: tuple[int, ...] = MODERN,
    groups: tuple[int, ...] = (0x001D,),
    versions: tuple[int, ...] = (0x0304, 0x0303),
    protocols: tuple[bytes, ...] = (),
    *others: tuple[int, bytes],
) -> bytes:
    extensions = [
        server_name(name.encode()),
        *([(0x000A, vector(numbers(*groups)))] if groups else []),
        (0x002B, vector(numbers(*versions), 1)),
        *([alpn(*protocols)] if protocols else []),
        *others,
    ]
    return records(message(body(extensions, ciphers=numbers(*ciphers))))


# -- in memory -------------------------------------------------------------------------------------------------------
def bare_server(ca: trustme.CA, name: str = "a.test") -> SSL.Context:
    leaf = ca.issue_cert(name)
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.use_certificate(x509.load_pem_x509_certificate(leaf.cert_chain_pems[0].bytes()))
    key: Any = load_pem_private_key(leaf.private_key_pem.bytes(), None)
    context.use_privatekey(key)
    return context


def shaken(ours: TlsSession, context: SSL.Context) -> TlsSession:
    """The other end of `ours`, once both are done."""
    theirs = client_session(context, b"")
    for _ in range(3):
        ours.handshake()
        theirs.feed(ours.outgoing())
        theirs.handshake()
        ours.feed(theirs.outgoing())
    assert ours.handshake()
    return theirs


class NewServer:
    """A server with the OpenSSL that is ours, which knows more than the standard library's. Serves nothing."""

    def __init__(self, ca: trustme.CA) -> None:
        self._context = bare_server(ca, NAME)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = client_session(self._context, b"")
        while data := await reader.read(1 << 16):
            session.feed(data)
            if session.handshake():
                session.read()
            writer.write(session.outgoing())


async def through(port: int, client: TlsSession) -> None:
    """Have `client` shake hands with whoever listens at `port`, and end in order. Raises TlsFailed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        while not client.handshake():
            writer.write(client.outgoing())
            data = await reader.read(1 << 16)
            assert data, "the server hung up"
            client.feed(data)
        client.close_notify()
    finally:
        writer.write(client.outgoing())
        writer.close()
