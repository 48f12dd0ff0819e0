"""How strong a connection is, and how strong one in its place has to be.

    client's hello ── floor_of ──► Floor ──► what we offer the origin: nothing that the client itself would not take
    origin's leg, client's leg ── excess ──► what the client is told better than the origin has, for the record

What a client offers is what it can live with, so its weakest offer is the floor: under one that offers 256-bit suites
only, no 128-bit suite is offered for it; under one that offers hybrid groups only, no other group. Above the floor
we offer all that we have, whatever the client offers: better than it would have got is fine.
"""

from __future__ import annotations

from functools import lru_cache

from mitmsec.core.clienthello import ClientHello
from mitmsec.core.ja4 import GREASE
from mitmsec.core.model import TlsVersion, Value

TLS12, TLS13 = 0x0303, 0x0304
KNOWN_LIMIT = 128  # clients' offers that need not be judged again
OFFERED_LIMIT = 256  # of versions, suites and groups in one that is kept: a hostile hello has thousands
CIPHERS = {
    128: b"ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256",
    256: b"ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384"
    b":ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305",
}
"""Suites of TLS 1.2 by the bits of their key: with forward secrecy and authenticated encryption, no others."""
CIPHERS_13 = {128: b"TLS_AES_128_GCM_SHA256", 256: b"TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"}
GROUPS = (
    ("*X25519MLKEM768", 192, True),
    ("*X25519", 128, False),
    ("P-256", 128, False),
    ("P-384", 192, False),
    ("P-521", 256, False),
    ("SecP384r1MLKEM1024", 256, True),
)
"""What we offer, the dearest to us first: OpenSSL's name (with a star: its share is sent at once), bits, is hybrid."""
CLASSICAL = "X25519:P-256:P-384:P-521"

_SUITES_256 = frozenset((
    0x1302, 0x1303, 0xC02C, 0xC030, 0xCCA8, 0xCCA9, 0xCCAA, 0x009F, 0x009D, 0x00A3,
    0xC0AD, 0xC0AF, 0xC09F, 0xC09D, 0xC024, 0xC028, 0xC00A, 0xC014, 0x006B, 0x006A, 0x003D, 0x0039, 0x0038, 0x0035,
))  # fmt: skip
_NO_SUITES = GREASE | {0x00FF, 0x5600}  # in the list of suites, and none: with the signals of RFC 5746 §3.3, RFC 7507
_GROUP_BITS = {
    0x0018: 192, 0x0019: 256, 0x001A: 128, 0x001B: 192, 0x001C: 256, 0x001E: 192, 0x001F: 128, 0x0020: 192, 0x0021: 256,
    0x11EB: 192, 0x11EC: 192, 0x11ED: 256,
}  # fmt: skip
_CLASSICAL_GROUPS = frozenset((0x0017, 0x0018, 0x0019, 0x001D))  # those of CLASSICAL
_HYBRID_GROUPS = frozenset((0x11EB, 0x11EC, 0x11ED, 0x11EE, 0x6399, 0x639A))


class Floor(Value, frozen=True):
    """The least that a client takes."""

    tls12: bool = True  # False: TLS 1.3 only
    cipher_bits: int = 128
    group_bits: int = 128
    is_hybrid: bool = False  # hybrid groups only


LOWEST = Floor()


def reaches(hello: ClientHello, least: TlsVersion) -> bool:
    """Whether the client has this version, or a later one."""
    return least is TlsVersion.TLS12 or TLS13 in hello.versions


def floor_of(hello: ClientHello, least: TlsVersion = TlsVersion.TLS12) -> Floor:
    """What a client that says `hello` would take at worst, and no version under `least`."""
    is_usual = len(hello.versions) + len(hello.ciphers) + len(hello.groups) <= OFFERED_LIMIT
    floor = _floor if is_usual else _floor.__wrapped__
    return floor(hello.versions, hello.ciphers, hello.groups, least)


@lru_cache(KNOWN_LIMIT)
def _floor(offered: tuple[int, ...], suites: tuple[int, ...], named: tuple[int, ...], least: TlsVersion) -> Floor:
    versions = [version for version in offered if version >= TLS12 and version not in GREASE]
    ciphers = [cipher for cipher in suites if cipher not in _NO_SUITES]
    groups = [group for group in named if group not in GREASE]
    return Floor(
        tls12=least is TlsVersion.TLS12 and min(versions, default=TLS12) <= TLS12,
        cipher_bits=256 if ciphers and all(cipher in _SUITES_256 for cipher in ciphers) else 128,
        group_bits=min((_GROUP_BITS.get(group, 128) for group in groups), default=128),
        is_hybrid=bool(groups) and all(group in _HYBRID_GROUPS for group in groups),
    )


@lru_cache
def groups_from(floor: Floor, *, with_share: bool = True) -> str:
    """The groups to offer, as OpenSSL reads them. Without `with_share`, hybrid ones by name only."""
    return ":".join(
        name if with_share or not is_hybrid else name.removeprefix("*")
        for name, bits, is_hybrid in GROUPS
        if bits >= floor.group_bits and (is_hybrid or not floor.is_hybrid)
    )


def has_hybrid(hello: ClientHello) -> bool:
    """Whether the client offers a hybrid group."""
    return not _HYBRID_GROUPS.isdisjoint(hello.groups)


def classical_of(groups: str) -> str:
    """`groups` for an OpenSSL that knows neither hybrid ones nor stars; may be empty."""
    return ":".join(name for name in groups.replace("*", "").split(":") if "MLKEM" not in name)


def takes_either(hello: ClientHello) -> bool:
    """Whether the client offers hybrid groups, and one of CLASSICAL will do for it."""
    return not (_CLASSICAL_GROUPS.isdisjoint(hello.groups) or _HYBRID_GROUPS.isdisjoint(hello.groups))


class Strength(Value, frozen=True):
    """What was agreed on one leg."""

    version: str  # as OpenSSL names it
    cipher_bits: int
    group: str | None = None  # as OpenSSL names it; None: not known

    @property
    def is_hybrid(self) -> bool:
        return self.group is not None and "MLKEM" in self.group.upper()


def excess(client: Strength, server: Strength) -> str | None:
    """In what the client's leg is better than the origin's, so that the client is told too much; None: in nothing."""
    found = (
        ("version", client.version > server.version),
        ("cipher", client.cipher_bits > server.cipher_bits),
        ("group", client.is_hybrid and not server.is_hybrid),
    )
    return ", ".join(what for what, is_better in found if is_better) or None
