"""QUIC's Initial packets as a client sends them: found in a datagram, and opened. Versions 1 and 2.

    datagram │ Initial │ 0-RTT, Handshake, another Initial … │ padding │          RFC 9000 §12.2, §17.2
               └─ header │ token │ length │ packet number │ sealed frames
                  └ protected by a mask of the sealed bytes   (RFC 9001 §5.4)

What seals an Initial is no secret: its keys come from the connection id in the client's first one (RFC 9001 §5.2), so
whoever sees that can read on. A packet that does not open was damaged, or belongs to another connection: its server
drops it, and so does whoever reads it here.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from hashlib import sha256
from typing import Protocol

from mitmsec.core.model import Value

CONNECTION_ID_LIMIT_BYTES = 20
SAMPLE_BYTES, NONCE_BYTES = 16, 12
KEYS_REMEMBERED = 64

_LONG, _KIND_BITS, _RESERVED = 0x80, 0x30, 0x0C
_PROTECTED_BITS, _NUMBER_SIZE = 0x0F, 0x03
_NUMBER_MOST_BYTES = 4
_NOT_ZERO = re.compile(rb"[^\0]")


class Cipher(Protocol):
    """AES-128, which this module's caller brings along."""

    def block(self, key: bytes, block: bytes) -> bytes:
        """One block of 16 bytes, encrypted."""
        ...

    def opened(self, key: bytes, nonce: bytes, sealed: bytes, associated: bytes) -> bytes | None:
        """AES-128-GCM; None where the tag, the last 16 bytes of `sealed`, is another's."""
        ...


class _Version(Value, frozen=True):
    salt: bytes
    initial: int  # the two bits of its kind in the first byte
    label: bytes


VERSIONS: Mapping[int, _Version] = {
    0x00000001: _Version(  # RFC 9001 §5.2
        salt=bytes.fromhex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a"), initial=0x00, label=b"quic "
    ),
    0x6B3343CF: _Version(  # RFC 9369 §3.3
        salt=bytes.fromhex("0dede3def700a6db819381be6e269dcbf9bd2ed9"), initial=0x10, label=b"quicv2 "
    ),
}


class Initial(Value, frozen=True):
    """One packet, still sealed."""

    version: int
    destination: bytes
    """The connection id that it is sent to; in a client's first one, what the keys come from."""
    packet: bytes
    number_at: int
    source: bytes = b""
    """The connection id that its sender is to be answered at."""


class Opened(Value, frozen=True):
    """What was in it."""

    frames: bytes
    is_reserved_clear: bool
    """Two bits of the header that have to be 0."""


class Keys(Value, frozen=True):
    """What a client's Initials are sealed with."""

    key: bytes
    iv: bytes
    header: bytes


@lru_cache(KEYS_REMEMBERED)
def client_keys(version: int, destination: bytes) -> Keys:
    """`version` is one of VERSIONS."""
    return _keys(version, destination, b"client in")


def server_keys(version: int, destination: bytes) -> Keys:
    """The same of who answers: also by the connection id in the client's first packet."""
    return _keys(version, destination, b"server in")


def _keys(version: int, destination: bytes, whose: bytes) -> Keys:
    known = VERSIONS[version]
    secret = _expanded(hmac.digest(known.salt, destination, sha256), whose, 32)
    return Keys(
        key=_expanded(secret, known.label + b"key", 16),
        iv=_expanded(secret, known.label + b"iv", NONCE_BYTES),
        header=_expanded(secret, known.label + b"hp", 16),
    )


def _expanded(secret: bytes, label: bytes, size: int) -> bytes:
    """HKDF-Expand-Label of RFC 8446 §7.1, for at most one block of SHA-256."""
    name = b"tls13 " + label
    info = size.to_bytes(2) + bytes([len(name)]) + name + b"\0"
    return hmac.digest(secret, info + b"\x01", sha256)[:size]


def initials(datagram: bytes) -> Iterator[Initial]:
    """Those of the known versions, in the order in which they lie there. What follows something unreadable is none."""
    reader = Fields(datagram)
    while (found := _packet(reader)) is not None:
        version, destination, source, number_at, start = found
        if datagram[start] & _KIND_BITS == VERSIONS[version].initial:
            packet = datagram[start : reader.at]
            yield Initial(
                version=version, destination=destination, packet=packet, number_at=number_at - start, source=source
            )


def _packet(reader: Fields) -> tuple[int, bytes, bytes, int, int] | None:
    """The next packet with a length of its own: version, connection ids, where its number is, and where it begins.

    The bit that is fixed at 1 may be 0 where both ends have agreed so (RFC 9287), also in a client's first packet.
    """
    start = reader.at
    first, version = reader.number(1), reader.number(4)
    if first is None or version is None or not first & _LONG or version not in VERSIONS:
        return None
    destination, source = _connection_id(reader), _connection_id(reader)
    if destination is None or source is None:
        return None
    if first & _KIND_BITS == VERSIONS[version].initial and reader.vector() is None:  # the token
        return None
    size = reader.varint()
    number_at = reader.at
    if size is None or reader.take(size) is None:
        return None
    return version, destination, source, number_at, start


def _connection_id(reader: Fields) -> bytes | None:
    size = reader.number(1)
    return None if size is None or size > CONNECTION_ID_LIMIT_BYTES else reader.take(size)


def opened(initial: Initial, keys: Keys, cipher: Cipher) -> Opened | None:
    """None: these are not its keys, or it has been damaged."""
    packet, at = initial.packet, initial.number_at
    sample = packet[at + _NUMBER_MOST_BYTES : at + _NUMBER_MOST_BYTES + SAMPLE_BYTES]
    if len(sample) < SAMPLE_BYTES:
        return None
    mask = cipher.block(keys.header, sample)
    first = packet[0] ^ (mask[0] & _PROTECTED_BITS)
    size = (first & _NUMBER_SIZE) + 1
    number = bytes(one ^ other for one, other in zip(packet[at : at + size], mask[1:], strict=False))
    header = bytes([first]) + packet[1:at] + number
    # a client's first packets are numbered from 0 on: the number that is written is the whole number
    nonce = (int.from_bytes(keys.iv) ^ int.from_bytes(number)).to_bytes(NONCE_BYTES)
    frames = cipher.opened(keys.key, nonce, packet[at + size :], header)
    return None if frames is None else Opened(frames=frames, is_reserved_clear=not first & _RESERVED)


class Fields:
    """Takes fields off the front of `data`; None for what is not there, after which nothing is."""

    __slots__ = ("_data", "at")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self.at

    def take(self, size: int) -> bytes | None:
        if size > self.left:
            self.at = len(self._data)
            return None
        self.at += size
        return self._data[self.at - size : self.at]

    def number(self, size: int) -> int | None:
        taken = self.take(size)
        return None if taken is None else int.from_bytes(taken)

    def varint(self) -> int | None:
        """RFC 9000 §16: the first two bits say how many bytes."""
        if not self.left:
            return None
        size = 1 << (self._data[self.at] >> 6)
        value = self.number(size)
        return None if value is None else value & ((1 << (8 * size - 2)) - 1)

    def vector(self) -> bytes | None:
        size = self.varint()
        return None if size is None else self.take(size)

    def pass_zeroes(self) -> None:
        found = _NOT_ZERO.search(self._data, self.at)
        self.at = found.start() if found else len(self._data)
