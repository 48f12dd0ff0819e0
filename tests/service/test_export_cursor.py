"""The cursor's file: one export at a time, and never half of one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mitmsec.audit.export.cursor import Cursor, Position
from mitmsec.service.export_cursor import CursorFile, CursorRefused, held

CURSOR = Cursor(to="x", log="l", at=Position(3, "ab"))


def test_what_is_kept_is_there_and_is_ours_alone(tmp_path: Path) -> None:
    path = tmp_path / "cursor"
    with held(path) as file:
        assert file.read() is None
        file.keep(CURSOR)
        file.keep(CURSOR)
        assert file.read() == CURSOR
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(tmp_path)) == ["cursor", "cursor.lock"]


def test_two_exports_do_not_share_one(tmp_path: Path) -> None:
    with held(tmp_path / "cursor"), pytest.raises(CursorRefused, match="another export's"), held(tmp_path / "cursor"):
        pass
    with held(tmp_path / "cursor"):
        pass


def test_what_a_kill_left_behind_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "cursor.new").write_bytes(b'{"half')
    with held(tmp_path / "cursor") as file:
        assert file.read() is None
        file.keep(CURSOR)
        assert file.read() == CURSOR


def test_what_is_no_cursor_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cursor").write_text("mine")
    with pytest.raises(CursorRefused, match="is no cursor"):
        CursorFile(tmp_path / "cursor").read()
    with pytest.raises(CursorRefused, match="cannot be read"):
        CursorFile(tmp_path).read()


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(CursorRefused, match="No such file"), held(tmp_path / "no" / "cursor"):
        pass
