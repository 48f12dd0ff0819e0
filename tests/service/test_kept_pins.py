"""What is pinned beside a diverter is there as long as it is to be, and gone afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from mitmsec.service.kept_pins import KeptPins


def test_the_folder_is_made_filled_once_and_removed(tmp_path: Path) -> None:
    folder, filled = tmp_path / "pins", []

    def keep(where: Path) -> None:
        filled.append(where)
        (where / "link_fork").touch()

    pins = KeptPins(keep)
    pins.are_in(None)
    pins.are_in(folder)
    pins.are_in(folder)
    assert (filled, [each.name for each in folder.iterdir()]) == ([folder], ["link_fork"])
    pins.are_in(None)
    assert not folder.exists()
    pins.are_in(None)
    pins.are_in(folder)
    assert filled == [folder, folder]


def test_what_could_not_be_filled_is_removed_all_the_same(tmp_path: Path) -> None:
    def fails(where: Path) -> None:
        raise OSError("no memory")

    pins = KeptPins(fails)
    with pytest.raises(OSError, match="no memory"):
        pins.are_in(tmp_path / "pins")
    pins.are_in(None)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_already_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "pins" / "anothers").mkdir(parents=True)
    pins = KeptPins(lambda where: None)
    with pytest.raises(FileExistsError):
        pins.are_in(tmp_path / "pins")
    pins.are_in(None)
    assert (tmp_path / "pins" / "anothers").is_dir()
