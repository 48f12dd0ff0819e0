"""Quoted-printable is undone as most programs undo it, wherever it is cut."""

from __future__ import annotations

import quopri

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core.mime_quoted import ESCAPE_LIMIT_BYTES, QuotedPrintable


def undone(*pieces: bytes) -> tuple[bytes, bool]:
    reader = QuotedPrintable()
    said = b"".join([*map(reader.feed, pieces), reader.close()])
    return said, reader.is_strange


@pytest.mark.parametrize(
    ("data", "said", "is_strange"),
    [
        (b"=53=45=43", b"SEC", False),
        (b"=c3=9f", "ß".encode(), False),
        (b"a=\r\nb=\nc", b"abc", False),
        (b"a= \t\r\nb", b"ab", False),
        (b"a=", b"a", False),
        (b"a=\rthe SECRET\r\n", b"athe SECRET\r\n", True),
        (b"a=b=5x=", b"a=b=5x", False),
        (b"==41", b"=A", False),
        (b"a=" + b" " * ESCAPE_LIMIT_BYTES + b"b", b"a=" + b" " * ESCAPE_LIMIT_BYTES + b"b", False),
    ],
)
def test_what_it_says(data: bytes, said: bytes, is_strange: bool) -> None:
    assert undone(data) == (said, is_strange)


@given(st.lists(st.sampled_from([b"=", b"4", b"1", b"x", b"\r", b"\n", b" ", b"=41", b"=\r\n"])), st.data())
def test_wherever_it_is_cut(words: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(words)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=5)))
    pieces = [whole[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert undone(*pieces) == undone(whole)


@given(st.binary(max_size=300))
def test_what_others_have_encoded(content: bytes) -> None:
    encoded = quopri.encodestring(content, quotetabs=True)
    assert undone(encoded)[0].replace(b"\r\n", b"\n") == content.replace(b"\r\n", b"\n")
