"""What files are, by their first bytes and by what they call themselves.."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec_addons.file_kinds import HEAD_BYTES, KINDS, SIGNATURES, Family, declared, extension, recognised


def tarred() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("x"))
    return made.getvalue()


def zipped() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("x", "y")
    return made.getvalue()


def pe() -> bytes:
    head = bytearray(b"MZ" + bytes(0x7E))
    head[0x3C] = 0x80
    return bytes(head) + b"PE\0\0\x64\x86"


@pytest.mark.parametrize(
    ("made", "name"),
    [
        (lambda: Path(sys.executable).resolve().read_bytes(), "a Linux program"),
        (tarred, "a tar archive"),
        (zipped, "a ZIP archive"),
        (lambda: gzip.compress(b"x"), "gzip"),
        (lambda: bz2.compress(b"x"), "bzip2"),
        (lambda: lzma.compress(b"x"), "xz"),
        (pe, "a Windows program"),
        (lambda: b"#!/bin/sh\n", "a script"),
        (lambda: b"RIFF\0\0\0\0WEBPVP8 ", "a WebP image"),
        (lambda: b"\0\0\0\x18ftypheic", "an HEIF image"),
        (lambda: b"\0\0\0\x18ftypisom", "an MP4 video"),
        (lambda: b"\n <!DOCTYPE html><html>", "HTML"),
    ],
)
def test_samples_of_real_programs_are_recognised(made: object, name: str) -> None:
    kind = recognised(made()[:HEAD_BYTES])  # type: ignore[operator]
    assert kind is not None
    assert kind.name == name


@pytest.mark.parametrize("row", SIGNATURES, ids=lambda row: row[2].name)
def test_every_signature_is_reachable(row: tuple[int, bytes, object]) -> None:
    offset, signature, kind = row
    assert recognised(bytes(offset) + signature + bytes(64)) is kind


@pytest.mark.parametrize(
    "head", [b"", b"MZ is the Mark Zbikowski of this text", b"ordinary text", b"RIFF\0\0\0\0ABCD", bytes(999)]
)
def test_what_is_none_of_them_is_none(head: bytes) -> None:
    assert recognised(head) is None


@given(st.binary(max_size=HEAD_BYTES))
def test_hostile_bytes_are_some_kind_or_none(head: bytes) -> None:
    assert recognised(head) is None or recognised(head) in KINDS


@pytest.mark.parametrize(
    ("file_name", "ending"),
    [("Invoice.PDF.EXE", "exe"), ("a.exe. . ", "exe"), ("archive.tar.gz", "gz"), (".profile", ""), ("x", ""), ("", "")],
)
def test_the_extension_is_what_windows_takes_for_one(file_name: str, ending: str) -> None:
    assert extension(file_name) == ending


def test_names_and_media_types_say_what_it_may_be() -> None:
    assert {kind.name for kind in declared("x.doc", "")} == {"an OLE document", "an RTF document"}
    assert {kind.name for kind in declared("", "IMAGE/PNG; q=1")} == {"a PNG image"}
    assert declared("x.unheard-of", "application/octet-stream") == frozenset()
    assert {kind.family for kind in declared("x.jpg", "text/html")} == {Family.IMAGE, Family.TEXT}
