"""Who could exchange a file: its owner, and whoever owns or may write to a folder above it."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from mitmsec_certs.truststore.whose import changers

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/file").touch()
    return tmp_path / "a/b/file"


def test_what_is_ours_only_we_and_root_can_change(place: Path) -> None:
    assert changers(str(place)) == {0, os.geteuid()}


@needs_root
@pytest.mark.parametrize("which", ["a", "a/b", "a/b/file"])
def test_each_folder_on_the_way_counts(place: Path, tmp_path: Path, which: str) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    os.chown(tmp_path / which, nobody, -1)
    assert changers(str(place)) == {0, nobody}


@pytest.mark.parametrize("mode", [0o777, 0o757])
def test_a_folder_that_everybody_may_write_to_is_everybodys(place: Path, mode: int) -> None:
    place.parent.chmod(mode)
    assert changers(str(place)) is None
    place.parent.chmod(mode | 0o1000)
    assert changers(str(place)) is not None, "with the sticky bit nobody exchanges what is another's"


def test_a_file_that_everybody_may_write_to_is_everybodys(place: Path) -> None:
    place.chmod(0o1666)
    assert changers(str(place)) is None


@needs_root
def test_a_group_may_be_anybody_but_not_roots(place: Path) -> None:
    place.parent.chmod(0o775)
    assert changers(str(place)) == {0}
    os.chown(place.parent, -1, 12345)
    assert changers(str(place)) is None


@needs_root
def test_links_are_followed(place: Path, tmp_path: Path) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    os.chown(place, nobody, -1)
    (tmp_path / "link").symlink_to(place)
    assert changers(str(tmp_path / "link")) == {0, nobody}


def test_of_what_is_not_there_nothing_is_known(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        changers(str(tmp_path / "nothing"))
