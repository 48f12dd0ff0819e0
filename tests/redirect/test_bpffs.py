"""A private bpffs comes and goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from mitmsec_redirect import bpffs

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
