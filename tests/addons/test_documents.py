"""`documents`: the text of documents is found as if it were sent by itself, and so is what is attached to them."""

from __future__ import annotations

from email.message import EmailMessage

import pytest
from container_stage import CARD, zipped
from test_archives import places, unread
from test_pdf_reader import CHROMIUM

from mitmsec.core.inspection import Part, PartKind
from mitmsec.core.model import Finding
from mitmsec_addons.documents import Documents
from mitmsec_addons.keywords import Keywords

ALL = ("documents", "archives", "payment_card")


def letter() -> bytes:
    """A card that the document marks up in the middle."""
    return zipped({"word/document.xml": b'<w:p xmlns:w="w"><w:t>card 4539 1488 </w:t><w:t>0343 6467</w:t></w:p>'})


def mail(attached: bytes, name: str) -> bytes:
    made = EmailMessage()
    made["From"], made["To"] = "a@a.test", "b@b.test"
    made.set_content("see what is attached")
    made.add_attachment(attached, maintype="application", subtype="octet-stream", filename=name)
    return bytes(made)


def test_a_card_in_the_marked_up_text_of_a_letter_is_found() -> None:
    assert places(letter(), *ALL) == ["request.body!word/document.xml+5"]


@pytest.mark.parametrize(
    ("document", "where"),
    [
        (
            zipped({
                "word/document.xml": b"<p>text</p>",
                "docProps/custom.xml": b'<P><property name="MSIP_Label_1a"><lpwstr>Top Secret</lpwstr></property></P>',
            }),
            "request.body!docProps/custom.xml+4",
        ),
        (b"%PDF-1.7\n1 0 obj\n<< /MSIP_Label_1a_Name <FEFF0053006500630072006500740020> >>\nendobj\n%%EOF",
         "request.body!properties+20"),
        (mail(zipped({"meta.xml": b"<m><user-defined>secret</user-defined></m>"}), "x.odt"),
         "request.body!x.odt!meta.xml+0"),
    ],
)  # fmt: skip
def test_a_label_in_a_documents_properties_is_found_and_the_place_names_them(document: bytes, where: str) -> None:
    body = Part(flow="f", kind=PartKind.BODY, sent=True, host="h")
    documents = Documents()
    reading = documents.open_within(body, [documents, Keywords(("=secret",))])
    assert reading is not None
    told = [*reading.feed(document), *reading.close()]
    assert [one.location for one in told if isinstance(one, Finding)] == [where]


def test_a_card_in_a_pdf_that_a_browser_printed_is_found() -> None:
    assert places(CHROMIUM, *ALL) == ["request.body!text+12"]


@pytest.mark.parametrize(
    ("attached", "name", "where"),
    [
        (CARD, "card.txt", "card.txt+18"),
        (zipped({"a.txt": CARD}), "x.zip", "x.zip!a.txt+18"),
        (letter(), "x.docx", "x.docx!word/document.xml+5"),
        (mail(CARD, "inner.txt"), "forwarded.eml", "forwarded.eml!inner.txt+18"),
    ],
    ids=["text", "zip", "letter", "mail"],
)
def test_what_is_attached_to_mail_is_found(attached: bytes, name: str, where: str) -> None:
    assert places(mail(attached, name), *ALL) == [f"request.body!{where}"]


def test_mail_is_known_by_its_media_type_too() -> None:
    assert places(b"X-Only: this\n\n" + CARD, *ALL, content_type="message/rfc822") != []


@pytest.mark.parametrize("others", [("documents", "payment_card"), ALL])
def test_a_letter_is_known_by_any_of_its_names_and_behind_anything(others: tuple[str, ...]) -> None:
    text = b'<w:p xmlns:w="w"><w:t>card 4539 1488 </w:t><w:t>0343 6467</w:t></w:p>'
    assert places(zipped({"zzz.txt": b"junk", "word/document.xml": text}), *others) == [
        "request.body!word/document.xml+5"
    ]
    assert places(b"#!/bin/sh\n" + letter(), *others) == ["request.body!word/document.xml+5"]


def test_the_end_of_an_archive_that_was_not_found_is_told_by_one_of_both() -> None:
    hidden = bytearray(b"x" + letter())
    hidden[5] = 255
    for others in (ALL, ("documents", "payment_card")):
        assert unread(bytes(hidden), *others) == ["the end of a ZIP archive that was not found (request.body)"]


@pytest.mark.parametrize("before", [b"\n\n", b"#!/bin/sh\n", b"x" * 900])
def test_a_pdf_is_known_within_its_first_kilobyte(before: bytes) -> None:
    assert places(before + CHROMIUM, *ALL) == ["request.body!text+12"]


def test_archives_alone_are_none_of_its_business() -> None:
    assert places(zipped({"a": CARD}), "documents", "payment_card") == []
    assert places(b"plain text", *ALL) == []


def test_documents_of_before_2007_and_encrypted_ones_are_not_inspected_and_told() -> None:
    assert unread(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99), *ALL) == [
        "an OLE document, which is not read (request.body)"
    ]
