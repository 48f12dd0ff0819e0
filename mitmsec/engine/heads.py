"""What the head of an HTTP message says: whether a request is one for this connection, and single fields."""

from __future__ import annotations

from collections.abc import Iterable

from mitmsec.core.messages import HandOver
from mitmsec.engine import authority, pages
from mitmsec.engine.pages import Page

LENGTH_LIMIT_DIGITS = 18  # more would not fit everybody's 64 bits, and be another number to them
VERSIONS = frozenset({"HTTP/1.0", "HTTP/1.1", "HTTP/2.0", "HTTP/3"})

Fields = Iterable[tuple[bytes, bytes]]


def refusal(hand_over: HandOver, method: bytes, version: str, authorities: list[bytes], fields: Fields) -> Page | None:
    """Of a request on the connection of `hand_over`, None where it may go on."""
    flow = hand_over.flow
    if method == b"CONNECT":
        return pages.misdirected(flow)
    if version not in VERSIONS:
        return pages.malformed(flow, "This version of HTTP is not known here")
    if any(_is_broken(value) for _, value in fields):
        return pages.malformed(flow, "A header field has a line break or a NUL in it")
    if any(name.lower() == b"content-length" and len(value) > LENGTH_LIMIT_DIGITS for name, value in fields):
        return pages.malformed(flow, "Nothing is as long as that Content-Length says")
    if not authorities:  # RFC 9112 §3.2: HTTP/1.0 may name nobody
        return None if version == "HTTP/1.0" else pages.malformed(flow, "The request names no host")
    if not authority.agrees(hand_over.name, authorities):
        return pages.misdirected(flow)
    return None


def field(fields: Fields, name: bytes) -> str:
    """All values of field `name`, joined (RFC 9110 §5.3)."""
    return ", ".join([value.decode("latin-1") for key, value in fields if key.lower() == name])


def as_text(fields: Fields) -> bytes:
    """All of them, as they stand in HTTP/1."""
    return b"".join([b"%b: %b\r\n" % one for one in fields])


def length(fields: Fields) -> int | None:
    """Of a body, where that is told."""
    said = next((value for name, value in fields if name.lower() == b"content-length"), b"")
    return int(said) if said.isdigit() and len(said) <= LENGTH_LIMIT_DIGITS else None


def _is_broken(value: bytes) -> bool:
    """What RFC 9110 §5.5 calls dangerous: some read it as the end of the field."""
    return b"\r" in value or b"\n" in value or b"\0" in value
