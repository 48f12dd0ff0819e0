"""What /proc tells of one process, read below an open folder /proc/PID: all of one process, or nothing.

An executable's *path* is what the process itself sees, and a mount namespace of its own (any user can make one) shows
it whatever files it likes under whatever names. So a path counts only if it leads us, here, to that very file, or if
the file, deleted since, lies on a mount that is one of ours. Otherwise it is a claim. Nor does it count if it leads
there by a link: mounts of its own show a program's folder as lying where a link of ours merely points to it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from mitmsec.core.model import Value
from mitmsec_redirect.process_records import Executable

DELETED = " (deleted)"
OUR_MOUNTS = Path("/proc/self/mountinfo")
MINOR_BITS = 20  # of a device number within the kernel
CONTENT_BYTES = 4096
CGROUP_BYTES = 1 << 17  # a path of PATH_MAX in each of a dozen hierarchies, and more
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_ENDED = frozenset(b"ZX")


class Status(Value, frozen=True):
    """What /proc/PID/stat says."""

    parent: int
    start_ticks: int  # since boot
    is_ended: bool  # all of it, not only its first thread


class ExePath(Value, frozen=True):
    """Where an executable lies: `path` is true on this machine, `claimed` what the process sees where that is not."""

    path: str | None = None
    claimed: str | None = None


class Found(Value, frozen=True):
    """A process that lives."""

    pid: int
    parent: int
    start_ticks: int
    uid: int
    comm: str
    exe: ExePath
    executable: Executable | None


def opened(pid: int, proc: str = "/proc") -> int | None:
    """A descriptor of the folder; None when there is no such process."""
    try:
        return os.open(f"{proc}/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None


def status_of(folder: int) -> Status | None:
    """proc_pid_stat(5): the second field is in parentheses and may itself hold any character."""
    try:
        fields = content(folder, "stat").rpartition(b")")[2].split()
        return Status(
            parent=int(fields[1]),
            start_ticks=int(fields[19]),
            is_ended=fields[0][0] in _ENDED and int(fields[17]) <= 1,
        )
    except (OSError, IndexError, ValueError):
        return None


def status_of_pid(pid: int, proc: str = "/proc") -> Status | None:
    """The same, of whoever has that pid now."""
    folder = opened(pid, proc)
    if folder is None:
        return None
    try:
        return status_of(folder)
    finally:
        os.close(folder)


def comm_of(folder: int) -> str | None:
    try:
        return content(folder, "comm").removesuffix(b"\n").decode(errors="replace")
    except OSError:
        return None


def cgroup_of(folder: int) -> str | None:
    """The whole text: a line for each hierarchy."""
    try:
        return content(folder, "cgroup", CGROUP_BYTES).decode(errors="surrogateescape")
    except OSError:
        return None


def content(folder: int, name: str, limit_bytes: int = CONTENT_BYTES) -> bytes:
    """The first part. Raises OSError."""
    descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        return os.read(descriptor, limit_bytes)
    finally:
        os.close(descriptor)


# --- the executable ---------------------------------------------------------------------------------------------------
def exe_opened(folder: int) -> int | None:
    """A descriptor (O_PATH) of the file that runs; None for a process that has ended, a thread of the kernel.

    All that is asked of it is about that file, whatever the process executes meanwhile.
    """
    try:
        return os.open("exe", os.O_PATH | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return None


def exe_of(folder: int) -> ExePath:
    """Empty where there is no executable."""
    file = exe_opened(folder)
    if file is None:
        return ExePath()
    try:
        return path_of(file)
    finally:
        os.close(file)


def path_of(file: int) -> ExePath:
    """Where an opened executable lies; empty for a path that is too long to be told."""
    try:
        path = os.readlink(f"/proc/self/fd/{file}")
    except OSError:
        return ExePath()
    if _leads_there(file, path):
        return ExePath(path=path)
    if not path.endswith(DELETED):
        return ExePath(claimed=path)
    path = path.removesuffix(DELETED)
    is_ours = _device_of_mount(_mount_of(file), OUR_MOUNTS) is not None
    return ExePath(path=path) if is_ours else ExePath(claimed=path)


def executable_of(folder: int) -> Executable | None:
    """By stat(): in some file systems (btrfs, overlay) its device is not what the kernel tells."""
    try:
        return file_of(os.stat("exe", dir_fd=folder))
    except OSError:
        return None


def file_of(status: os.stat_result) -> Executable:
    """The file as the kernel knows it, if its device is the file system's own."""
    device = os.major(status.st_dev) << MINOR_BITS | os.minor(status.st_dev)
    return Executable(device=device, inode=status.st_ino, ctime_ns=status.st_ctime_ns)


def is_executable(file: int, executable: Executable, folder: int | None = None) -> bool:
    """An opened file is the one that the kernel told of, by its device in the table of mounts where stat() differs.

    `folder` is /proc/PID of who runs it, perhaps on a mount that is not ours.
    """
    try:
        found = file_of(os.fstat(file))
    except OSError:  # a file system that is not open to us
        return False
    if found == executable:
        return True
    if (found.inode, found.ctime_ns) != (executable.inode, executable.ctime_ns):
        return False
    mount, tables = _mount_of(file), [OUR_MOUNTS] if folder is None else [OUR_MOUNTS, _mounts_of(folder)]
    return any(_device_of_mount(mount, table) == executable.device for table in tables)


def opened_as(path: str, executable: Executable) -> int | None:
    """A descriptor (O_PATH) of what lies at `path`, if that is the file that the kernel told of."""
    file = _opened_at(path)
    if file is None or is_executable(file, executable):
        return file
    os.close(file)
    return None


def _leads_there(file: int, path: str) -> bool:
    there = _opened_at(path)
    if there is None:
        return False
    try:
        return os.path.samestat(os.fstat(file), os.fstat(there))
    except OSError:  # a file system that is not open to us
        return False
    finally:
        os.close(there)


def _opened_at(path: str) -> int | None:
    """A descriptor (O_PATH) of what lies at `path`, if the kernel calls it so too: no link, no dots on the way."""
    try:
        file = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    try:
        if os.readlink(f"/proc/self/fd/{file}") == path:
            return file
    except OSError:  # longer than it can be told
        pass
    os.close(file)
    return None


def files_of(folder: int) -> frozenset[tuple[int, int]]:
    """Device and inode of the executable, as stat() tells the device and as its mount does; empty if it has ended.

    Where the two differ (btrfs, overlay), the kernel tells the second.
    """
    file = exe_opened(folder)
    if file is None:
        return frozenset()
    try:
        status, mount = file_of(os.fstat(file)), _mount_of(file)
    except OSError:  # a file system that is not open to us
        return frozenset()
    finally:
        os.close(file)
    devices = {status.device, *(_device_of_mount(mount, table) for table in (_mounts_of(folder), OUR_MOUNTS))}
    return frozenset((device, status.inode) for device in devices if device is not None)


def _mounts_of(folder: int) -> Path:
    """The mounts that the process of /proc/PID sees."""
    return Path(f"/proc/self/fd/{folder}/mountinfo")


def _mount_of(file: int) -> str:
    """The id of the mount on which `file` was opened."""
    described = Path(f"/proc/self/fdinfo/{file}").read_text().split()
    return described[described.index("mnt_id:") + 1]


def _device_of_mount(mount: str, table: Path) -> int | None:
    """As the kernel writes device numbers; None where the table (proc_pid_mountinfo(5)) has no such mount."""
    try:
        lines = table.read_bytes().split(b"\n")
    except OSError:  # its process has ended
        return None
    for line in lines:
        number, _, rest = line.partition(b" ")
        if number.decode() == mount:
            major, _, minor = rest.split(b" ")[1].partition(b":")
            return int(major) << MINOR_BITS | int(minor)
    return None


# --- all of them ------------------------------------------------------------------------------------------------------
def living(proc: str = "/proc") -> Iterator[Found]:
    """Every process that has not ended, threads of the kernel included; whoever ends meanwhile may be missing."""
    for name in os.listdir(proc):
        if name.isdecimal() and (found := _found(int(name), proc)) is not None:
            yield found


def _found(pid: int, proc: str) -> Found | None:
    folder = opened(pid, proc)
    if folder is None:
        return None
    try:
        status = status_of(folder)
        if status is None or status.is_ended:
            return None
        return Found(
            pid=pid,
            parent=status.parent,
            start_ticks=status.start_ticks,
            uid=os.stat(".", dir_fd=folder).st_uid,
            comm=comm_of(folder) or "",
            exe=exe_of(folder),
            executable=executable_of(folder),
        )
    except OSError:
        return None
    finally:
        os.close(folder)
