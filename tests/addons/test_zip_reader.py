"""ZIP archives are read from their beginning, and what their directory says beyond that is told."""

from __future__ import annotations

import io
import struct
import time
import zipfile

import pytest
from container_stage import CARD, contents, events, unread, zipped
from hypothesis import given
from hypothesis import strategies as st

from mitmsec_addons.containers import Entry, Mark, Unreadable
from mitmsec_addons.zip_reader import ZipReader, begins_office_file

FILES = {"a.txt": CARD * 50, "folder/": b"", "folder/empty": b"", "über.txt": b"PK\x03\x04 in the content"}
IN_IT = {name: content for name, content in FILES.items() if not name.endswith("/")}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
@pytest.mark.parametrize("step", [1, 33, 1 << 16])
def test_all_files_come_out_however_it_is_cut(compression: int, step: int) -> None:
    archive = zipped(FILES, compression)
    assert contents(ZipReader(), archive, step) == IN_IT
    assert unread(ZipReader(), archive, step) == []


class Pipe(io.BytesIO):
    """Takes bytes and goes nowhere else: writers put lengths behind the content then."""

    def seekable(self) -> bool:
        return False

    def tell(self) -> int:
        raise io.UnsupportedOperation

    def seek(self, *_: int) -> int:
        raise io.UnsupportedOperation


@pytest.mark.parametrize("step", [1, 50, 1 << 16])
def test_archives_that_were_written_to_a_pipe_are_read_too(step: int) -> None:
    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in IN_IT.items():
            with archive.open(name, "w", force_zip64=True) as file:
                file.write(content)
    assert contents(ZipReader(), pipe.getvalue(), step) == IN_IT
    assert unread(ZipReader(), pipe.getvalue(), step) == []


def test_an_archive_that_says_all_sizes_in_64_bits_is_read() -> None:
    archive = zipped({"a": CARD}, zipfile.ZIP_STORED)
    at = archive.index(b"PK\x01\x02")
    size, long = len(CARD), b"\xff" * 4
    other_field = struct.pack("<HHL", 0xCAFE, 4, 7)
    local_extra = other_field + struct.pack("<HHQQ", 1, 16, size, size)
    local = archive[:18] + long * 2 + struct.pack("<HH", 1, len(local_extra)) + b"a" + local_extra
    extra = struct.pack("<HHQQQ", 1, 24, size, size, 0)
    central = archive[at : at + 20] + long * 2 + struct.pack("<HH", 1, len(extra)) + bytes(10) + long + b"a" + extra
    end = struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, 1, 1, len(central), len(local) + size, 0)
    assert contents(ZipReader(), local + CARD + central + end, 3) == {"a": CARD}
    assert unread(ZipReader(), local + CARD + central + end) == []


def test_folders_and_what_cannot_be_unpacked_are_passed_over_whatever_they_hold() -> None:
    archive = bytearray(zipped({"a/": b"", "b": CARD * 9, "c": b"plain"}, zipfile.ZIP_STORED))
    at = archive.index(b"PK\x03\x04", 4)
    archive[at + 6] = 1
    for step in (1, 50, 9999):
        assert contents(ZipReader(), bytes(archive), step)["c"] == b"plain"


def test_a_compressed_file_that_ends_before_its_length_is_damaged() -> None:
    archive = bytearray(zipped({"a": CARD * 99}))
    archive[18:22] = struct.pack("<L", 20)
    assert unread(ZipReader(), bytes(archive))[0] == "damaged"


def test_a_stored_file_without_a_length_is_told() -> None:
    archive = bytearray(zipped({"a": CARD}, zipfile.ZIP_STORED))
    archive[6], archive[18:22] = 8, bytes(4)
    assert "stored without a length" in unread(ZipReader(), bytes(archive))


def test_what_stands_before_an_archive_shifts_it() -> None:
    made = io.BytesIO()
    made.write(b"#!/bin/sh self-extracting " * 9)
    with zipfile.ZipFile(made, "a") as archive:
        archive.writestr("a", CARD)
    assert contents(ZipReader(), made.getvalue()) == {"a": CARD}
    assert unread(ZipReader(), b"more before it" + zipped({"a": CARD})) == []


def test_encrypted_files_are_told_and_the_others_read() -> None:
    archive = bytearray(zipped({"a": CARD, "b": b"plain"}))
    archive[6] |= 1
    assert unread(ZipReader(), bytes(archive)) == ["encrypted"]
    assert contents(ZipReader(), bytes(archive)) == {"a": b"", "b": b"plain"}


def test_damage_is_told_and_what_follows_is_read() -> None:
    archive = bytearray(zipped({"a": CARD * 9, "b": b"plain"}))
    archive[31:40] = b"\xff" * 9
    assert events(ZipReader(), bytes(archive), 1)[:2] == [Entry("a"), Unreadable("damaged")]
    assert contents(ZipReader(), bytes(archive))["b"] == b"plain"


def test_a_method_that_is_not_known_is_told() -> None:
    archive = bytearray(zipped({"a": CARD}))
    archive[8] = 9
    assert unread(ZipReader(), bytes(archive))[0] == "packed by method 9, which is not known here"


def test_an_archive_that_is_cut_off_says_so_and_what_was_there_is_read() -> None:
    archive = zipped({"a": CARD}, zipfile.ZIP_STORED)
    assert events(ZipReader(), archive[:50]) == [Entry("a"), CARD[:19], Unreadable("the archive is cut off")]


def test_entries_that_only_the_directory_knows_are_told() -> None:
    """Programs unpack by the directory: where it leads elsewhere than what was read, something is hidden."""
    archive = zipped({"a": CARD}, zipfile.ZIP_STORED)
    at = archive.index(b"PK\x01\x02")
    shifted = archive[:at] + archive[at:].replace(struct.pack("<L", 0) + b"a", struct.pack("<L", 7) + b"a")
    assert shifted != archive
    why = "the archive's directory names entries other than those it has"
    assert unread(ZipReader(), shifted) == [why]
    longer = archive[:at] + archive[at:].replace(struct.pack("<L", len(CARD)), struct.pack("<L", len(CARD) + 9), 1)
    assert unread(ZipReader(), longer) == [why], "a program would unpack nine bytes more"
    packed = bytearray(archive)
    packed[at + 10] = 8
    assert unread(ZipReader(), bytes(packed)) == [why], "it would unpack what was not unpacked here"
    renamed = archive[:at] + archive[at:].replace(b"a", b"b")
    assert unread(ZipReader(), renamed) == [why]


OTHER = "the archive's directory names entries other than those it has"


def test_a_directory_that_lies_in_an_entry_is_told_wherever_the_end_leads() -> None:
    """Programs that go by the end unpack what is hidden; what was read is an entry as it is."""
    inner = zipped({"hidden.txt": CARD})
    end_at, begin = inner.index(b"PK\5\6"), 36
    body = b"#" + inner[:end_at]
    local = struct.pack("<4sHHHHHLLLHH", b"PK\3\4", 20, 0, 0, 0, 0, 0, len(body), len(body), 5, 0) + b"c.txt"
    directory_at = inner.index(b"PK\1\2")
    end = inner[end_at : end_at + 16] + struct.pack("<LH", begin + directory_at, 0)
    hidden = local + body + end
    hidden = hidden.replace(struct.pack("<L", 0) + b"hidden.txt", struct.pack("<L", begin) + b"hidden.txt")
    assert zipfile.ZipFile(io.BytesIO(hidden)).read("hidden.txt") == CARD
    assert unread(ZipReader(), hidden) == [OTHER]
    shown = zipped({"c.txt": body}, zipfile.ZIP_STORED)
    assert unread(ZipReader(), shown) == []
    assert unread(ZipReader(), b"before it" + shown, 5) == [OTHER], "some would take that at the place that is told"


@pytest.mark.parametrize(("at", "size"), [(10, 2), (12, 4), (16, 4)], ids=["count", "size", "offset"])
def test_an_end_that_says_anything_else_than_the_directory_is_told(at: int, size: int) -> None:
    archive = bytearray(zipped({"a": CARD, "b": CARD}))
    begin = archive.index(b"PK\5\6") + at
    value = int.from_bytes(archive[begin : begin + size], "little")
    archive[begin : begin + size] = (value + 1).to_bytes(size, "little")
    assert unread(ZipReader(), bytes(archive)) == [OTHER]
    assert contents(ZipReader(), bytes(archive)) == {"a": CARD, "b": CARD}


def test_entries_that_the_directory_has_not_or_has_twice_are_told() -> None:
    archive = zipped({"a": CARD, "b": CARD})
    first = archive.index(b"PK\1\2")
    second, end_at = archive.index(b"PK\1\2", first + 4), archive.index(b"PK\5\6")
    end = struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, 1, 1, second - first, first, 0)
    assert unread(ZipReader(), archive[:second] + end) == [OTHER]
    end = struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, 3, 3, end_at - first + second - first, first, 0)
    assert unread(ZipReader(), archive[:end_at] + archive[first:second] + end) == [OTHER]


@pytest.mark.parametrize("step", [1, 1 << 16])
def test_ends_in_64_bits_are_read_and_must_say_the_same(step: int) -> None:
    archive = zipped({"a": CARD}, zipfile.ZIP_STORED)
    at, end_at = archive.index(b"PK\1\2"), archive.index(b"PK\5\6")

    def ended(count: int, at: int = at, short: int = 0xFFFF) -> bytes:
        record = struct.pack("<4sQHHLLQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, end_at - at, at)
        locator = struct.pack("<4sLQL", b"PK\6\7", 0, end_at, 1)
        end = struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, short, short, 0xFFFFFFFF, 0xFFFFFFFF, 0)
        return archive[:end_at] + record + locator + end

    assert unread(ZipReader(), ended(1), step) == []
    assert contents(ZipReader(), ended(1), step) == {"a": CARD}
    assert unread(ZipReader(), ended(2), step) == [OTHER]
    assert unread(ZipReader(), ended(1, short=3), step) == [OTHER]


def test_what_stands_behind_an_end_is_told() -> None:
    archive = bytearray(zipped({"a": CARD}))
    why = ["the archive's end is not where it says"]
    assert unread(ZipReader(), bytes(archive) + b"x") == why
    for end in (b"\n", b"\r\n"):
        assert unread(ZipReader(), bytes(archive) + end, 1) == []
        assert unread(ZipReader(), bytes(archive) + b"x" + end) == why
    archive[-2:] = struct.pack("<H", 3)
    assert unread(ZipReader(), bytes(archive)) == why
    assert unread(ZipReader(), bytes(archive) + b"abc", 1) == []


def test_a_folder_that_has_content_is_read() -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive, archive.open(zipfile.ZipInfo("a.txt/"), "w") as file:
        file.write(CARD)
    assert contents(ZipReader(), made.getvalue(), 7) == {"a.txt/": CARD}
    sealed = bytearray(made.getvalue())
    sealed[6] |= 1
    assert unread(ZipReader(), bytes(sealed)) == ["encrypted"]


def test_what_stands_behind_packed_content_is_told() -> None:
    packed = zipped({"a": CARD})
    at, size = packed.index(b"PK\1\2"), int.from_bytes(packed[18:22], "little")
    longer = packed[:18] + struct.pack("<L", size + 3) + packed[22:at] + b"abc"
    assert unread(ZipReader(), longer)[0] == "something stands behind what it is packed to"
    assert unread(ZipReader(), longer, 1)[0] == "something stands behind what it is packed to"


def test_entries_that_nobody_wants_are_passed_over_whatever_they_are() -> None:
    def wants(name: str) -> bool:
        return name == "b"

    for archive in (zipped(dict.fromkeys("abc", CARD)), zipped(dict.fromkeys("abc", CARD), zipfile.ZIP_STORED)):
        assert contents(ZipReader(wants), archive, 9) == {"b": CARD}
    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as made:
        for name in "abc":
            made.writestr(name, CARD)
    assert contents(ZipReader(wants), pipe.getvalue(), 9) == {"b": CARD}
    sealed = bytearray(pipe.getvalue())
    sealed[6] |= 1
    assert "encrypted" not in unread(ZipReader(wants), bytes(sealed))


def test_more_entries_than_are_remembered_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mitmsec_addons.zip_reader.ENTRIES_LIMIT", 2)
    assert unread(ZipReader(), zipped(dict.fromkeys("ab", CARD))) == []
    assert unread(ZipReader(), zipped(dict.fromkeys("abcd", CARD))) == [OTHER]


def test_a_header_full_of_fields_takes_no_time() -> None:
    local = bytearray(zipped({"a": b""})[:31])
    local[28:30] = struct.pack("<H", 65532)
    began_s = time.process_time()
    events(ZipReader(), (bytes(local) + b"\2\0\0\0" * 16383) * 20, 1 << 16)
    assert time.process_time() - began_s < 0.4


def test_a_file_that_is_empty_ends_at_once() -> None:
    assert events(ZipReader(), zipped({"a": b""})) == [Entry("a"), Mark.ENDED]


@pytest.mark.parametrize(
    ("files", "is_one"),
    [
        ({"[Content_Types].xml": b""}, True),
        ({"word/document.xml": b""}, True),
        ({"mimetype": b"application/vnd.oasis.opendocument.text"}, True),
        ({"mimetype": b"text/plain"}, False),
        ({"a": b""}, False),
    ],
)
def test_office_files_are_known_by_their_first_entry(files: dict[str, bytes], is_one: bool) -> None:
    assert begins_office_file(zipped(files, zipfile.ZIP_STORED)) is is_one


PIECES = [b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", bytes(26), b"\x08\0\x08\0", b"\xff" * 9, zipped({"a": b"b"})]


@given(st.lists(st.sampled_from(PIECES), max_size=9), st.integers(1, 99))
def test_hostile_bytes_are_read_the_same_however_they_are_cut(pieces: list[bytes], step: int) -> None:
    data = b"".join(pieces)
    assert events(ZipReader(), data, step) == events(ZipReader(), data, len(data) + 1)
