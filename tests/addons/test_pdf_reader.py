"""PDF documents: the text of a real one, filters, and what is told where it cannot be read."""

from __future__ import annotations

import base64
import zlib
from pathlib import Path

import pytest
from container_stage import contents, events, unread
from hypothesis import given
from hypothesis import strategies as st

from mitmsec_addons.pdf_reader import PdfReader

CHROMIUM = (Path(__file__).parents[1] / "data/documents/chromium.pdf").read_bytes()  # printed by Chromium 1
SHOWS = b"BT /F1 12 Tf (card 4539 1488 0343 6467) Tj ET"


def pdf(*streams: tuple[bytes, bytes]) -> bytes:
    """Of dictionaries' contents and streams."""
    made = b"%PDF-1.7\n"
    for number, (dictionary, content) in enumerate(streams, 1):
        made += b"%d 0 obj\n<< %s /Length %d >>\nstream\r\n%s\nendstream\nendobj\n" % (
            number, dictionary, len(content), content,
        )  # fmt: skip
    return made + b"trailer << /Size 9 >>\n%%EOF"


@pytest.mark.parametrize("step", [1, 1000, 1 << 16])
def test_the_text_that_a_browser_has_printed_is_read(step: int) -> None:
    text = contents(PdfReader(), CHROMIUM, step)["text"].decode()
    assert "My card is 4539 1488 0343 6467, thanks. Kontonummer DE89 3704 0044 0532 0130 00." in text
    assert unread(PdfReader(), CHROMIUM, step) == []


@pytest.mark.parametrize(
    ("dictionary", "content"),
    [
        (b"", SHOWS),
        (b"/Filter /FlateDecode", zlib.compress(SHOWS)),
        (b"/Filter [/ASCII85Decode /FlateDecode]", base64.a85encode(zlib.compress(SHOWS), wrapcol=70) + b"~>"),
        (b"/Filter[/A85/Fl]", base64.a85encode(zlib.compress(SHOWS)) + b"~>"),
    ],
)
@pytest.mark.parametrize("step", [1, 1 << 16])
def test_filters_are_undone(dictionary: bytes, content: bytes, step: int) -> None:
    found = contents(PdfReader(), pdf((dictionary, content)), step)
    assert found == {"object 1": b"card 4539 1488 0343 6467\n"}


def test_pictures_and_fonts_are_passed_over() -> None:
    picture = (b"/Subtype /Image /Filter /FlateDecode", zlib.compress(SHOWS))
    photo = (b"/Filter /DCTDecode", b"\xff\xd8")
    font = (b"/Length1 99 /Filter /FlateDecode", zlib.compress(SHOWS))
    assert contents(PdfReader(), pdf(picture, photo, font)) == {}
    assert unread(PdfReader(), pdf(picture, photo, font)) == []


def test_what_cannot_be_read_is_told_once_and_the_rest_is_read() -> None:
    sealed = [(b"/Filter /FlateDecode", b"encrypted, so it is no deflate")] * 3
    other = (b"/Filter /LZWDecode", b"x")
    assert unread(PdfReader(), pdf(*sealed)) == ["some of the document: damaged"]
    assert unread(PdfReader(), pdf(other)) == ["some of the document: packed by LZWDecode, which is not known here"]
    assert unread(PdfReader(), pdf((b"/Filter /A85", b"vvvvv~>"))) == ["some of the document: damaged"]
    assert contents(PdfReader(), pdf(other, (b"", SHOWS)))["object 2"] == b"card 4539 1488 0343 6467\n"


PIECES = [
    b"stream\r\n",
    b"endstream",
    b"1 0 obj",
    b"/Filter/FlateDecode",
    b"<<",
    zlib.compress(SHOWS),
    b"/Type/ObjStm",
    SHOWS,
]


@given(st.lists(st.sampled_from(PIECES), max_size=12), st.integers(1, 90))
def test_hostile_bytes_are_read_the_same_however_they_are_cut(pieces: list[bytes], step: int) -> None:
    data = b"".join(pieces)
    assert events(PdfReader(), data, step) == events(PdfReader(), data, len(data) + 1)
