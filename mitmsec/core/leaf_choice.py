"""Which kind of key a client wants to see in our leaf: P-256, unless its hello says that it cannot do with that.

A client takes a P-256 leaf if it takes the signature (ecdsa_secp256r1_sha256), and below TLS 1.3 also a suite that is
authenticated by ECDSA, and the curve (RFC 8446 §4.2.3, RFC 8422 §5.1). Any other gets RSA-2048.
"""

from __future__ import annotations

from enum import StrEnum

from mitmsec.core.clienthello import ClientHello

TLS13 = 0x0304
ECDSA_P256_SHA256 = 0x0403
SECP256R1 = 0x0017
_ECDSA_SUITES = frozenset(
    {0xC02B, 0xC02C, 0xCCA9, 0xC0AC, 0xC0AD, 0xC0AE, 0xC0AF, 0xC023, 0xC024, 0xC009, 0xC00A, 0xC072, 0xC073}
)


class LeafKeyKind(StrEnum):
    """What key a leaf has."""

    P256 = "p256"
    RSA2048 = "rsa2048"


def leaf_key(hello: ClientHello | None, *, tls13: bool) -> LeafKeyKind:
    """The kind of key for the client of `hello`. `tls13`: that version will be agreed if the client offers it."""
    if hello is None:
        return LeafKeyKind.P256
    if hello.signatures and ECDSA_P256_SHA256 not in hello.signatures:
        return LeafKeyKind.RSA2048
    if tls13 and TLS13 in hello.versions:
        return LeafKeyKind.P256
    takes_curve = not hello.groups or SECP256R1 in hello.groups
    takes_suite = not _ECDSA_SUITES.isdisjoint(hello.ciphers)
    return LeafKeyKind.P256 if takes_curve and takes_suite else LeafKeyKind.RSA2048
