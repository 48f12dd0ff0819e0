"""Labels in a PDF's properties are text, however they are written."""

from __future__ import annotations

import time

import pytest
from container_stage import contents, events
from hypothesis import given
from hypothesis import strategies as st

from mitmsec_addons import pdf_fonts, pdf_properties
from mitmsec_addons.containers import Entry, Unreadable
from mitmsec_addons.pdf_properties import BEGINS_LIMIT, TOLD_LIMIT, TOLD_LIMIT_BYTES
from mitmsec_addons.pdf_reader import PdfReader

NAME = b"MSIP_Label_1a2b3c4d-0000-1111-2222-333344445555_Name"


def properties(objects: bytes) -> list[bytes]:
    return [*filter(None, pdf_properties.properties(objects))]


@pytest.mark.parametrize(
    ("written", "told"),
    [
        (b"<< /Title (Plain) /Other (Plain) >>", [b"Title: Plain\n"]),
        (b"<</" + NAME + b"(Top\\040\\\nSecret \\(red\\) (all))>>", [NAME + b": Top Secret (red) (all)\n"]),
        (b"/Subject<FEFF 0053 0065 0063 0072 0065 0074 20AC>", ["Subject: Secret€\n".encode()]),
        (b"/Own (\\376\\377\\000S\\000e) /Own2 (\xff\xfeS\0e\0) /Own3 (\xef\xbb\xbfSe)", [
            b"Own: Se\n", b"Own2: Se\n", b"Own3: Se\n",
        ]),
        (b"/Own (\\\n\\\r\n\\376" + b"\\\n" * 99 + b"\\377\\000S) /Own2 <" + b" " * 99 + b"FEFF0053>", [
            b"Own: S\n", b"Own2: S\n",
        ]),
        (b"/Author <4D> /Author <4D6>", []),
        (b"/Author <4D615>", [b"Author: MaP\n"]),
        (b"/Title (never ends", []),
        (b"/Type /Catalog /Title 5 0 R", []),
    ],
)  # fmt: skip
def test_properties_are_decoded_as_programs_show_them(written: bytes, told: list[bytes]) -> None:
    assert properties(written) == told


@pytest.mark.parametrize("step", [1, 100, 1 << 16])
def test_a_document_shows_them_by_name_and_its_xmp_too(step: int) -> None:
    xmp = b"<x:xmpmeta><pdfx:MSIP_Label>Secret</pdfx:MSIP_Label></x:xmpmeta>"
    made = b"%PDF-1.7\n1 0 obj\n<< /Producer (us) /Keywords <FEFF00530065> >>\nendobj\n"
    made += b"2 0 obj\n<< /Type /Metadata /Subtype /XML /Length %d >>\nstream\n%s\nendstream\nendobj\n" % (
        len(xmp),
        xmp,
    )
    found = contents(PdfReader(), made + b"trailer << /Info 1 0 R >>\n%%EOF", step)
    assert found == {"metadata": xmp + b"\n", "properties": b"Producer: us\nKeywords: Se\n"}


@given(st.lists(st.sampled_from([b"/Title", b"(", b")", b"\\", b"<FE", b"FF00", b">", b" ", b"\n", b"/", b"a" * 50])))
def test_hostile_objects_are_read_soon(pieces: list[bytes]) -> None:
    assert all(line.endswith(b"\n") for line in properties(b"".join(pieces)))


@pytest.mark.parametrize(
    "piece", [b"/Title(", b"/Title(\\", b"/Title((", b"/Title<00 ", b"/a", b"/Title(" + b"x" * 4000]
)
def test_much_that_never_ends_takes_little_time(piece: bytes) -> None:
    begun_s = time.process_time()
    assert properties(piece * ((1 << 20) // len(piece))) == []
    assert time.process_time() - begun_s < 1.0


@pytest.mark.parametrize(
    ("piece", "count", "limit"),
    [
        (b"/T<FEFF>", TOLD_LIMIT, TOLD_LIMIT),
        (b"/Title(x)", TOLD_LIMIT, TOLD_LIMIT),
        (b"/Other(x)", BEGINS_LIMIT, 0),
        (b"/Title(" + b"\\a" * 4000 + b")", TOLD_LIMIT_BYTES // 8009 + 1, TOLD_LIMIT_BYTES // 8009 + 1),
    ],
)
def test_of_more_than_a_document_has_the_rest_is_not_read(piece: bytes, count: int, limit: int) -> None:
    document = b"%PDF-1.7\n" + piece * (count + 100) + b"\n%%EOF"
    told = events(PdfReader(), document, 1 << 16)
    assert b"".join(event for event in told if isinstance(event, bytes)).count(b"\n") == limit
    assert told[-1] == Unreadable("some of the document: it is too long for all of its fonts or properties to be read")


def test_a_property_that_is_too_long_is_read_as_far_as_that_goes() -> None:
    (line,) = properties(b"/Title (" + b"x" * 2 * TOLD_LIMIT_BYTES + b")")
    assert line == b"Title: " + b"x" * TOLD_LIMIT_BYTES + b"\n"


def test_properties_are_found_wherever_a_piece_of_the_objects_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    objects = b"<< /Title (/Author (inner)) /Keywords    <FEFF0053> /" + b"n" * 128 + b" (no) /Subject(all) >>"
    whole = properties(objects)
    assert [line.partition(b":")[0] for line in whole] == [b"Title", b"Keywords", b"Subject"]
    for piece_bytes in range(1, 40):
        monkeypatch.setattr(pdf_properties, "PIECE_BYTES", piece_bytes)
        assert properties(objects) == whole


def test_many_objects_are_looked_through_in_pieces_and_what_is_shown_in_fonts_comes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert [*pdf_properties.properties(b"/a" * (1 << 17))] == [b""] * 4
    monkeypatch.setattr(pdf_fonts.PdfFonts, "text", lambda _fonts: iter([b"", b"shown"]))
    names = [event.name for event in events(PdfReader(), b"%PDF-1.7\n/Title (x)") if isinstance(event, Entry)]
    assert names == ["text", "properties"]
