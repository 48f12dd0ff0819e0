"""A ZIP file from anybody: what is no bundle is told, and nothing of it is written or believed."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from mitmsec.audit.bundle_file import NoBundle, read


def zipped(path: Path, files: list[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ([("../../etc/passwd", b"x")], "nothing that a bundle holds"),
        ([("/etc/passwd", b"x")], "nothing that a bundle holds"),
        ([("folder/", b"")], "nothing that a bundle holds"),
        ([("a" * 81, b"")], "nothing that a bundle holds"),
        ([(f"f{number}", b"") for number in range(41)], "it has 41 files"),
    ],
)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, files: list[tuple[str, bytes]], why: str) -> None:
    with pytest.raises(NoBundle, match=why):
        read(zipped(tmp_path / "a.zip", files))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_file_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoBundle, match=r"events\.jsonl twice"):
        read(zipped(tmp_path / "a.zip", [("events.jsonl", b"1"), ("events.jsonl", b"2")]))


def test_a_bomb_goes_off_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mitmsec.audit.bundle_file.WHOLE_LIMIT_BYTES", 1 << 20)
    with pytest.raises(NoBundle, match="more than 1 MiB"):
        read(zipped(tmp_path / "a.zip", [("events.jsonl", bytes(4 << 20))]))


def test_what_is_damaged_or_packed_strangely_is_told(tmp_path: Path) -> None:
    whole = zipped(tmp_path / "a.zip", [("events.jsonl", b"hello" * 100), ("README.txt", b"not read")]).read_bytes()
    assert read(tmp_path / "a.zip") == {"events.jsonl": b"hello" * 100}
    for broken in (b"", b"PK", whole[:-10], whole[:40] + bytes(20) + whole[60:]):
        (tmp_path / "b.zip").write_bytes(broken)
        with pytest.raises(NoBundle):
            read(tmp_path / "b.zip")
    with pytest.raises(NoBundle, match="nothing that a bundle holds"):
        read(zipped(tmp_path / "c.zip", [("events.jsonl", b"x")], zipfile.ZIP_BZIP2))
    buffer = io.BytesIO(whole)
    encrypted = bytearray(buffer.getvalue())
    at = encrypted.index(b"PK\x01\x02")
    encrypted[at + 8] |= 1
    (tmp_path / "d.zip").write_bytes(encrypted)
    with pytest.raises(NoBundle):
        read(tmp_path / "d.zip")
