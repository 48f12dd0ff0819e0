"""The cgroup of a session: what runs in it, and all that it starts, is what the hook sees. Cgroup v2 only.

Session cgroups lie directly below the cgroup2 root, so they work whatever cgroup the caller itself is in, and in mixed
layouts, where v1 controllers are mounted beside. Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
from pathlib import Path, PurePath
from types import TracebackType

from mitmsec_redirect.bpf import EbpfUnavailable
from mitmsec_redirect.mounts import Mount, mounts

MOUNTPOINTS = Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")

PREFIX = "mitmsec-"
IN_MODIFY = 0x2
EVENT_BYTES = 4096
_NAME_PART = re.compile(r"[A-Za-z0-9_.]+(-[A-Za-z0-9_.]+)*")

_libc = ctypes.CDLL(None, use_errno=True)


def cgroup2_root(mountinfo: str | None = None) -> Path:
    """Where the cgroup2 hierarchy is mounted, its whole tree if possible. Raises EbpfUnavailable where it is not."""
    return _mount(mountinfo).point


def home_of(pid: int, mountinfo: str | None = None, told: str | None = None) -> str | None:
    """Where a process is, as a path below `cgroup2_root`. None: it has ended, or is in no cgroup that is seen there.

    What /proc says of it (`told` stands in for that) begins at the root of our cgroup namespace. What is mounted may
    begin above it: then the names between are nowhere told, and the process is looked for.
    """
    told = _cgroup_line(pid) if told is None else told
    try:
        mount = _mount(mountinfo)
    except EbpfUnavailable:
        return None
    if told is None:
        return None
    if ".." in PurePath(mount.root).parts:
        return _searched(pid, mount.point)
    if ".." in PurePath(told).parts or not PurePath(told).is_relative_to(mount.root):
        return None
    return str(PurePath("/", PurePath(told).relative_to(mount.root)))


def _cgroup_line(pid: int) -> str | None:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                return line[3:]
    return None


def _searched(pid: int, root: Path) -> str | None:
    """Every cgroup is read until one has it: milliseconds, where there are hundreds."""
    for folder, _, _ in os.walk(root):
        with contextlib.suppress(OSError):  # it has just gone, or is threaded
            if str(pid) in (Path(folder) / "cgroup.procs").read_text().split():
                return str(PurePath("/", Path(folder).relative_to(root)))
    return None


def _mountpoint() -> Path:
    """Where one can be put: of a mixed layout only the upper folder may be there."""
    return next((place for place in MOUNTPOINTS if place.is_dir()), MOUNTPOINTS[-1])


def _mount(mountinfo: str | None) -> Mount:
    found = [mount for mount in mounts(mountinfo) if mount.kind == "cgroup2"]
    whole = [mount for mount in found if mount.root == "/"]
    if not found:
        raise EbpfUnavailable(
            "no cgroup2 file system is mounted in this mount namespace",
            f"Mount one: mount -t cgroup2 none {_mountpoint()} (or leave `ip netns exec`, which hides it).",
        )
    return (whole or found)[0]


class SessionCgroup:
    """One session's cgroup. Made by `create`, or around a leftover's path."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, state_id: str, session: str, root: Path | None = None) -> SessionCgroup:
        """A new, empty cgroup `mitmsec-<state id>-<session>`. Raises EbpfUnavailable, FileExistsError, ValueError."""
        for part in (state_id, session):
            if not _NAME_PART.fullmatch(part):
                raise ValueError(f"{part!r} cannot be part of a cgroup's name")
        path = (root or cgroup2_root()) / f"{PREFIX}{state_id}-{session}"
        try:
            path.mkdir(mode=0o755)
        except OSError as error:
            if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise EbpfUnavailable(
                    f"no cgroup can be made at {path.parent}", "Run as root where cgroup2 is mounted read-write."
                ) from error
            raise
        return cls(path)

    def put(self, pid: int) -> None:
        """Move a process, 0 being the caller itself. Only sockets that it makes from now on belong to the session."""
        (self.path / "cgroup.procs").write_text(f"{pid}\n")

    def pids(self) -> list[int]:
        """The processes in it, those of nested cgroups included."""
        found: list[int] = []
        for folder, _, _ in os.walk(self.path):
            with contextlib.suppress(OSError):  # a nested one that has just gone, or is threaded
                found += [int(line) for line in (Path(folder) / "cgroup.procs").read_text().split()]
        return sorted(found)

    def is_populated(self) -> bool:
        """Some process lives in it or below. False once it has been removed."""
        try:
            return "populated 1" in (self.path / "cgroup.events").read_text()
        except FileNotFoundError:
            return False

    def watch(self) -> PopulationWatch:
        """Tells when `is_populated` may have changed."""
        return PopulationWatch(self.path / "cgroup.events")

    def remove(self) -> bool:
        """Remove it and the empty ones below. False while a process lives in it; True if it has gone already."""
        for folder, _, _ in os.walk(self.path, topdown=False):
            try:
                os.rmdir(folder)
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno == errno.EBUSY:
                    return False
                raise
        return True


class PopulationWatch:
    """A descriptor for an event loop: readable when the kernel has changed cgroup.events (inotify(7))."""

    def __init__(self, events: Path) -> None:
        self._fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0 or _libc.inotify_add_watch(self._fd, os.fsencode(events), IN_MODIFY) < 0:
            code = ctypes.get_errno()
            self.close()
            raise OSError(code, f"watch: {os.strerror(code)}", str(events))

    def fileno(self) -> int:
        return self._fd

    def drain(self) -> None:
        """Take what made the descriptor readable; ask `is_populated` afterwards."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._fd, EVENT_BYTES):
                pass

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> PopulationWatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def leftovers(state_id: str, root: Path | None = None) -> list[SessionCgroup]:
    """The session cgroups of this state that exist, living ones included: whose they are, the caller must know."""
    return [
        SessionCgroup(path) for path in sorted((root or cgroup2_root()).glob(f"{PREFIX}{state_id}-*")) if path.is_dir()
    ]
