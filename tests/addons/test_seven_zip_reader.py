"""7z archives of the real program, by each of its methods, and what cannot be read of them."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest
from container_stage import CARD, contents, events, unread
from hypothesis import given, settings
from hypothesis import strategies as st

from mitmsec_addons import seven_zip_reader
from mitmsec_addons.containers import Unreadable
from mitmsec_addons.seven_zip_reader import SevenZipReader

PROGRAM = shutil.which("7zr") or shutil.which("7z") or shutil.which("7zz")
pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason="7-ZIP IS NOT INSTALLED: 7z archives are not tested (Debian: apt-get install p7zip)"
)
FILES = {
    "card.txt": CARD * 30,
    "empty": b"",
    "folder/ü.bin": random.Random(1).randbytes(99_000),
    "program": b"\xe8\0\0\0\0" * 9000,
}
FULL = {name: content for name, content in FILES.items() if content}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for name, content in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def packed(folder: Path, *options: str) -> bytes:
    archive = folder.parent / f"{folder.name}.7z"
    archive.unlink(missing_ok=True)
    subprocess.run(
        [str(PROGRAM), "a", "-bd", *options, str(archive), *FILES], cwd=folder, check=True, stdout=subprocess.DEVNULL
    )
    return archive.read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("-m0=lzma",),
        ("-m0=lzma2",),
        ("-mx=0",),
        ("-ms=off",),
        ("-m0=BCJ", "-m1=lzma2"),
        ("-m0=Delta:4", "-m1=LZMA"),
        ("-mhc=off",),
    ],
    ids=str,
)
def test_what_was_packed_comes_out_whatever_the_method(folder: Path, options: tuple[str, ...]) -> None:
    archive = packed(folder, *options)
    assert unread(SevenZipReader(), archive) == []
    assert contents(SevenZipReader(), archive) == FULL


def test_it_does_not_matter_how_it_is_cut(folder: Path) -> None:
    archive = packed(folder)
    assert events(SevenZipReader(), archive, 1000) == events(SevenZipReader(), archive + b"behind it", 1 << 20)


def test_other_methods_and_what_is_not_all_there_are_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    why = "some of it is packed by the method 0303011b, which is not known here"
    assert unread(SevenZipReader(), packed(folder, "-m0=BCJ2", "-m1=lzma", "-m2=lzma", "-m3=lzma")) == [why]
    assert unread(SevenZipReader(), packed(folder)[:-1]) == ["the archive is cut off"]
    monkeypatch.setattr(seven_zip_reader, "LIMIT_BYTES", 1000)
    assert unread(SevenZipReader(), packed(folder)) == ["a 7z archive of more than 1000 bytes"]


@settings(max_examples=60)
@given(st.data())
def test_damage_is_told_or_does_not_matter(folder: Path, data: st.DataObject) -> None:
    archive = bytearray(packed_once(folder))
    for _ in range(data.draw(st.integers(1, 3))):
        archive[data.draw(st.integers(12, len(archive) - 1))] = data.draw(st.integers(0, 255))
    told = events(SevenZipReader(), bytes(archive), len(archive))
    assert all(one.why for one in told if isinstance(one, Unreadable))


_ONCE: dict[Path, bytes] = {}


def packed_once(folder: Path) -> bytes:
    if folder not in _ONCE:
        _ONCE[folder] = packed(folder, "-mhc=off")
    return _ONCE[folder]
