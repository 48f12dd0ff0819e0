"""A private bpffs comes and goes."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from mitmsec_redirect import bpf, bpffs
from mitmsec_redirect.bpf import Map, MapKind

pytestmark = pytest.mark.root


def test_it_is_mounted_once_and_removed_with_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "pins"
    bpffs.mount(folder)
    bpffs.mount(folder)
    assert bpffs.is_mounted(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert bpffs.unmount(folder)
    assert not folder.exists()
    assert not bpffs.unmount(folder)


def test_a_folder_that_is_none_is_left_alone(tmp_path: Path) -> None:
    assert not bpffs.unmount(tmp_path)
    assert tmp_path.exists()


def test_a_pin_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    folder = tmp_path / "pins"
    bpffs.mount(folder)
    try:
        for number in (1, 2):
            made = Map.create(MapKind.ARRAY, 4, 4, 1, "test_pinned")
            made.update(bytes(4), number.to_bytes(4, "little"))
            bpffs.pin(made.fd, folder / "map")
            made.close()
            there = Map(bpf.pinned(str(folder / "map")), 4, 4)
            assert there.lookup(bytes(4)) == number.to_bytes(4, "little")
            there.close()
    finally:
        (folder / "map").unlink(missing_ok=True)
        bpffs.unmount(folder)


def test_what_cannot_take_its_place_is_not_pinned_at_all(tmp_path: Path) -> None:
    bpffs.mount(tmp_path / "pins")
    folder = tmp_path / "pins" / "session"
    (folder / "map").mkdir(parents=True)
    made = Map.create(MapKind.ARRAY, 4, 4, 1, "test_pinned")
    try:
        with pytest.raises(IsADirectoryError):
            bpffs.pin(made.fd, folder / "map")
        assert [one.name for one in folder.iterdir()] == ["map"]
    finally:
        made.close()
        (folder / f"map{bpffs.NEW}").unlink(missing_ok=True)
        (folder / "map").rmdir()
        bpffs.unmount(tmp_path / "pins")


@pytest.mark.parametrize("fails", [True, False])
def test_what_was_pinned_before_stays_until_the_next_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, fails: bool
) -> None:
    """Whoever is killed in between leaves one of the two pinned, and no more than `reap` removes."""
    bpffs.mount(tmp_path / "pins")
    folder = tmp_path / "pins" / "session"
    folder.mkdir()
    pins, there = bpf.pin, []

    def pinned(fd: int, path: str) -> None:
        there.append((folder / "map").exists())
        if fails:
            raise OSError("no memory")
        pins(fd, path)

    made = Map.create(MapKind.ARRAY, 4, 4, 1, "test_pinned")
    try:
        bpffs.pin(made.fd, folder / "map")
        bpf.pin(made.fd, str(folder / f"map{bpffs.NEW}"))  # somebody was killed
        monkeypatch.setattr(bpf, "pin", pinned)
        with pytest.raises(OSError, match="memory") if fails else contextlib.nullcontext():
            bpffs.pin(made.fd, folder / "map")
        assert there == [True]
        assert [one.name for one in folder.iterdir()] == ["map"]
    finally:
        made.close()
        for one in folder.iterdir():
            one.unlink()
        bpffs.unmount(tmp_path / "pins")
