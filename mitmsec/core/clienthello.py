"""The TLS ClientHello, read from a connection's first bytes without taking them.

A hello is one handshake message; the record layer may cut it anywhere and put anything after it (RFC 8446 §5.1):

    ┌ record ──────────────┐┌ record ────────────────────────┐
    │ 16 │ 03 xx │ length  ││ 16 │ 03 xx │ length │           │
    │    01 │ length (24 bit) │ body …     ║   … body │ (other) │
    └──────────────────────┘└────────────────────────────────┘
         `_message` joins the pieces and stops at the body's last byte; `_hello` reads the body

Three outcomes: parsed, more bytes needed, malformed. Each is final in the sense that more bytes never change a parsed
or malformed answer, and no answer depends on how the bytes arrived. Structure is checked strictly (lengths add up, no
extension twice, one server name): where two readers could disagree, the policy must not decide on one reading.
The SSL 2.0 form of a hello (RFC 5246 appendix E.2, forbidden by RFC 6176) is no TLS record and so malformed here.
"""

from __future__ import annotations

import struct

from mitmsec.core.ja4 import fingerprint
from mitmsec.core.model import Value
from mitmsec.core.names import is_address, parse_name

HELLO_LIMIT_BYTES = 64 * 1024  # all records; a hello with post-quantum key shares is under 2 KiB
RECORD_LIMIT_BYTES = 1 << 14  # plaintext, RFC 8446 §5.1
SERVER_NAME_LIMIT_BYTES = 255

_EXTENSION = struct.Struct(">HH")  # type, length
_RECORD_HEADER_BYTES = 5
_MESSAGE_HEADER_BYTES = 4
_HANDSHAKE = 0x16
_CLIENT_HELLO = 0x01

_SERVER_NAME = 0x0000
_GROUPS = 0x000A
_SIGNATURE_ALGORITHMS = 0x000D
_ALPN = 0x0010
_VERSIONS = 0x002B
_ECH = 0xFE0D


class ClientHello(Value, frozen=True):
    """What a TLS client offers, in the order sent, GREASE values included."""

    sni: str | None
    """Host name, lower case, no trailing dot. None where absent, or an IP literal (RFC 6066 §3 allows none; some
    clients send one, and it says no more than the connection's own address)."""
    alpn: tuple[str, ...]
    """Protocol names; bytes outside ASCII are written as the Latin-1 characters of the same number."""
    versions: tuple[int, ...]
    """As in `supported_versions`, else only the hello's own version field."""
    ciphers: tuple[int, ...]
    groups: tuple[int, ...]
    signatures: tuple[int, ...]
    """As in `signature_algorithms`; empty where the client sends none."""
    ja4: str
    ech: bool
    """An encrypted hello (or its GREASE) is inside: then `sni` is the outer, public name."""
    raw: bytes
    """The bytes read, record headers included, up to the hello's last byte."""


class NeedMore(Value, frozen=True):
    """Not decidable yet."""

    size_bytes: int | None = None
    """At least so many bytes in all, more than there were, before the answer can be `parsed`; None where unknown."""


class Malformed(Value, frozen=True):
    """No continuation of these bytes is acceptable; `reason` is a phrase for the log."""

    reason: str


class _Bad(Exception):
    """Internal: the reason travels from where it is seen to `parse`."""


def parse(data: bytes) -> ClientHello | NeedMore | Malformed:
    """The ClientHello that `data` begins with. Never raises, whatever the bytes."""
    try:
        message = _message(data)
        if isinstance(message, NeedMore):
            return message
        body, used = message
        return _hello(body, data[:used])
    except _Bad as bad:
        return Malformed(reason=str(bad))


def parse_message(data: bytes) -> ClientHello | NeedMore | Malformed:
    """The same of a message without records, as QUIC carries it; `raw` is the message."""
    try:
        wanted = _wanted(data)
        if len(data) < wanted:
            return NeedMore(size_bytes=wanted)
        return _hello(data[_MESSAGE_HEADER_BYTES:wanted], data[:wanted], over="q")
    except _Bad as bad:
        return Malformed(reason=str(bad))


def _message(data: bytes) -> tuple[bytes, int] | NeedMore:
    """The hello's body and how many bytes of `data` it took."""
    message = bytearray()
    at = 0
    while True:
        size = _record_size(data[at : at + _RECORD_HEADER_BYTES])
        if size is None:
            return NeedMore(size_bytes=at + _RECORD_HEADER_BYTES + 1)
        at += _RECORD_HEADER_BYTES
        before = len(message)
        message += data[at : at + size]
        wanted = _wanted(message)
        if len(message) >= wanted > _MESSAGE_HEADER_BYTES:
            return bytes(message[_MESSAGE_HEADER_BYTES:wanted]), at + wanted - before
        if len(data) < at + size:
            return NeedMore(size_bytes=at + min(size, wanted - before))
        at += size
        if at + wanted - len(message) + _RECORD_HEADER_BYTES > HELLO_LIMIT_BYTES:
            raise _Bad("hello over 64 KiB")


def _record_size(header: bytes) -> int | None:
    """The record's length; None where the header is not complete. Each byte is checked as soon as it is there."""
    if header and header[0] != _HANDSHAKE:
        raise _Bad("no TLS handshake record")
    if len(header) > 1 and header[1] != 3:  # the minor version is ignored: RFC 8446 §5.1
        raise _Bad("no TLS record version")
    if len(header) < _RECORD_HEADER_BYTES:
        return None
    size = int.from_bytes(header[3:])
    if not 0 < size <= RECORD_LIMIT_BYTES:
        raise _Bad(f"record of {size} bytes")
    return size


def _wanted(message: bytes | bytearray) -> int:
    """How long the handshake message is, its header included, as far as the header tells."""
    if message and message[0] != _CLIENT_HELLO:
        raise _Bad(f"handshake message {message[0]} instead of a ClientHello")
    if len(message) < _MESSAGE_HEADER_BYTES:
        return _MESSAGE_HEADER_BYTES
    size = int.from_bytes(message[1:_MESSAGE_HEADER_BYTES])
    if size == 0 or size > HELLO_LIMIT_BYTES:
        raise _Bad(f"ClientHello of {size} bytes")
    return _MESSAGE_HEADER_BYTES + size


class _Reader:
    """Takes fields off the front of `data`; what is not there is `_Bad`, never an IndexError."""

    __slots__ = ("_at", "_data", "_what")

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._what = what
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        at = self._at
        self._at = end = at + size
        if end > len(self._data):
            raise _Bad(f"{self._what} ends early")
        return self._data[at:end]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def vector(self, size_of_length: int) -> bytes:
        return self.take(self.number(size_of_length))

    def end(self) -> None:
        if self.left:
            raise _Bad(f"{self._what} has bytes left over")


def _hello(body: bytes, raw: bytes, over: str = "t") -> ClientHello:
    """RFC 8446 §4.1.2; for older versions RFC 5246 §7.4.1.2."""
    reader = _Reader(body, "ClientHello")
    version = reader.number(2)
    if version >> 8 != 3:
        raise _Bad(f"ClientHello of version {version:#06x}")
    reader.take(32)
    if len(reader.vector(1)) > 32:
        raise _Bad("session id over 32 bytes")
    ciphers = _numbers(reader.vector(2), "cipher suites")
    if not reader.vector(1):
        raise _Bad("no compression method")
    extensions = _extensions(reader.vector(2)) if reader.left else {}
    reader.end()
    alpn = _alpn(extensions[_ALPN]) if _ALPN in extensions else []
    versions = _listed(extensions, _VERSIONS, "supported versions", size_of_length=1) or (version,)
    signatures = _listed(extensions, _SIGNATURE_ALGORITHMS, "signature algorithms")
    return ClientHello(
        sni=_server_name(extensions[_SERVER_NAME]) if _SERVER_NAME in extensions else None,
        alpn=tuple(value.decode("latin-1") for value in alpn),
        versions=versions,
        ciphers=ciphers,
        groups=_listed(extensions, _GROUPS, "groups"),
        signatures=signatures,
        ja4=fingerprint(
            versions=versions,
            ciphers=ciphers,
            extensions=tuple(extensions),
            signature_algorithms=signatures,
            alpn=alpn[0] if alpn else b"",
            over=over,
        ),
        ech=_ECH in extensions,
        raw=raw,
    )


def _extensions(data: bytes) -> dict[int, bytes]:
    """By type, in the order sent."""
    found: dict[int, bytes] = {}
    at, size_bytes = 0, len(data)
    while at < size_bytes:
        start = at + _EXTENSION.size
        if start > size_bytes:
            raise _Bad("extension ends early")
        kind, length = _EXTENSION.unpack_from(data, at)
        at = start + length
        if kind in found:
            raise _Bad(f"extension {kind:#06x} twice")
        if at > size_bytes:
            raise _Bad("extension ends early")
        found[kind] = data[start:at]
    return found


def _numbers(data: bytes, what: str) -> tuple[int, ...]:
    if not data or len(data) % 2:
        raise _Bad(f"{what} of {len(data)} bytes")
    return struct.unpack(f">{len(data) // 2}H", data)


def _listed(extensions: dict[int, bytes], kind: int, what: str, *, size_of_length: int = 2) -> tuple[int, ...]:
    data = extensions.get(kind)
    if data is None:
        return ()
    size = int.from_bytes(data[:size_of_length])
    if size_of_length + size > len(data):
        raise _Bad(f"{what} ends early")
    if size_of_length + size < len(data):
        raise _Bad(f"{what} has bytes left over")
    return _numbers(data[size_of_length:], what)


def _alpn(data: bytes) -> list[bytes]:
    """RFC 7301 §3.1."""
    outer = _Reader(data, "ALPN")
    inner = _Reader(outer.vector(2), "ALPN")
    outer.end()
    values: list[bytes] = []
    while inner.left:
        values.append(inner.vector(1))
    if not all(values) or not values:
        raise _Bad("ALPN with an empty name")
    return values


def _server_name(data: bytes) -> str | None:
    """RFC 6066 §3: exactly one entry, a host name."""
    outer = _Reader(data, "server name")
    inner = _Reader(outer.vector(2), "server name")
    outer.end()
    if inner.number(1) != 0:
        raise _Bad("server name is not a host name")
    raw = inner.vector(2)
    inner.end()
    if len(raw) > SERVER_NAME_LIMIT_BYTES:
        raise _Bad(f"server name of {len(raw)} bytes")
    text = raw.decode("latin-1")
    name = parse_name(text)
    if name is None and not is_address(text):
        raise _Bad("server name is not a host name")
    return name
