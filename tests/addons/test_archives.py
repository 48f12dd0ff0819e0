"""`archives`: what lies in archives is found as if it were sent by itself, and bombs are stopped."""

from __future__ import annotations

import bz2
import gzip
import lzma
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from struct import pack

import pytest
import zstandard
from container_stage import CARD, tarred, zipped
from hypothesis import given, settings
from hypothesis import strategies as st

from mitmsec.core.inspecting import Guarded, Inspected
from mitmsec.core.inspection import Inspector, Part, PartKind
from mitmsec_addons.registry import build

GIB = 1 << 30
SLICE_BYTES = 1 << 16


@cache
def inspectors(*names: str) -> tuple[Inspector, ...]:
    return tuple(build(name, ()) for name in names)


def inspected(data: bytes, *names: str, step: int = SLICE_BYTES, **part: str) -> Inspected:
    made = Part(flow="f", kind=PartKind.BODY, sent=True, host="h", **part)
    guarded = Guarded(inspectors(*(names or ("archives", "payment_card"))), made, clock=time.process_time, budget_s=60)
    answers = [guarded.feed(data[at : at + step]) for at in range(0, len(data), step)] + [guarded.close()]
    return Inspected(
        findings=tuple(one for answer in answers for one in answer.findings),
        faults=tuple(one for answer in answers for one in answer.faults),
    )


def places(data: bytes, *names: str, **part: str) -> list[str]:
    return [one.location for one in inspected(data, *names, **part).findings]


def unread(data: bytes, *names: str, **part: str) -> list[str]:
    return [one.detail for one in inspected(data, *names, **part).faults]


@pytest.mark.parametrize(
    ("data", "file_name", "where"),
    [
        (zipped({"a/card.txt": CARD}), "x.zip", "a/card.txt"),
        (tarred({"card.txt": CARD}), "x.tar", "card.txt"),
        (gzip.compress(CARD), "card.txt.gz", "card.txt"),
        (bz2.compress(CARD), "card.bz2", "card"),
        (lzma.compress(CARD), "", "content"),
        (zstandard.compress(CARD), "card.zst", "card"),
        (gzip.compress(tarred({"card.txt": CARD})), "x.tgz", "x.tar!card.txt"),
        (zipped({"in.zip": zipped({"deep.gz": gzip.compress(CARD)})}), "x.zip", "in.zip!deep.gz!deep"),
    ],
    ids=["zip", "tar", "gzip", "bzip2", "xz", "zstd", "tgz", "zip in zip"],
)
def test_a_card_in_an_archive_is_found_at_its_place(data: bytes, file_name: str, where: str) -> None:
    assert f"request.body!{where}+18" in places(data, file_name=file_name)
    assert unread(data, file_name=file_name) == []


def old_tar() -> bytes:
    """As before POSIX: it has no signature."""
    made = bytearray(tarred({"card.zip": zipped({"card.txt": CARD})}))
    made[257:265] = bytes(8)
    made[148:156] = b"%06o\0 " % (sum(made[:148]) + 8 * 32 + sum(made[156:512]))
    return bytes(made)


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (old_tar(), "card.zip!card.txt"),
        (lzma.compress(CARD, format=lzma.FORMAT_ALONE), "content"),
        (zlib.compress(CARD), "content"),
        (b"\x50\x2a\x4d\x18\4\0\0\0abcd" + zstandard.compress(zipped({"a": CARD})), "content!a"),
    ],
    ids=["old tar", "lzma", "zlib", "skippable"],
)
def test_what_has_no_signature_is_known_by_what_it_says_of_itself(data: bytes, where: str) -> None:
    assert f"request.body!{where}+18" in places(data)
    assert unread(data) == []


@pytest.mark.parametrize(
    "data", [b"x^2 + y^2 = z^2", b"]\0\0\1\0" + bytes(99), b"x\x9cno", bytes(2000), b"hello\n" * 99]
)
def test_what_only_begins_like_something_packed_is_as_it_is(data: bytes) -> None:
    assert inspected(data) == Inspected()


def test_a_tar_archive_whose_first_header_is_damaged_says_so() -> None:
    assert unread(b"b" + tarred({"a": CARD})[1:]) == ["damaged: a header is none (request.body)"]


def test_base64_of_grpc_is_told() -> None:
    assert unread(b"AAAA", content_type="application/grpc-web-text+proto") == [
        "gRPC-Web in base64, which is not read (request.body)"
    ]


def test_what_was_unpacked_cannot_be_masked_where_it_was_found() -> None:
    (found,) = inspected(zipped({"card.txt": CARD})).findings
    assert (found.offset, found.size_bytes) == (None, 0)


def test_other_inspectors_see_each_file_with_its_name() -> None:
    archive = zipped({"readme.txt": b"hi", "invoice.pdf.exe": b"MZ"})
    assert places(archive, "archives", "file_type") == ["request.body!invoice.pdf.exe"]


def test_office_documents_are_left_to_documents_where_that_is_named() -> None:
    document = zipped({"word/document.xml": b"<w>" + CARD + b"</w>"})
    assert places(document) == ["request.body!word/document.xml+21"]
    assert places(document, "archives", "documents", "payment_card") == ["request.body!word/document.xml+18"]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"Rar!\x1a\x07\x01\0" + bytes(99), "a RAR archive, which is not unpacked"),
        (b"MSCF\0\0\0\0" + bytes(99), "a cabinet, which is not unpacked"),
        (b"\x04\x22\x4d\x18" + bytes(99), "LZ4, which is not unpacked"),
    ],
    ids=["rar", "cab", "lz4"],
)
def test_what_cannot_be_unpacked_is_not_inspected_and_told(data: bytes, why: str) -> None:
    assert unread(data) == [f"{why} (request.body)"]


def test_an_archive_that_is_cut_off_in_a_file_says_where() -> None:
    assert unread(zipped({"a": CARD})[:60]) == ["the archive is cut off (request.body!a)"]


@pytest.mark.parametrize("step", [1, SLICE_BYTES])
def test_what_an_inspector_finds_in_a_name_is_told_and_stands_nowhere(step: int) -> None:
    name = "visa card 4539 1488 0343 6467.txt"
    archive = zipped({"harmless.txt": b"x", name: CARD, "last.zip": zipped({name + "/" + name: CARD})[:-30]})
    said = inspected(archive, step=step)
    assert {one.location.partition("+")[0] for one in said.findings} == {
        "request.body!2", "request.body!2 (its name)", "request.body!last.zip!1", "request.body!last.zip!1 (its name)"
    }  # fmt: skip
    assert [one.location for one in said.faults] == ["request.body!last.zip"]
    assert "4539" not in repr(said)


# -- bombs -------------------------------------------------------------------------------------------------------------
@cache
def zeros() -> bytes:
    """1 GiB of zeros, deflated to 1 MB: a MiB that ends on a byte, a thousand times."""
    packer = zlib.compressobj(9, wbits=-15)
    mib = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return mib * 1024 + packer.flush()


def gzip_bomb() -> bytes:
    return b"\x1f\x8b\x08" + bytes(7) + zeros() + pack("<LL", 0, GIB)


def zip_bomb() -> bytes:
    """As one entry, with its length behind it."""
    local = pack("<4sHHHHHLLLHH", b"PK\3\4", 20, 8, 8, 0, 0, 0, 0, 0, 1, 0) + b"a"
    return local + zeros() + pack("<4sLLL", b"PK\7\x08", 0, len(zeros()), GIB)


@cache
def nested_bomb() -> bytes:
    """A thousand of those, in an archive, in an archive: 1 TiB in some kilobytes."""
    inner = zipped({str(at): zip_bomb() for at in range(16)})
    return zipped({str(at): inner for at in range(64)})


def overlapped_bomb(count: int = 2000) -> bytes:
    """Many directory entries, each for the same content: 2,000 times a MiB in some 200 KB."""
    packed = zlib.compress(bytes(1 << 20), 9, wbits=-15)
    crc, size = zlib.crc32(bytes(1 << 20)), 1 << 20
    local = pack("<4sHHHHHLLLHH", b"PK\3\4", 20, 0, 8, 0, 0, crc, len(packed), size, 1, 0) + b"a" + packed
    names = [b"%05d" % at for at in range(count)]
    directory = b"".join(
        pack("<4sHHHHHHLLLHHHHHLL", b"PK\1\2", 20, 20, 0, 8, 0, 0, crc, len(packed), size, 5, 0, 0, 0, 0, 0, 0) + name
        for name in names
    )
    end = pack("<4sHHHHLLH", b"PK\5\6", 0, 0, count, count, len(directory), len(local), 0)
    return local + directory + end


def bombs() -> Iterator[tuple[str, Callable[[], bytes]]]:
    yield "gzip", gzip_bomb
    yield "zip", zip_bomb
    yield "zstd", lambda: zstandard.compress(bytes(1 << 20)) * 1024
    yield "nested zip", nested_bomb
    yield "overlapped zip", overlapped_bomb


@pytest.mark.parametrize(("name", "make"), [*bombs()])
def test_bombs_are_stopped_within_two_seconds_and_64_mb(name: str, make: Callable[[], bytes]) -> None:
    bomb = make()
    began_s = time.process_time()
    faults = unread(bomb, "archives", "documents", "file_type", "payment_card", "iban")
    took_s = time.process_time() - began_s
    assert faults
    assert took_s < 2
    tracemalloc.start()
    inspected(bomb, "archives", "documents")
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 64 << 20


def test_an_overlapped_archive_says_that_its_directory_is_another_one() -> None:
    assert unread(overlapped_bomb()) == ["the archive's directory names entries other than those it has (request.body)"]


def test_archives_of_much_that_is_alike_are_no_bombs() -> None:
    logs = b"".join(b"2026-01-02 10:%02d:00 GET /index.html 200 %d\n" % (at % 60, at * 7919) for at in range(40_000))
    archive = zipped({"access.log": logs + CARD})
    assert unread(archive) == []
    assert len(places(archive)) == 1


def test_too_many_entries_and_too_much_depth_are_told() -> None:
    many = zipped({str(at): b"" for at in range(10_001)}, zipfile.ZIP_STORED)
    assert unread(many) == ["has more than 10000 entries (request.body)"]
    deep = CARD
    for _ in range(9):
        deep = gzip.compress(deep)
    assert unread(deep) == [f"is packed more than 8 times (request.body{'!content' * 8})"]


@settings(max_examples=25)
@given(st.integers(1, 3000))
def test_the_same_is_found_however_an_archive_is_cut(step: int) -> None:
    archive = zipped({"in.zip": zipped({"card.gz": gzip.compress(CARD)}), "x": CARD})
    assert inspected(archive, step=step) == inspected(archive)
