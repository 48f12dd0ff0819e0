"""Do unfinished first bytes claim to be TLS or HTTP?

Whoever begins a hello or a request and does not end it hides its name, so it gets nothing that the name could have
changed. A word that only might become a request of a method nobody has registered claims nothing.
"""

from __future__ import annotations

import re

from mitmsec.core.names import is_address, parse_name

TLS_RECORD = b"\x16"
METHODS = (
    b"CONNECT", b"COPY", b"DELETE", b"GET", b"HEAD", b"LOCK", b"MKCOL", b"MOVE", b"OPTIONS", b"PATCH", b"POST", b"PRI",
    b"PROPFIND", b"PROPPATCH", b"PUT", b"QUERY", b"REPORT", b"SEARCH", b"TRACE", b"UNLOCK",
)  # fmt: skip
"""RFC 9110 §9.3, the preface of RFC 9113 §3.4, and what WebDAV and its relatives add."""
_WITH_TARGET = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ +(?:/|\*|[a-z][a-z0-9+.-]*:)", re.IGNORECASE)


def claims(data: bytes) -> bool:
    """Whether `data`, of which mitmsec.core.sniff wants more, begins a TLS record or an HTTP request."""
    if data.startswith(TLS_RECORD):
        return True
    text = data.lstrip(b"\r\n")
    if not text or b"\n" in text:  # empty lines before a request (RFC 9112 §2.2); a request line, not the end of a head
        return bool(data)
    word, space, _ = text.partition(b" ")
    method = word.upper()
    known = method in METHODS if space else any(candidate.startswith(method) for candidate in METHODS)
    return known or bool(_WITH_TARGET.match(text))


_CONNECT = re.compile(rb"[\r\n]*CONNECT ")
_HOST = re.compile(rb" *(\[[^\]\s]*\]|[^:\s]*)(?::[0-9]*)? +HTTP/")


def connect_host(data: bytes) -> str | None:
    """To which host a request's head asks a proxy for a tunnel (RFC 9110 §9.3.6), comparable, "" where it is none that
    could be; None: it asks for no tunnel.
    """
    connect = _CONNECT.match(data)
    if connect is None:
        return None
    target = _HOST.match(data, connect.end())
    host = target[1].decode("latin-1") if target is not None else ""
    return host.strip("[]").lower() if is_address(host) else parse_name(host) or ""
