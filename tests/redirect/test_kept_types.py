"""What was found of the kernel's types, from one process to the next."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mitmsec_redirect import kept_types, kernel_types
from mitmsec_redirect.lead_offsets import LeadOffsets
from mitmsec_redirect.process_offsets import Offsets

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="root's file")


@pytest.fixture(scope="module")
def found() -> tuple[Offsets, LeadOffsets]:
    offsets, leads = kernel_types._read(kernel_types.BTF_FILE)
    assert offsets is not None
    assert leads is not None
    return offsets, leads


@pytest.fixture
def file(tmp_path: Path, found: tuple[Offsets, LeadOffsets]) -> Path:
    """As it is kept."""
    kept_types.keep(*found, tmp_path / "types")
    return tmp_path / "types"


def test_what_was_kept_is_there_for_the_next(file: Path, found: tuple[Offsets, LeadOffsets]) -> None:
    kept = kept_types.kept(file)
    assert kept is not None
    assert (kept.processes, kept.leads) == found
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert file.stat().st_mode & 0o777 == 0o600


def test_what_a_kernel_does_not_say_is_known_too(tmp_path: Path) -> None:
    kept_types.keep(None, None, tmp_path / "types")
    kept = kept_types.kept(tmp_path / "types")
    assert kept is not None
    assert (kept.processes, kept.leads) == (None, None)


@pytest.mark.parametrize("name", ["boot", "version"])
def test_of_another_boot_or_version_nothing_holds(file: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(kept_types, name, lambda: "another")
    assert kept_types.kept(file) is None


def test_what_others_could_have_written_is_not_read(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(file)
    assert kept_types.kept(link) is None
    file.chmod(0o620)
    assert kept_types.kept(file) is None
    file.chmod(0o600)
    os.chown(file, 65534, 0)
    assert kept_types.kept(file) is None
    os.chown(file, 0, 0)
    assert kept_types.kept(file) is not None
    os.mkfifo(tmp_path / "pipe")
    assert kept_types.kept(tmp_path / "pipe") is None


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[", b'{"boot":"","version":"","processes":{},"leads":null}', bytes(1 << 17)]
)
def test_what_is_damaged_is_none(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    assert kept_types.kept(file) is None


def test_where_nothing_can_be_kept_nothing_fails(tmp_path: Path, found: tuple[Offsets, LeadOffsets]) -> None:
    kept_types.keep(*found, tmp_path / "missing" / "types")
    (tmp_path / "types").mkdir()
    kept_types.keep(*found, tmp_path / "types")
    assert [path.name for path in tmp_path.iterdir()] == ["types"]


def test_the_next_process_does_not_read_them_again(file: Path, found: tuple[Offsets, LeadOffsets]) -> None:
    """Not even where it could not."""
    code = (
        "import pathlib, sys\n"
        "from mitmsec_redirect import kept_types, kernel_types\n"
        f"kept_types.kept.__defaults__ = (pathlib.Path({str(file)!r}),)\n"
        "kernel_types._read = None\n"
        "print(kernel_types._kept_or_read())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == repr(found)
