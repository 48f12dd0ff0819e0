"""What a response says of other ways to its origin, without those that are refused (RFC 7838).

alt-svc: h3=":443"; ma=86400, h2="b.test:443"      ──►  alt-svc: h2="b.test:443"
alt-svc: h3=":443"; ma=86400                       ──►  alt-svc: clear        which also ends what was known before
alt-svc: h3=":443", h3=":8443"                     ──►  alt-svc: h3=":443"    where that is decrypted
"""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

ALT_SVC, CLEAR = b"alt-svc", b"clear"

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*(?:"|\\?\Z)|[^",]+|,', re.DOTALL)  # a string that never ends is one to the end
_AT_443 = re.compile(rb'[^="]+= *"[^"\\]*:443" *(?:;.*)?', re.DOTALL)

type Fields = tuple[tuple[bytes, bytes], ...]


def without_http3(fields: Fields, *, but_led: bool = False) -> Fields:
    """All fields of a head, with no alternative in them that is HTTP/3 or what came before it. In linear time.

    `but_led`: those at port 443 stay, for what is sent there is led to the gate.
    """
    found = [value for name, value in fields if name.lower() == ALT_SVC]
    kept = [
        [one for one in _alternatives(value) if not _is_http3(one) or (but_led and _AT_443.fullmatch(one))]
        for value in found
    ]
    if kept == [_alternatives(value) for value in found]:
        return fields
    values = iter([b",".join(each).strip() for each in kept])
    rest = [(name, next(values) if name.lower() == ALT_SVC else value) for name, value in fields]
    left = tuple((name, value) for name, value in rest if name.lower() != ALT_SVC or value)
    return left if any(kept) else (*left, (ALT_SVC, CLEAR))


def _alternatives(value: bytes) -> list[bytes]:
    """As they stand there: what commas outside of strings divide."""
    found: list[list[bytes]] = [[]]
    for token in _TOKEN.findall(value):
        if token == b",":
            found.append([])
        else:
            found[-1].append(token)
    return [b"".join(each) for each in found]


def _is_http3(alternative: bytes) -> bool:
    """By its protocol, whose characters may be escaped (RFC 7838 §3); drafts had `h3-29`, and Google `quic`."""
    protocol = unquote_to_bytes(alternative.partition(b"=")[0].strip())
    return protocol in (b"h3", b"quic") or protocol.startswith(b"h3-")
