"""Heads of BER elements."""

from __future__ import annotations

import pytest

from mitmsec.core.ber import Header, header


@pytest.mark.parametrize(
    ("data", "head"),
    [
        (b"\x30\x0cabc", Header(tag=0x30, length=12, size_bytes=2)),
        (b"\x02\x81\x80", Header(tag=2, length=128, size_bytes=3)),
        (b"\x30\x84\0\0\x01\x02", Header(tag=0x30, length=258, size_bytes=6)),
    ],
)
def test_a_head_says_how_long_its_element_is(data: bytes, head: Header) -> None:
    assert header(data) == head


@pytest.mark.parametrize("data", [b"", b"\x30", b"\x30\x80", b"\x30\x82\x01", b"\x30\x85\0\0\0\0\x01"])
def test_a_head_that_is_incomplete_or_that_ldap_does_not_have_is_none(data: bytes) -> None:
    assert header(data) is None


def test_an_element_may_be_there_in_part() -> None:
    head = header(b"\x04\x03ab")
    assert head is not None
    assert head.of(b"\x04\x03ab") == b"ab"
    assert head.of(b"\x04\x03abcd") == b"abc"
