"""Is it HTTP? Told by ALPN, and where that says nothing, from a client's first bytes inside TLS.

What is taken for something else is relayed without comparing names, so whatever a lenient origin would take for a
request must count as one: methods in any case, and empty lines before it (RFC 9112 §2.2).
"""

from __future__ import annotations

import re

FIRST_LINE_LIMIT_BYTES = 1 << 14
HTTP_PROTOCOLS = (b"h2", b"http/1.1", b"http/1.0")
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}"
_REQUEST_LINE = re.compile(_TOKEN + rb"[ \t]+[^\r\n]+[ \t]HTTP/1\.[0-9][ \t]*\r?\n", re.IGNORECASE)
_BEGINS_LIKE_ONE = re.compile(rb"(%b([ \t][^\r\n]*\r?)?)?" % _TOKEN)


def is_http(alpn: bytes) -> bool | None:
    """Whether what was agreed by ALPN is HTTP; None where nothing was, so that only the first bytes can tell."""
    return alpn in HTTP_PROTOCOLS if alpn else None


def looks_like_http(first: bytes) -> bool | None:
    """Whether a client's first bytes are an HTTP/1 request; None while they may still become one."""
    line = first.lstrip(b"\r\n")
    if b"\n" in line:
        return _REQUEST_LINE.match(line) is not None
    if not _BEGINS_LIKE_ONE.fullmatch(line):
        return False
    return None if len(first) < FIRST_LINE_LIMIT_BYTES else True
