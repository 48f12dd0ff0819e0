"""What /proc tells of one process; above all whether an executable's path is true on this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from caller_stage import mounted
from msgspec.structs import replace

from mitmsec_redirect import proc_files
from mitmsec_redirect.proc_files import (
    ExePath,
    cgroup_of,
    comm_of,
    exe_of,
    exe_opened,
    executable_of,
    file_of,
    files_of,
    is_executable,
    living,
    opened,
    opened_as,
    path_of,
    status_of,
)

CAT = os.path.realpath(shutil.which("cat") or "")


@contextlib.contextmanager
def folder_of(*command: str | Path) -> Iterator[int]:
    """The folder of a process that waits for its input, once it runs the last word of `command`."""
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    folder = opened(child.pid)
    assert folder is not None
    ends = time.monotonic() + 20
    while comm_of(folder) != Path(command[-1]).name[:15]:
        assert time.monotonic() < ends
        time.sleep(0.002)
    try:
        yield folder
    finally:
        os.close(folder)
        child.communicate()


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return Path(shutil.copy(CAT, tmp_path / "program"))


# --- paths ------------------------------------------------------------------------------------------------------------
def test_an_ordinary_path_is_true(program: Path) -> None:
    with folder_of(program) as folder:
        assert exe_of(folder) == ExePath(path=str(program))


def test_a_file_deleted_since_had_this_path(program: Path) -> None:
    with folder_of(program) as folder:
        program.unlink()
        assert exe_of(folder) == ExePath(path=str(program))
        shutil.copy(CAT, program)  # another file of that name does not change what runs
        assert exe_of(folder) == ExePath(path=str(program))


def test_a_name_that_ends_like_a_deleted_ones_is_a_name(program: Path) -> None:
    named = program.rename(program.with_name("program (deleted)"))
    with folder_of(named) as folder:
        assert exe_of(folder) == ExePath(path=str(named))


@pytest.mark.root
def test_nor_does_one_that_lies_where_a_link_of_ours_points_to_it(program: Path, tmp_path: Path) -> None:
    """Here the link leads to this very file; but nobody who runs it by the link is called so."""
    folder = tmp_path / "vendor"
    folder.mkdir()
    (link := folder / "current").symlink_to(program.parent)
    with folder_of(link / "program") as plain:
        assert exe_of(plain) == ExePath(path=str(program))
    script = f"mount -t tmpfs none {folder} && mkdir {link} && mount --bind {tmp_path} {link} && exec {link}/program"
    with folder_of("/usr/bin/unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "program") as faked:
        assert os.readlink("exe", dir_fd=faked) == f"{link}/program"
        assert exe_of(faked) == ExePath(claimed=f"{link}/program")
        executable = executable_of(faked)
    assert executable is not None
    assert opened_as(f"{link}/program", executable) is None
    assert opened_as(f"{tmp_path}/vendor/../program", executable) is None
    file = opened_as(str(program), executable)
    assert file is not None
    os.close(file)


@pytest.mark.root
def test_a_bind_mount_in_a_user_namespace_does_not_make_it_another_program(program: Path, tmp_path: Path) -> None:
    """Any user can do this, and /proc/PID/exe then says /usr/bin/env of a program that is not."""
    faked = os.path.realpath(shutil.which("env") or "")
    script = f"mount --bind {program} {faked} && exec {faked}"
    program.chmod(0o755)
    with folder_of("/usr/bin/unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, faked) as folder:
        assert os.readlink("exe", dir_fd=folder) == faked
        assert exe_of(folder) == ExePath(claimed=faked)


@pytest.mark.root
def test_a_true_path_is_true_in_another_mount_namespace_too() -> None:
    with folder_of("/usr/bin/unshare", "--mount", CAT) as folder:
        assert exe_of(folder) == ExePath(path=CAT)


@pytest.mark.root
def test_a_deleted_file_on_a_foreign_mount_is_a_claim(tmp_path: Path) -> None:
    """It lies on a file system that only the process has mounted, at a place that is somebody else's here."""
    script = f"mount -t tmpfs x {tmp_path} && cp {CAT} {tmp_path}/gone && exec {tmp_path}/gone"
    with folder_of("/usr/bin/unshare", "--mount", "sh", "-c", script, "gone") as folder:
        os.unlink(f"root{tmp_path}/gone", dir_fd=folder)
        assert os.readlink("exe", dir_fd=folder) == f"{tmp_path}/gone (deleted)"
        assert exe_of(folder) == ExePath(claimed=f"{tmp_path}/gone")


def test_who_has_ended_or_never_was_has_no_path() -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    folder = opened(child.pid)
    assert folder is not None
    status = status_of(folder)
    assert (exe_of(folder), status and status.is_ended) == (ExePath(), True)
    child.wait()
    assert (status_of(folder), comm_of(folder), cgroup_of(folder), exe_of(folder)) == (None, None, None, ExePath())
    assert files_of(folder) == frozenset()
    os.close(folder)
    assert opened(child.pid) is None


@pytest.mark.root
def test_a_file_is_known_by_the_device_that_stat_tells_and_by_its_mounts(program: Path, tmp_path: Path) -> None:
    """An overlay may tell the first otherwise than the kernel does; on others they are the same."""
    with folder_of(program) as folder:
        told = file_of(program.stat())
        assert files_of(folder) == {(told.device, told.inode)}
    script = f"mount -t tmpfs x {tmp_path} && cp {CAT} {tmp_path}/inside && exec {tmp_path}/inside"
    with folder_of("/usr/bin/unshare", "--mount", "sh", "-c", script, "inside") as folder:
        status = os.stat("exe", dir_fd=folder)
        assert files_of(folder) == {(os.major(status.st_dev) << 20 | os.minor(status.st_dev), status.st_ino)}


def test_the_device_of_a_mount_is_the_tables(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_bytes(b"21 1 0:5 / /a rw - tmpfs x rw\n212 1 259:3 / /\xff rw - ext4 y rw\n")
    assert proc_files._device_of_mount("212", table) == 259 << 20 | 3
    assert proc_files._device_of_mount("2", table) is None
    assert proc_files._device_of_mount("212", tmp_path / "none") is None


def test_a_path_that_is_too_long_to_be_told_is_none(program: Path) -> None:
    deep = program.parent
    with contextlib.ExitStack() as held:
        at = os.open(deep, os.O_RDONLY)
        held.callback(os.close, at)
        for _ in range(20):
            os.mkdir("d" * 250, dir_fd=at)
            at = os.open("d" * 250, os.O_RDONLY, dir_fd=at)
            held.callback(os.close, at)
        os.rename(program, "program", dst_dir_fd=at)
        file = os.open("program", os.O_PATH, dir_fd=at)
        held.callback(os.close, file)
        assert path_of(file) == ExePath()


@pytest.mark.root
def test_a_file_whose_device_stat_tells_otherwise_is_known_by_its_mount(tmp_path: Path) -> None:
    """As btrfs does, and overlay over several file systems."""
    lower, merged = (tmp_path / name for name in ("lower", "merged"))
    for folder in (lower, merged):
        folder.mkdir()
    with mounted("tmpfs", lower), mounted("overlay", merged, f"lowerdir={lower}:{tmp_path}"):
        shutil.copy(CAT, lower / "program")
        with folder_of(merged / "program") as folder:
            seen = executable_of(folder)
            assert seen is not None
            device = os.stat(merged).st_dev  # of a folder it is the file system's own
            told = replace(seen, device=os.major(device) << 20 | os.minor(device))
            assert told != seen
            file = exe_opened(folder)
            assert file is not None
            assert is_executable(file, seen)
            assert is_executable(file, told)
            assert is_executable(file, told, folder)
            assert not is_executable(file, replace(told, device=told.device + 1))
            assert not is_executable(file, replace(told, inode=told.inode + 1))
            os.close(file)
        found = opened_as(str(merged / "program"), told)
        assert found is not None
        os.close(found)


def test_what_does_not_lie_there_is_not_opened(program: Path) -> None:
    there = file_of(program.stat())
    found = opened_as(str(program), there)
    assert found is not None
    os.close(found)
    assert opened_as(str(program), replace(there, ctime_ns=there.ctime_ns + 1)) is None
    assert opened_as(str(program) + "/no", there) is None
    assert opened_as("\0", there) is None


# --- all of them ------------------------------------------------------------------------------------------------------
def test_the_living_are_found_with_what_they_run(program: Path) -> None:
    zombie = subprocess.Popen(["true"])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    with folder_of(program):
        found = {one.pid: one for one in living()}
    (child,) = (one for one in found.values() if one.exe.path == str(program))
    assert (child.parent, child.uid, child.comm) == (os.getpid(), os.getuid(), "program")
    assert child.executable == file_of(program.stat())
    assert zombie.pid not in found
    zombie.wait()


def test_a_table_that_is_half_there_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    for name in ("7", "8", "self"):
        (tmp_path / name).mkdir()
    (tmp_path / "7" / "stat").write_text("7 (a) b) S 1 " + "0 " * 15 + "1 0 500 0\n")
    (tmp_path / "8" / "stat").write_text("8 (x")
    (found,) = living(str(tmp_path))
    assert (found.pid, found.parent, found.start_ticks, found.comm, found.exe) == (7, 1, 500, "", ExePath())


def test_whoever_goes_while_being_read_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text("7 (a) S 1 " + "0 " * 15 + "1 0 500 0\n")

    def gone(folder: int) -> None:
        raise ProcessLookupError

    monkeypatch.setattr(proc_files, "comm_of", gone)
    assert list(living(str(tmp_path))) == []
    assert list(living(str(tmp_path / "7"))) == []
