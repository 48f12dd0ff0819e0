"""Headers of 7z archives: hostile ones, and what is refused. test_seven_zip_reader.py has real ones."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec_addons.inflating import Damaged
from mitmsec_addons.seven_zip_header import Coder, Folder, Header, Malformed, header_of, unfolded


def unpack(*coders: Coder) -> bytes:
    return b"".join(unfolded(Folder(coders, 0, 99, 10), bytes(99)))


@pytest.mark.parametrize(
    ("coder", "why"),
    [
        (Coder(b"\x21", bytes([30])), "needs more than 33554432 bytes to unpack"),
        (Coder(b"\3\1\1", b"\x5d\0\0\0\x10"), "needs more than 33554432 bytes to unpack"),
        (Coder(b"\6\xf1\7\1", b""), "encrypted"),
        (Coder(b"\3\4\1", bytes(5)), "some of it is packed by the method 030401, which is not known here"),
        (Coder(b"\x21", b""), "some of it is packed by the method 21, which is not known here"),
    ],
)
def test_what_asks_for_too_much_or_for_the_unknown_is_refused(coder: Coder, why: str) -> None:
    with pytest.raises(Malformed, match=why):
        unpack(coder)


def test_what_comes_out_short_is_damaged() -> None:
    with pytest.raises(Damaged):
        unpack(Coder(b"\x21", bytes([8])))
    assert unpack(Coder(b"\0", b"")) == bytes(10)


def test_nothing_is_an_archive_of_nothing() -> None:
    assert header_of(b"") == Header((), ())


BYTES = st.sampled_from([0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 17, 23, 0x21, 0x23, 0x80, 0xFF])


@given(
    st.sampled_from([b"", b"\1", b"\1\4", b"\1\5", b"\x17", b"\x17\6\0\1\x09\5\0\7\x0b\1\0"]),
    st.lists(BYTES, max_size=40),
)
def test_hostile_headers_are_read_or_malformed(begin: bytes, more: list[int]) -> None:
    with contextlib.suppress(Malformed):
        assert isinstance(header_of(begin + bytes(more)), Header | Folder)


@pytest.mark.parametrize("section", [b"\5\xc0\x20\x4e\0", b"\4\0", b"\4\x08\0\x08\0\0"], ids=["files", "main", "sizes"])
def test_what_is_said_twice_is_refused_before_it_takes_time(section: bytes) -> None:
    with pytest.raises(Malformed, match="damaged: its header says something twice"):
        header_of(b"\1" + section * 2 + b"\0")
