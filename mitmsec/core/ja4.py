"""JA4: a fingerprint of a TLS client, by FoxIO's published description (BSD 3-Clause; JA4 only, not JA4+).

t 13 d 15 16 h2 _ 8daaf6152771 _ b186095e22b6
│ │  │ │  │  │    │              └ extensions (sorted, without SNI and ALPN), then signature algorithms as sent
│ │  │ │  │  │    └ cipher suites (sorted)
│ │  │ │  │  └ first and last character of the first ALPN value
│ │  │ │  └ extensions   ┐ counted without GREASE, at most 99
│ │  │ └ cipher suites   ┘
│ │  └ d: names a host, i: does not
│ └ highest version offered
└ t: TLS over TCP, q: in QUIC
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

SERVER_NAME = 0x0000
ALPN = 0x0010

_VERSIONS = {0x0304: "13", 0x0303: "12", 0x0302: "11", 0x0301: "10", 0x0300: "s3", 0x0002: "s2"}
_NOTHING = "0" * 12
KNOWN_LIMIT = 512  # fingerprints that need not be computed again; none is larger than its hello
_COUNT_LIMIT = 99  # two digits are all that the format has


GREASE = frozenset(0x0A0A + step * 0x1010 for step in range(16))  # 16-bit values that are reserved to do nothing


def fingerprint(
    *,
    versions: Sequence[int],
    ciphers: Sequence[int],
    extensions: Sequence[int],
    signature_algorithms: Sequence[int],
    alpn: bytes = b"",
    over: str = "t",
) -> str:
    """JA4 of a hello. All lists in the order sent, GREASE included; `alpn` is the first value, empty where absent.

    `over` is what carries it: t or q.
    """
    return _fingerprint(
        max(_meant(versions), default=0),
        tuple(sorted(_meant(ciphers))),
        tuple(sorted(_meant(extensions))),
        tuple(_meant(signature_algorithms)),
        alpn,
        over,
    )


def _meant(values: Sequence[int]) -> list[int]:
    return [value for value in values if value not in GREASE]


@lru_cache(KNOWN_LIMIT)
def _fingerprint(
    version: int, suites: tuple[int, ...], kinds: tuple[int, ...], algorithms: tuple[int, ...], alpn: bytes, over: str
) -> str:
    """A program's hellos differ in their GREASE and in the order of their extensions, and in nothing else."""
    named = "d" if SERVER_NAME in kinds else "i"
    head = f"{over}{_VERSIONS.get(version, '00')}{named}{_count(suites)}{_count(kinds)}{_alpn(alpn)}"
    hashed = ",".join(_codes([kind for kind in kinds if kind not in (SERVER_NAME, ALPN)]))
    if algorithms:
        hashed += "_" + ",".join(_codes(algorithms))
    return f"{head}_{_digest(','.join(_codes(suites)))}_{_digest(hashed if kinds else '')}"


def _codes(values: Sequence[int]) -> list[str]:
    return [f"{value:04x}" for value in values]


def _count(values: Sequence[int]) -> str:
    return f"{min(len(values), _COUNT_LIMIT):02}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12] if text else _NOTHING


def _alpn(value: bytes) -> str:
    if not value:
        return "00"
    ends = value[:1] + value[-1:]
    if ends.isalnum():  # bytes: ASCII letters and digits only
        return ends.decode("ascii")
    code = value.hex()
    return code[0] + code[-1]
