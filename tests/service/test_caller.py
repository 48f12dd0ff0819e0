"""Who called, and files made for them: with their rights, for them alone, and never somebody else's."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

import pytest

from mitmsec.service.caller import Caller, acting_as, as_ourselves, open_result, who_calls

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


def test_the_command_runs_as_who_was_chosen_else_who_called_sudo_else_who_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nobody = pwd.getpwnam("nobody")
    monkeypatch.setattr(os, "getuid", lambda: 0)
    by_sudo = {"SUDO_UID": str(nobody.pw_uid), "SUDO_GID": str(nobody.pw_gid)}
    assert who_calls({}, user=None).name == "root"
    assert who_calls(by_sudo, user=None) == Caller(
        uid=nobody.pw_uid, gid=nobody.pw_gid, name="nobody", home=nobody.pw_dir
    )
    assert who_calls(by_sudo, user="root").uid == 0
    assert who_calls({}, user=str(nobody.pw_uid)).name == "nobody"
    assert who_calls({"SUDO_UID": "3999999", "SUDO_GID": "5"}, user=None) == Caller(
        uid=3999999, gid=5, name="3999999", home="/"
    )
    monkeypatch.setattr(os, "getuid", lambda: nobody.pw_uid)
    assert who_calls(by_sudo | {"SUDO_UID": "0"}, user=None).name == "nobody"  # only root believes SUDO_UID


def test_an_unknown_user_is_told() -> None:
    with pytest.raises(KeyError):
        who_calls({}, user="no-such-user-here")


@pytest.mark.root
def test_what_is_ours_is_read_as_ourselves_also_while_we_act_as_somebody_else(tmp_path: Path) -> None:
    """A policy is read with its caller's rights, and what reads it may lie under a home that nobody else may enter."""
    nobody = who_calls({}, user="nobody")
    (tmp_path / "ours").write_text("ours")
    tmp_path.chmod(0o700)
    with acting_as(nobody):
        with pytest.raises(PermissionError):
            (tmp_path / "ours").read_text()
        with as_ourselves():
            assert (tmp_path / "ours").read_text() == "ours"
        with pytest.raises(PermissionError):
            (tmp_path / "ours").read_text()
    with as_ourselves():
        assert (tmp_path / "ours").read_text() == "ours"
