"""Openings of protocols in which the client speaks first, and not in words: PostgreSQL, LDAP, XMPP, SOCKS.

Each is told by what no text and no other of them begins with, and no DNS message that anybody sends; the port is not
looked at.
"""

from __future__ import annotations

from mitmsec.core.clienthello import NeedMore
from mitmsec.core.tunnel import SOCKS_LIMIT_BYTES, request_4_bytes

_POSTGRESQL_LENGTH = range(0x28)  # the third byte of four: servers take no first packet of 10 kB
_POSTGRESQL_CODES = (
    b"\x00\x03\x00\x00", b"\x00\x03\x00\x02",  # a session
    b"\x04\xd2\x16\x2e", b"\x04\xd2\x16\x2f", b"\x04\xd2\x16\x30",  # to cancel a query; to ask for TLS, for Kerberos
)  # fmt: skip
_LDAP_OPERATIONS = (0x42, 0x60, 0x63, 0x77)  # RFC 4511 §4: unbind, bind, search, extended
_XML, _XML_END, _STREAM = b"<?xml", b"?>", b"<stream:stream"  # RFC 6120 §4.2
XML_LIMIT_BYTES = 256  # of the declaration
_SOCKS_METHODS = frozenset({*range(10), *range(0x80, 0xFF)})  # RFC 1928 §3: assigned, or private


def opening_of(data: bytes) -> str | NeedMore | None:
    """The protocol (a value of mitmsec.core.sniff.Protocol) that `data`, one byte at least, opens. None: another."""
    match data[0]:
        case 0x00:
            return _postgresql(data)
        case 0x04:
            return _socks_4(data)
        case 0x05:
            return _socks_5(data)
        case 0x30:
            return _ldap(data)
        case 0x3C:
            return _xmpp(data)
        case _:
            return None


def _postgresql(data: bytes) -> str | NeedMore | None:
    if len(data) < 2:
        return NeedMore(size_bytes=2)
    if data[1] or (len(data) > 2 and data[2] not in _POSTGRESQL_LENGTH):
        return None
    if not any(code.startswith(data[4:8]) for code in _POSTGRESQL_CODES):
        return None
    return "postgresql" if len(data) >= 8 else NeedMore(size_bytes=8)


def _socks_4(data: bytes) -> str | NeedMore | None:
    """To connect, to a port, for a user: https://www.openssh.org/txt/socks4.protocol."""
    if data[1:2] not in (b"", b"\x01") or data[2:4] == b"\0\0":
        return None
    if request_4_bytes(data[:SOCKS_LIMIT_BYTES]) is not None:
        return "socks"
    return NeedMore(size_bytes=max(9, len(data) + 1)) if len(data) < SOCKS_LIMIT_BYTES else None


def _socks_5(data: bytes) -> str | NeedMore | None:
    if len(data) < 2:
        return NeedMore(size_bytes=2)
    methods = data[2 : 2 + data[1]]
    if not 1 <= data[1] <= len(_SOCKS_METHODS) or not _SOCKS_METHODS.issuperset(methods):
        return None
    if len(set(methods)) < len(methods):
        return None
    return "socks" if len(methods) == data[1] else NeedMore(size_bytes=2 + data[1])


def _ldap(data: bytes) -> str | NeedMore | None:
    """A sequence that holds a number, and an operation that may come first."""
    number_at = 2
    if len(data) > 1 and data[1] >= 0x80:
        if not 0x81 <= data[1] <= 0x84:
            return None
        number_at += data[1] - 0x80
    if len(data) < number_at + 1:
        return NeedMore(size_bytes=number_at + 1)
    if data[number_at] != 0x02:
        return None
    if len(data) < number_at + 2:
        return NeedMore(size_bytes=number_at + 2)
    size_bytes = data[number_at + 1]
    if not 1 <= size_bytes <= 4:
        return None
    operation_at = number_at + 2 + size_bytes
    if len(data) <= operation_at:
        return NeedMore(size_bytes=operation_at + 1)
    return "ldap" if data[operation_at] in _LDAP_OPERATIONS else None


def _xmpp(data: bytes) -> str | NeedMore | None:
    """A stream, perhaps after the declaration of XML."""
    rest = data
    if data.startswith(_XML):
        declaration, end, rest = data.partition(_XML_END)
        if not end:
            return NeedMore() if len(data) <= XML_LIMIT_BYTES else None
        if len(declaration) > XML_LIMIT_BYTES:
            return None
        rest = rest.lstrip()
        if len(data) > 2 * XML_LIMIT_BYTES and not rest:
            return None
    elif _XML.startswith(data):
        return NeedMore()
    if rest.startswith(_STREAM):
        return "xmpp"
    return NeedMore() if _STREAM.startswith(rest) else None
