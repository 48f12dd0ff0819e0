"""JSON Lines: the event as it is in the log, so that a line's leaf hash and every proof can be checked with it."""

from __future__ import annotations

from mitmsec.audit.envelope import Fields, canonical
from mitmsec.audit.export.reading import Source


def line(event: Fields, source: Source) -> bytes:
    """`event` as canonical JSON (RFC 8785), without the end of the line."""
    return canonical(event)
