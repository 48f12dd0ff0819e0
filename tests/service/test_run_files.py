"""Files that a run makes for its caller: with the caller's rights, for the caller alone, and never somebody else's."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from mitmsec.service.run import Caller, memory_file, open_result

ROOT = Caller(uid=0, gid=0, name="root", home="/root")


def test_a_result_is_its_callers_alone(tmp_path: Path) -> None:
    os.close(open_result(str(tmp_path / "report"), ROOT))
    assert stat.S_IMODE((tmp_path / "report").stat().st_mode) == 0o600


@pytest.mark.root
@pytest.mark.parametrize(("uid", "mode"), [(0, 0o1777), (0, 0o1770), (1000, 0o755)])
def test_where_others_make_files_neither_their_file_nor_a_link_is_taken(tmp_path: Path, uid: int, mode: int) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "victim").write_text("precious")
    (folder / "link").symlink_to(tmp_path / "victim")
    (folder / "theirs").write_text("")
    os.chown(folder / "theirs", 1000, 1000)
    os.chown(folder, uid, uid)
    folder.chmod(mode)
    for name in ("link", "theirs"):
        with pytest.raises(OSError, match=r"symbolic links|somebody else"):
            open_result(str(folder / name), ROOT)


def test_nobody_waits_for_the_reader_of_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="No such device"):
        open_result(str(tmp_path / "fifo"), ROOT)


def test_a_memory_file_is_what_it_was_made_of() -> None:
    descriptor = memory_file("test", b"policy")
    with pytest.raises(PermissionError):
        os.pwrite(descriptor, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 0)
    assert os.pread(descriptor, 10, 0) == b"policy"
    os.close(descriptor)
