"""`file_type`: programs, macros, encryption, and files that are not what they say."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core.inspection import Part, PartKind
from mitmsec.core.model import Finding, Severity
from mitmsec_addons.file_type import FileType

PROGRAM = Path(sys.executable).resolve().read_bytes()[:5000]
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(2000)


def zipped(*names: str) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, b"content " * 200)
    return made.getvalue()


def found(data: bytes, *words: str, step: int = 700, kind: PartKind = PartKind.BODY, **declared: str) -> list[Finding]:
    inspection = FileType(words).open(Part(flow="f", kind=kind, sent=True, host="h", **declared))
    assert inspection is not None
    told = [one for at in range(0, len(data), step) for one in inspection.feed(data[at : at + step])]
    return [*told, *inspection.close()]


def summaries(data: bytes, *words: str, **declared: str) -> list[str]:
    return [one.summary for one in found(data, *words, **declared)]


def test_a_program_is_told_whatever_it_is_called() -> None:
    (told,) = found(PROGRAM)
    assert (told.summary, told.severity, told.location) == ("a Linux program", Severity.MEDIUM, "request.body")
    assert summaries(PROGRAM, file_name="holiday.jpg") == [
        "a Linux program", "a Linux program that says it is a JPEG image",
    ]  # fmt: skip
    assert [one.severity for one in found(PROGRAM, "mismatches", file_name="holiday.jpg")] == [Severity.HIGH]
    assert [one.severity for one in found(PROGRAM, "mismatches", name="holiday.jpg")] == [Severity.HIGH]


def test_what_a_double_click_would_run_is_told_by_its_name() -> None:
    assert summaries(b"MsgBox 1", file_name="Invoice.pdf.vbs") == ["a file that is run by its name (.vbs)"]
    assert summaries(b"let x", url="https://h/app.js?v=1", content_type="text/javascript") == []


def test_macros_are_told_in_office_files_old_and_new() -> None:
    document = zipped("[Content_Types].xml", "word/document.xml", "word/vbaProject.bin")
    (told,) = found(document, file_name="x.docm")
    assert (told.summary, told.severity) == ("an Office document with macros", Severity.HIGH)
    old = OLE + "_VBA_PROJECT".encode("utf-16-le") + bytes(99)
    assert summaries(old, file_name="x.doc") == ["an OLE document with macros"]
    assert summaries(zipped("word/document.xml"), file_name="x.docx") == summaries(OLE, file_name="x.doc") == []


def test_what_is_encrypted_is_told() -> None:
    archive = bytearray(zipped("secret.txt"))
    archive[6] |= 1
    assert summaries(bytes(archive)) == ["a ZIP archive with encrypted entries"]
    assert summaries(OLE + "EncryptedPackage".encode("utf-16-le")) == ["an encrypted Office document"]
    assert summaries(b"%PDF-1.7\n" + bytes(3000) + b"trailer <</Encrypt 5 0 R>>") == ["an encrypted PDF document"]
    assert summaries(b"-----BEGIN PGP MESSAGE-----\n\nhQEM") == ["a PGP message, encrypted"]
    assert summaries(b"Rar!\x1a\x07\x01\0crc_\x21\x04\0") == ["a RAR archive, encrypted"]
    assert summaries(b"Rar!\x1a\x07\x01\0crc_\x21\x01\0") == []
    assert summaries(b"Rar!\x1a\x07\0\xce\x99\x73\x80\0\r\0") == ["a RAR archive, encrypted"]


def test_a_real_openssl_file_is_told_as_encrypted() -> None:
    command = ["openssl", "enc", "-aes-256-cbc", "-pbkdf2", "-pass", "pass:x"]
    sealed = subprocess.run(command, input=b"secret", capture_output=True, check=True).stdout
    assert summaries(sealed) == ["a file encrypted by OpenSSL, encrypted"]


@pytest.mark.parametrize(
    ("data", "declared"),
    [
        (zipped("a"), {"file_name": "x.docx"}),  # documents are ZIP archives
        (zipped("a"), {"content_type": "application/octet-stream"}),  # says nothing
        (b"RIFF\0\0\0\0WEBPVP8 ", {"url": "https://h/x.jpg", "content_type": "image/jpeg"}),  # every web server does it
        (b"<html>", {"content_type": "text/plain"}),
        (b"just text", {"content_type": "image/png"}),  # a kind that is not known
    ],
    ids=["document", "says nothing", "pictures", "texts", "unknown"],
)
def test_what_fits_well_enough_is_no_mismatch(data: bytes, declared: dict[str, str]) -> None:
    assert found(data, **declared) == []


def test_a_script_is_text_too() -> None:
    assert summaries(b"#!/bin/sh\n", content_type="text/plain") == ["a script"]


def test_an_archive_that_says_it_is_a_picture_is_a_grave_mismatch_and_a_page_only_a_small_one() -> None:
    (archive,) = found(zipped("a"), url="https://h/x.png?y=1", content_type="image/png")
    assert (archive.summary, archive.severity) == ("a ZIP archive that says it is a PNG image", Severity.HIGH)
    (page,) = found(b"<html>", content_type="image/png")
    assert page.severity is Severity.LOW
    assert found(b"<html>", url="http://[broken") == []


def test_a_java_program_is_told_by_its_manifest() -> None:
    assert summaries(zipped("META-INF/MANIFEST.MF", "A.class"), file_name="x.zip") == ["a Java program"]


def test_words_choose_what_is_told_and_no_others_are_taken() -> None:
    assert found(PROGRAM, "macros", "encrypted") == []
    with pytest.raises(ValueError, match="'viruses': file_type finds executables, macros, encrypted, mismatches"):
        FileType(("viruses",))


def test_heads_and_urls_are_no_files() -> None:
    assert FileType().open(Part(flow="f", kind=PartKind.HEADERS, sent=True, host="h")) is None


SAMPLES = [
    PROGRAM,
    zipped("word/vbaProject.bin", "x"),
    OLE + "_VBA_PROJECT".encode("utf-16-le"),
    b"%PDF- " + bytes(1500) + b"/Encrypt",
    b"<html>",
]


@given(st.sampled_from(SAMPLES), st.integers(1, 1500))
def test_it_finds_the_same_however_the_file_is_cut(data: bytes, step: int) -> None:
    assert found(data, step=step, content_type="image/png") == found(data, step=len(data), content_type="image/png")
