"""Text in fonts with numbers of their own is put together from what a document says of them, wherever it stands."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from mitmsec_addons import pdf_fonts
from mitmsec_addons.pdf_fonts import PdfFonts

CMAP = b"""begincmap 2 beginbfchar <0014> <0034> <0015> <00660069> endbfchar
2 beginbfrange <0020> <0022> <0041> <0030> <0031> [<0061> <0062>] endbfrange endcmap"""
OBJECTS = b"""4 0 obj <</Font <</F4 6 0 R /F9 7 0 R>> >> endobj
6 0 obj <</Type/Font /ToUnicode 17 0 R>> endobj 7 0 obj <<>> endobj"""


def read(fonts: PdfFonts) -> str:
    return b"".join(fonts.text()).decode()


def shown(fonts: PdfFonts) -> PdfFonts:
    fonts.shown(b"F4", b"\0\x14\0\x15\0\x21\0\x31")
    fonts.shown(b"", b"\n")
    fonts.shown(b"F9", b"plain")
    fonts.shown(b"F4", b"\0\x99\0\x22\0")
    return fonts


def test_numbers_are_read_by_the_fonts_own_table_and_others_left_out() -> None:
    fonts = shown(PdfFonts())
    fonts.objects(OBJECTS)
    fonts.explained(17, CMAP)
    assert read(fonts) == "4fiBb\nC"
    assert not fonts.has_more


def test_objects_may_stand_in_an_object_stream() -> None:
    fonts = shown(PdfFonts())
    first = b"<</F4 6 0 R>> "
    second = b"<</ToUnicode 17 0 R>> "
    head = b"4 0 6 %d " % len(first)
    fonts.object_stream(b"<</Type/ObjStm /N 2 /First %d>>" % len(head), head + first + second)
    fonts.explained(17, CMAP)
    assert read(fonts) == "4fiBb\nC"


def test_without_a_table_there_is_no_such_text() -> None:
    fonts = shown(PdfFonts())
    fonts.objects(OBJECTS)
    assert read(fonts) == ""


def test_what_is_too_much_is_said_to_be_more() -> None:
    for ask in (
        lambda fonts: fonts.objects(bytes(pdf_fonts.OBJECTS_LIMIT_BYTES + 1)),
        lambda fonts: fonts.shown(b"F4", bytes(pdf_fonts.SHOWN_LIMIT_BYTES + 1)),
        lambda fonts: (
            [fonts.explained(n, b"beginbfrange <%02X00> <%02XFF> <0041> endbf" % (n, n)) for n in range(256)]
            + [fonts.explained(999, CMAP)]
        ),
    ):
        fonts = PdfFonts()
        ask(fonts)
        assert fonts.has_more


PIECES = [
    b"beginbfchar",
    b"beginbfrange",
    b"endbf",
    b"<00",
    b"<0041>",
    b"<FFFF>",
    b"[",
    b"]",
    b">",
    b" ",
    b"/First 9",
    b"1 2 ",
]


@given(st.lists(st.sampled_from(PIECES), max_size=15))
def test_hostile_tables_and_streams_are_read_somehow(pieces: list[bytes]) -> None:
    fonts = shown(PdfFonts())
    fonts.objects(OBJECTS)
    fonts.object_stream(b"".join(pieces), b"".join(pieces))
    fonts.explained(17, b"".join(pieces))
    assert isinstance(read(fonts), str)


def test_tables_that_repeat_themselves_take_no_time() -> None:
    for cmap in (b"beginbfrange " * 100_000, b"beginbfrange" + b"<0000><ffff><41>" * 20_000 + b"endbf"):
        fonts = PdfFonts()
        began_s = time.process_time()
        fonts.explained(1, cmap)
        assert time.process_time() - began_s < 1
    assert fonts.has_more


def test_more_objects_in_a_stream_than_are_read_are_told() -> None:
    fonts = PdfFonts()
    numbers = b"1 1 " * 500_000
    began_s = time.process_time()
    fonts.object_stream(b"/First %d" % len(numbers), numbers)
    assert time.process_time() - began_s < 1
    assert fonts.has_more
