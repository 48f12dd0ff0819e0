"""What is said to a QUIC client in place of its server, before any secret has been agreed: no, or another version.

    refusal               an Initial with CONNECTION_CLOSE: the TLS alert access_denied (RFC 9000 §10.2.3, §20.1)
    version_negotiation   which versions can be read here (RFC 9000 §6.1, §17.2.1)

Told CONNECTION_REFUSED instead, curl tries again until its time is up. Both are smaller than what they answer, and are
no answers to answers.
"""

from __future__ import annotations

from typing import Protocol

from mitmsec.core.quic_packets import (
    CONNECTION_ID_LIMIT_BYTES,
    NONCE_BYTES,
    VERSIONS,
    Cipher,
    Fields,
    Initial,
    initials,
    server_keys,
)

QUIC_V1 = 0x00000001
SMALLEST_BYTES = 1200  # of a datagram with a client's first Initial (RFC 9000 §14.1)

_LONG, _FIXED, _PROTECTED_BITS = 0x80, 0x40, 0x0F
_ACCESS_DENIED = bytes([0x1C, 0x41, 0x31, 0x06, 0x00])  # TLS alert 49 about a CRYPTO frame; without words
_TAG_BYTES = 16


class SealingCipher(Cipher, Protocol):
    """A cipher that also seals."""

    def sealed(self, key: bytes, nonce: bytes, plain: bytes, associated: bytes) -> bytes:
        """AES-128-GCM, its tag behind it."""
        ...


def connections(datagram: bytes) -> frozenset[bytes]:
    """The connection ids that its Initials are sent to. An honest datagram has one (RFC 9000 §12.2)."""
    return frozenset(initial.destination for initial in initials(datagram))


def refusal(datagram: bytes, cipher: SealingCipher) -> bytes | None:
    """The answer to a client's first Initial that tells it to give up; None: this is none, or too small for one."""
    if len(datagram) < SMALLEST_BYTES:
        return None
    first = next(initials(datagram), None)
    return None if first is None else _refused(first, cipher)


def _refused(to: Initial, cipher: SealingCipher) -> bytes:
    keys, number = server_keys(to.version, to.destination), b"\0"
    ids = bytes([len(to.source)]) + to.source + bytes([len(to.destination)]) + to.destination
    size = len(number) + len(_ACCESS_DENIED) + _TAG_BYTES
    first = _LONG | _FIXED | VERSIONS[to.version].initial
    header = bytes([first]) + to.version.to_bytes(4) + ids + b"\0" + (0x4000 | size).to_bytes(2)
    nonce = int.from_bytes(keys.iv).to_bytes(NONCE_BYTES)
    sealed = cipher.sealed(keys.key, nonce, _ACCESS_DENIED, header + number)
    mask = cipher.block(keys.header, sealed[3:19])  # four bytes behind where the number begins
    return bytes([first ^ mask[0] & _PROTECTED_BITS]) + header[1:] + bytes([mask[1]]) + sealed


def is_unreadable_version(datagram: bytes) -> bool:
    """A long header of a version that is none of VERSIONS."""
    reader = Fields(datagram)
    first, version = reader.number(1), reader.number(4)
    return first is not None and bool(first & _LONG) and version is not None and version not in VERSIONS


def version_negotiation(datagram: bytes) -> bytes | None:
    """The answer to a first packet of an unreadable version; None: it is none, or a server would not answer it."""
    if len(datagram) < SMALLEST_BYTES or not is_unreadable_version(datagram) or datagram[1:5] == bytes(4):
        return None
    reader = Fields(datagram[5:])
    ids = []
    for _ in ("destination", "source"):
        size = reader.number(1)
        one = None if size is None or size > CONNECTION_ID_LIMIT_BYTES else reader.take(size)
        if one is None:
            return None
        ids.append(bytes([len(one)]) + one)
    return bytes([_LONG | _FIXED]) + bytes(4) + ids[1] + ids[0] + QUIC_V1.to_bytes(4)
