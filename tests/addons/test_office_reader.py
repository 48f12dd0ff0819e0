"""Office documents: what is written in one run is one run, and nothing that a document declares unfolds."""

from __future__ import annotations

import contextlib

import pytest
from container_stage import contents, events, unread, zipped
from hypothesis import given
from hypothesis import strategies as st

from mitmsec_addons.containers import Entry, Mark, Unreadable
from mitmsec_addons.inflating import Damaged
from mitmsec_addons.office_reader import DEPTH_LIMIT, OfficeReader, XmlText

WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
LETTER = (
    f'<?xml version="1.0"?><w:document xmlns:w="{WORD}"><w:p><w:r><w:t>4539 14</w:t></w:r>'
    "<w:r><w:t>88 0343 6467</w:t></w:r></w:p><w:p><w:t>second ß</w:t></w:p></w:document>"
).encode()


def document(text: bytes, name: str = "word/document.xml") -> bytes:
    return zipped({"[Content_Types].xml": b"<Types/>", name: text, "word/media/image1.png": b"\x89PNG"})


@pytest.mark.parametrize("step", [1, 40, 1 << 16])
def test_text_that_the_document_marks_up_is_one_run_and_other_entries_are_as_they_are(step: int) -> None:
    found = contents(OfficeReader(), document(LETTER), step)
    assert found["word/document.xml"].decode() == "4539 1488 0343 6467\nsecond ß\n"
    assert found["word/media/image1.png"] == b"\x89PNG"
    assert unread(OfficeReader(), document(LETTER), step) == []


LABELS = """<P xmlns:v="v"><property fmtid="{D5CDD505-2E9C-101B}" pid="2" name="MSIP_Label_1a2b_Enabled"><v:lpwstr>true\
</v:lpwstr></property><property name="MSIP_Label_1a2b_Name"><v:lpwstr>Secret</v:lpwstr></property></P>"""


@pytest.mark.parametrize(
    ("name", "xml", "text"),
    [
        ("xl/sharedStrings.xml", "<sst><si><t>one</t></si><si><t>two</t></si></sst>", "one\ntwo\n"),
        (
            "xl/worksheets/sheet1.xml",
            "<row><c><v>4539148803436467</v></c><c><v>2</v></c></row>",
            "4539148803436467\n2\n\n",
        ),
        ("ppt/slides/slide1.xml", '<a:p xmlns:a="a"><a:t>slide</a:t></a:p>', "slide\n"),
        ("docProps/core.xml", '<c xmlns:d="d"><d:title>label: SECRET</d:title></c>', "label: SECRET\n\n"),
        (
            "docProps/custom.xml",
            LABELS,
            "true\n{D5CDD505-2E9C-101B}\nMSIP_Label_1a2b_Enabled\n\nSecret\nMSIP_Label_1a2b_Name\n\n",
        ),
        ("docProps/app.xml", "<P><Company>one</Company><Manager>two</Manager></P>", "one\ntwo\n"),
        ("meta.xml", '<m xmlns:m="m"><m:user-defined m:name="label">red</m:user-defined>x</m>', "red\nlabel\nx"),
        ("content.xml", '<!DOCTYPE x><t:h xmlns:t="t">head</t:h>', "head\n"),
    ],
)
def test_sheets_slides_and_properties_are_read(name: str, xml: str, text: str) -> None:
    assert contents(OfficeReader(), document(xml.encode(), name))[name].decode() == text


def test_what_follows_damage_in_an_entry_is_passed_over() -> None:
    damaged = document(b"<w></v>" + bytes(range(256)) * 300)
    assert unread(OfficeReader(), damaged, 200) == ["its XML is damaged"]


LAUGHS = b'<!DOCTYPE l [<!ENTITY a "xxxxxxxxxx"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><w>&b;</w>'


@pytest.mark.parametrize(
    ("xml", "why"),
    [
        (LAUGHS, "its XML declares entities"),
        (b"<w>&undeclared;</w>", "its XML is damaged"),
        (b"<w></v>", "its XML is damaged"),
        (b"<a>" * (DEPTH_LIMIT + 1), f"its XML is more than {DEPTH_LIMIT} elements deep"),
    ],
)
def test_what_is_no_such_xml_is_told_and_the_next_entry_is_read(xml: bytes, why: str) -> None:
    assert events(OfficeReader(), document(xml))[3:] == [
        Entry("word/document.xml"), Unreadable(why), Mark.ENDED,
        Entry("word/media/image1.png"), b"\x89PNG", Mark.ENDED,
    ]  # fmt: skip


@given(st.lists(st.sampled_from([b"<a>", b"</a>", b"text", b"&lt;", b"\xff", b"<!", b"<?xml ?>", b"\0"]), max_size=9))
def test_hostile_xml_is_text_or_damage(pieces: list[bytes]) -> None:
    text = XmlText()
    with contextlib.suppress(Damaged):
        assert all(text.feed(piece).decode() is not None for piece in pieces)


@pytest.mark.parametrize("step", [40, 1 << 16])
def test_a_long_token_hides_nothing_behind_it(step: int) -> None:
    """Expat puts off what follows one that it could not end at once."""
    xml = b'<w a="' + b"x" * 66_000 + b'"><p>4539 1488 0343 6467</p></w>'
    assert b"\n4539 1488 0343 6467\n" in contents(OfficeReader(), document(xml), step)["word/document.xml"]
    assert unread(OfficeReader(), document(xml), step) == []


def test_xml_that_has_no_end_is_told_and_an_empty_entry_is_none() -> None:
    assert unread(OfficeReader(), document(b"<w><p>text</p>")) == ["its XML is damaged"]
    assert unread(OfficeReader(), document(b"")) == []


def test_attributes_and_comments_follow_the_line() -> None:
    xml = (
        b'<w><p id="1F03"><t x="a picture of it">4539 1488 </t><!-- said aside --><t y="">0343 6467</t></p>'
        b"<?app data?>the end</w>"
    )
    text = b"4539 1488 0343 6467\na picture of it\n said aside \nthe end\ndata\n"
    assert contents(OfficeReader(), document(xml))["word/document.xml"] == text
    many = b"<w>" + b'<t a="0123456789"/>' * 7000 + b"</w>"
    assert contents(OfficeReader(), document(many))["word/document.xml"].count(b"0123456789\n") == 7000


def test_of_an_archive_that_is_not_wholly_a_document_the_text_is_read() -> None:
    archive = zipped({"zzz.txt": b"junk", "word/document.xml": LETTER})
    assert [*contents(OfficeReader(whole=False), archive)] == ["word/document.xml"]
    assert unread(OfficeReader(whole=False), archive + b"x") == ["the archive's end is not where it says"]
    assert unread(OfficeReader(whole=False), zipped({"a": b"x"}) + b"x") == []
    damaged = bytearray(document(LETTER))
    damaged[100:110] = b"\xff" * 10
    assert unread(OfficeReader(), bytes(damaged)).count("its XML is damaged") == 0, "that it is damaged is told once"
