"""The inspector `doh`: DNS over HTTPS (RFC 8484), whoever serves it, and whom it asks for.

    GET  /dns-query?dns=AAABAAABAAAA…         what is asked, in base64url        │ a DNS question in there?
    POST /dns-query, application/dns-message  what is asked, as it is            │ a finding that names it
    …    application/oblivious-dns-message    encrypted (RFC 9230)               │ one that says so

Paths and hosts are not looked at: services are free in both. A finding is made once the question is whole, so before
anything of a short request has gone on: with `on_finding = "block"` nobody is asked.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from urllib.parse import parse_qsl, urlsplit

from mitmsec.core import dns
from mitmsec.core.dns import DnsMessage
from mitmsec.core.inspection import Part, PartKind
from mitmsec.core.model import Finding, Severity

MESSAGE, OBLIVIOUS = "application/dns-message", "application/oblivious-dns-message"
QUESTION_LIMIT_BYTES = 4096  # a name of 255 bytes, options, padding (RFC 8467: up to 128 and its multiples)
URL_LIMIT_BYTES = 8192
KINDS = {1: "A", 2: "NS", 5: "CNAME", 15: "MX", 16: "TXT", 28: "AAAA", 33: "SRV", 64: "SVCB", 65: "HTTPS", 255: "ANY"}


class Doh:
    """Looks at URLs and bodies of requests. Raises ValueError for any words."""

    name = "doh"

    def __init__(self, words: tuple[str, ...] = ()) -> None:
        if words:
            raise ValueError("doh has no words: it knows what it looks for")

    def open(self, part: Part) -> DohInspection | None:
        """None for what cannot hold a question."""
        if not part.sent:
            return None
        if part.kind is PartKind.URL:
            return DohInspection(part, URL_LIMIT_BYTES)
        is_asked = part.kind is PartKind.BODY and _media_type(part) in (MESSAGE, OBLIVIOUS)
        return DohInspection(part, QUESTION_LIMIT_BYTES) if is_asked else None


class DohInspection:
    """One part being read. Holds as many bytes as a question may have."""

    __slots__ = ("_held", "_limit_bytes", "_part")

    def __init__(self, part: Part, limit_bytes: int) -> None:
        self._part, self._limit_bytes = part, limit_bytes
        self._held = bytearray()

    def feed(self, data: bytes) -> Sequence[Finding]:
        """Nothing: only the end makes it whole."""
        self._held += data[: self._limit_bytes + 1 - len(self._held)]
        return ()

    def close(self) -> Sequence[Finding]:
        """What is asked."""
        held = bytes(self._held)
        if self._part.kind is PartKind.URL:
            asked = _asked_in_url(held) if len(held) <= self._limit_bytes else None
            return () if asked is None else (self._finding(f"asks for {asked}"),)
        whole = len(held) <= self._limit_bytes and _media_type(self._part) == MESSAGE
        asked = _asked(held) if whole else None
        return (self._finding("asks for what cannot be read" if asked is None else f"asks for {asked}"),)

    def _finding(self, what: str) -> Finding:
        return Finding(
            detector=Doh.name,
            severity=Severity.LOW,
            confidence=0.9,
            summary=f"DNS over HTTPS {what}",
            evidence="",
            location=f"request.{self._part.kind.value}",
        )


def _media_type(part: Part) -> str:
    return part.content_type.partition(";")[0].strip().lower()


def _asked_in_url(url: bytes) -> str | None:
    """What the first `dns` of its query asks for."""
    try:
        query = dict(reversed(parse_qsl(urlsplit(url.decode("latin-1")).query)))
        given = query.get("dns", "").rstrip("=")
        return _asked(base64.b64decode(given + "=" * (-len(given) % 4), altchars="-_", validate=True))
    except (ValueError, binascii.Error):  # no URL, or no base64
        return None


def _asked(message: bytes) -> str | None:
    """`a.test (HTTPS)`; None where it is no question."""
    read = dns.parse(message)
    if not isinstance(read, DnsMessage) or read.is_response:
        return None
    return f"{read.name or 'a name that is no host'} ({KINDS.get(read.kind, f'type {read.kind}')})"
