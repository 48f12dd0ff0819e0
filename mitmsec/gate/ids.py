"""Ids of flows: 128 bits, the first 48 a time in milliseconds, the rest random; so they sort by age as text."""

from __future__ import annotations

import os
import time

_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"  # no i, l, o, u: ids are read aloud and typed
ID_CHARS = 26  # 5 bits each; the first carries 3
_PAIRS = tuple(first + second for first in _CROCKFORD for second in _CROCKFORD)
_SHIFTS = tuple(range(5 * (ID_CHARS - 2), -1, -10))


def flow_id(now_ms: int | None = None, noise: bytes | None = None) -> str:
    """A new id for a flow that begins at `now_ms` (Unix time), by default now; `noise` in place of 10 random bytes."""
    if now_ms is None:
        now_ms = time.time_ns() // 1_000_000
    number = (now_ms & (1 << 48) - 1) << 80 | int.from_bytes(noise or os.urandom(10))
    return "".join([_PAIRS[number >> shift & 1023] for shift in _SHIFTS])
