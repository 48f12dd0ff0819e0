"""Names in a ZIP archive are read as it goes by, whatever its slices are."""

from __future__ import annotations

import io
import zipfile

from hypothesis import given
from hypothesis import strategies as st

from mitmsec_addons.zip_names import NAME_LIMIT_BYTES, ZipName, ZipNames


def zipped(*names: str, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as archive:
        for name in names:
            archive.writestr(name, b"PK and PK\x03 and other things " * 9)
    return made.getvalue()


def read(data: bytes, step: int) -> list[ZipName]:
    names = ZipNames()
    return [name for at in range(0, len(data), step) for name in names.feed(data[at : at + step])]


ARCHIVE = zipped("a.txt", "über/ß.txt", "n" * (NAME_LIMIT_BYTES + 9))


@given(st.integers(1, 400))
def test_entries_and_directory_are_told_however_it_is_cut(step: int) -> None:
    told = [name.name for name in read(ARCHIVE, step)]
    assert told == ["a.txt", "über/ß.txt", "n" * NAME_LIMIT_BYTES] * 2


def test_encryption_is_told_of_the_entry_that_has_it() -> None:
    archive = bytearray(ARCHIVE)
    archive[6] |= 1
    assert [name.encrypted for name in read(bytes(archive), 64)] == [True] + [False] * 5


def test_names_in_an_archive_that_lies_in_it_uncompressed_are_seen_too() -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as outer:
        outer.writestr("inner.zip", zipped("deep.txt"))
    assert {name.name for name in read(made.getvalue(), 100)} == {"inner.zip", "deep.txt"}


@given(
    st.lists(st.sampled_from([b"PK", b"PK\x03\x04", b"PK\x01\x02", b"\xff\xff", bytes(30), b"K\x03\x04"]), max_size=20),
    st.integers(1, 50),
)
def test_hostile_bytes_give_the_same_names_however_they_are_cut(pieces: list[bytes], step: int) -> None:
    data = b"".join(pieces)
    assert read(data, step) == read(data, len(data) + 1)
