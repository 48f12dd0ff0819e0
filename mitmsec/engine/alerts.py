"""TLS alerts (RFC 8446 §6): from OpenSSL's words to numbers, and to the plaintext record that a client understands."""

from __future__ import annotations

import re

HANDSHAKE_FAILURE = 40
PROTOCOL_VERSION = 70
INSUFFICIENT_SECURITY = 71
INTERNAL_ERROR = 80
NO_RENEGOTIATION = 100

_NUMBERS = {
    "unexpected message": 10,
    "bad record mac": 20,
    "decryption failed": 21,
    "record overflow": 22,
    "decompression failure": 30,
    "handshake failure": 40,
    "no certificate": 41,
    "bad certificate": 42,
    "unsupported certificate": 43,
    "certificate revoked": 44,
    "certificate expired": 45,
    "certificate unknown": 46,
    "illegal parameter": 47,
    "unknown ca": 48,
    "access denied": 49,
    "decode error": 50,
    "decrypt error": 51,
    "export restriction": 60,
    "protocol version": 70,
    "insufficient security": 71,
    "internal error": 80,
    "inappropriate fallback": 86,
    "user cancelled": 90,
    "user canceled": 90,
    "no renegotiation": 100,
    "missing extension": 109,
    "unsupported extension": 110,
    "certificate unobtainable": 111,
    "unrecognized name": 112,
    "bad certificate status response": 113,
    "bad certificate hash value": 114,
    "unknown psk identity": 115,
    "certificate required": 116,
    "no application protocol": 120,
}
_BY_PEER = re.compile(r"(?:ssl/)?(?:tls|tlsv1|tlsv13|sslv3)(?: alert)? (.+)")
_DISTRUST = {42, 43, 44, 45, 46, 48}


def received(reason: str) -> int | None:
    """The alert that the peer sent, when OpenSSL's `reason` reports one; None for an error found on our side."""
    match = _BY_PEER.fullmatch(reason.lower())
    return _NUMBERS.get(match[1]) if match else None


def for_local(reason: str) -> int:
    """The alert that fits an error which OpenSSL found itself in what the origin sent."""
    return PROTOCOL_VERSION if "protocol version" in reason or "unsupported protocol" in reason else HANDSHAKE_FAILURE


def is_distrust(alert: int | None) -> bool:
    """Whether the peer says with `alert` that it does not accept a certificate."""
    return alert in _DISTRUST


def record(alert: int) -> bytes:
    """A fatal alert as a plaintext record, as it may answer a ClientHello."""
    return bytes((21, 3, 3, 0, 2, 2, alert))
