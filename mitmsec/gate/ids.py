"""Ids of flows: 128 bits, the first 48 a time in milliseconds, the rest random; so they sort by age as text."""

from __future__ import annotations

import secrets
import time

_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"  # no i, l, o, u: ids are read aloud and typed
ID_CHARS = 26  # 5 bits each; the first carries 3


def flow_id(now_ms: int | None = None) -> str:
    """A new id for a flow that begins at `now_ms` (Unix time), by default now."""
    if now_ms is None:
        now_ms = time.time_ns() // 1_000_000
    number = (now_ms & (1 << 48) - 1) << 80 | secrets.randbits(80)
    return "".join(_CROCKFORD[number >> shift & 31] for shift in range(5 * (ID_CHARS - 1), -1, -5))
