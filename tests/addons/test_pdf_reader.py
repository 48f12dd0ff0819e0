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


@pytest.mark.parametrize(
    "dictionary",
    [
        b"/Length1 99 /Filter /FlateDecode", b"/Filter /FlateDecode /X << /Subtype /Image >>",
        b"/#46ilter /Flat#65Decode",
        b"/Filter 9 0 R", b"/Filter /FlateDecode /Pad (" + b"a" * 5000 + b")", b"/Filter%\n/FlateDecode", b"",
        b"/Filter /DCTDecode", b"/X << /Filter /A85 >> /Filter /FlateDecode", b"/Filter [/FlateDecode /DCTDecode]",
    ],
)  # fmt: skip
@pytest.mark.parametrize("step", [1, 1 << 16])
def test_nothing_is_passed_over_because_of_what_a_dictionary_says(dictionary: bytes, step: int) -> None:
    document = pdf((dictionary, zlib.compress(SHOWS)))
    assert [*contents(PdfReader(), document, step).values()] == [b"card 4539 1488 0343 6467\n"]
    assert unread(PdfReader(), document, step) == []


@pytest.mark.parametrize("line", [b"stream \n", b"stream\r", b"stream\t%x\r\n"])
@pytest.mark.parametrize("step", [1, 1 << 16])
def test_streams_begin_as_readers_let_them(line: bytes, step: int) -> None:
    document = pdf((b"/Filter /FlateDecode", zlib.compress(SHOWS))).replace(b"stream\r\n", line)
    assert contents(PdfReader(), document, step) == {"object 1": b"card 4539 1488 0343 6467\n"}


@pytest.mark.parametrize("step", [1, 1 << 16])
def test_a_word_in_what_is_packed_ends_nothing(step: int) -> None:
    stored = zlib.compressobj(0)
    first = stored.compress(b"% endstream\n") + stored.flush(zlib.Z_FULL_FLUSH)
    packer = zlib.compressobj(9, wbits=-15)
    packed = first + packer.compress(SHOWS) + packer.flush() + zlib.adler32(b"% endstream\n" + SHOWS).to_bytes(4, "big")
    assert b"endstream" in packed
    document = pdf((b"/Filter /FlateDecode", packed), (b"", SHOWS))
    assert [*contents(PdfReader(), document, step).values()] == [b"card 4539 1488 0343 6467\n"] * 2
    assert unread(PdfReader(), document, step) == []


def test_what_ends_too_early_and_what_has_no_clear_filter_is_told() -> None:
    cut = zlib.compress(SHOWS * 9)[:-9]
    assert unread(PdfReader(), b"%PDF-\n1 0 obj << /Filter /FlateDecode >>\nstream\n" + cut) == [
        "some of the document: damaged"
    ]
    coded = base64.a85encode(zlib.compress(SHOWS))
    assert unread(PdfReader(), pdf((b"/Filter /A85", coded))) == ["some of the document: damaged"]
    unclear = ["some of the document: its filters are not clear"]
    assert unread(PdfReader(), pdf((b"/Filter 9 0 R", coded))) == unclear
    assert unread(PdfReader(), pdf((b"/Filter 9 0 R", b"x\x9cno deflate"))) == unclear


def test_pictures_and_what_only_begins_like_deflate_are_as_they_are() -> None:
    for content in (b"\xff\xd8", b"x\x9cis no deflate", b"1", b""):
        assert unread(PdfReader(), pdf((b"/Filter /DCTDecode", content), (b"", content))) == []


@pytest.mark.parametrize("name", [b"/Encrypt", b"/#45ncrypt"])
@pytest.mark.parametrize("step", [1, 1 << 16])
def test_an_encrypted_document_is_told_even_where_nothing_is_packed(name: bytes, step: int) -> None:
    sealed = pdf((b"", bytes(range(128, 148)))).replace(b"/Size", name + b" 5 0 R /Size")
    assert unread(PdfReader(), sealed, step) == ["some of the document: encrypted"]
    assert unread(PdfReader(), pdf((b"", b"/EncryptMetadata /Encrypt"))) == []


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
