"""The first packets of PostgreSQL, LDAP, XMPP and SOCKS, whole and in pieces."""

from __future__ import annotations

import pytest

from mitmsec.core.clienthello import NeedMore
from mitmsec.core.openings import XML_LIMIT_BYTES, opening_of
from mitmsec.core.tunnel import SOCKS_LIMIT_BYTES

OPENINGS = {
    b"\0\0\0\x08\x04\xd2\x16\x2f": "postgresql",
    b"\0\0\0\x54\0\x03\0\0user": "postgresql",
    b"\x30\x0c\x02\x01\x01\x60": "ldap",
    b"\x30\x84\0\0\0\x0d\x02\x02\x01\x01\x77": "ldap",
    b"<stream:stream to='a'>": "xmpp",
    b"<?xml version='1.0'?> <stream:stream to='a'>": "xmpp",
    b"\x05\x03\x00\x02\x80 and more": "socks",
    b"\x04\x01\x01\xbb\xc0\x00\x02\x01joe\0" + bytes(SOCKS_LIMIT_BYTES): "socks",
    b"\x04\x01\x01\xbb\0\0\0\x01joe\0a.test\0": "socks",
}
OTHERS = [
    b"GET /", b"\0\x1d\x12", b"\0\0\x28", b"\0\0\0\x08\x04\xd3", b"0 things", b"\x30\x80", b"\x30\x85\x01",
    b"\x30\x0c\x02\x05\0", b"\x30\x0c\x02\x00", b"\x30\x0c\x02\x01\x01\x61", b"<html>", b"<?xml version='1.0'?><svg>",
    b"<?xml " + b"a" * XML_LIMIT_BYTES, b"<?xml " + b"a" * XML_LIMIT_BYTES + b"?>",
    b"<?xml?>" + b" " * 2 * XML_LIMIT_BYTES, b"\x04\x02", b"\x04\x01\0\0", b"\x05\x00", b"\x05\x02\x00\x00",
    b"\x05\x02\x10", b"\x04\x01\x01\xbb" + b"x" * SOCKS_LIMIT_BYTES,
]  # fmt: skip


@pytest.mark.parametrize("data", OPENINGS)
def test_an_opening_is_known_once_it_is_there(data: bytes) -> None:
    known = [size for size in range(1, len(data) + 1) if opening_of(data[:size]) == OPENINGS[data]]
    assert known == [*range(known[0], len(data) + 1)]
    for size in range(1, known[0]):
        asked = opening_of(data[:size])
        assert isinstance(asked, NeedMore)
        assert asked.size_bytes is None or asked.size_bytes > size


@pytest.mark.parametrize("data", OTHERS)
def test_what_only_begins_like_one_is_another_protocol(data: bytes) -> None:
    assert opening_of(data) is None
