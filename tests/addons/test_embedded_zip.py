"""ZIP archives behind something else are read as a program would that is handed the file."""

from __future__ import annotations

import struct

import pytest
from container_stage import CARD, contents, events, unread, zipped
from hypothesis import given
from hypothesis import strategies as st
from test_archives import places
from test_archives import unread as not_inspected

from mitmsec_addons.embedded_zip import EmbeddedZipReader

ARCHIVE = zipped({"a.txt": CARD})


@pytest.mark.parametrize(
    "before",
    [b"x", b"PK00", b"MZ" + bytes(58) + b"\x40\0\0\0PE\0\0" + bytes(2000), b"\x89PNG\r\n\x1a\n", b"#!/bin/sh\n" * 99],
    ids=["a byte", "spanned", "Windows program", "picture", "script"],
)
@pytest.mark.parametrize("step", [1, 1 << 16])
def test_whatever_stands_before_an_archive_it_is_read(before: bytes, step: int) -> None:
    assert contents(EmbeddedZipReader(), before + ARCHIVE, step) == {"a.txt": CARD}
    assert unread(EmbeddedZipReader(), before + ARCHIVE, step) == []
    assert places(before + ARCHIVE) == ["request.body!a.txt+18"]


def test_an_end_that_leads_to_what_was_not_read_is_told_once() -> None:
    """Programs ask the directory for the version, not the entry: 255 is no reason for them to refuse it."""
    hidden = bytearray(b"x" + ARCHIVE)
    hidden[5] = 255
    why = "the end of a ZIP archive that was not found"
    assert not_inspected(bytes(hidden)) == [f"{why} (request.body)"]
    assert unread(EmbeddedZipReader(), bytes(hidden) * 2) == [why]
    assert unread(EmbeddedZipReader(), bytes(hidden) + bytes(99)) == [why]


def test_what_happens_to_have_four_such_bytes_is_no_archive() -> None:
    for constant in (b"PK\x03\x04", b"PK\x05\x06"):
        for following in (bytes(99), b"\xcc" * 99, b""):
            assert events(EmbeddedZipReader(), b"a program" * 99 + constant + following) == []


PIECES = [b"PK\x03\x04", b"PK\x05\x06", bytes(15), struct.pack("<L", 46), b"x" * 46, ARCHIVE, b"P"]


@given(st.lists(st.sampled_from(PIECES), max_size=8), st.integers(1, 70))
def test_hostile_bytes_are_read_the_same_however_they_are_cut(pieces: list[bytes], step: int) -> None:
    data = b"".join(pieces)
    assert events(EmbeddedZipReader(), data, step) == events(EmbeddedZipReader(), data, len(data) + 1)
