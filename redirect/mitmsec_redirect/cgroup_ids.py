"""Paths of cgroups by the id that the kernel tells, as long as the cgroup is there (cgroup2 only).

An id is a file handle of the cgroup2 file system (open_by_handle_at(2)), and never used again. Needs root.
"""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

from mitmsec_redirect.bpf import EbpfUnavailable
from mitmsec_redirect.cgroup import cgroup2_root
from mitmsec_redirect.hashes import Remembered

PATHS_LIMIT = 4096
KERNFS_HANDLE = struct.Struct("=IiQ")  # bytes, type, id
FILEID_KERNFS = 0xFE

_libc = ctypes.CDLL(None, use_errno=True)


class CgroupPaths:
    """Paths from the root of the hierarchy, remembered past the cgroup's end. Not thread-safe."""

    def __init__(self, root: Path | None = None) -> None:
        self._paths: Remembered[int, str] = Remembered(PATHS_LIMIT)
        try:
            self._root = str(root or cgroup2_root())
        except EbpfUnavailable:
            self._root = ""

    def path_of(self, cgroup: int) -> str | None:
        """None: it has gone before anybody asked, or there is no such cgroup here."""
        if cgroup and self._root and cgroup not in self._paths and (path := self._resolved(cgroup)) is not None:
            self._paths.keep(cgroup, path)
        return self._paths.find(cgroup)

    def _resolved(self, cgroup: int) -> str | None:
        handle = ctypes.create_string_buffer(KERNFS_HANDLE.pack(8, FILEID_KERNFS, cgroup), KERNFS_HANDLE.size)
        try:
            mount = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            folder: int = _libc.open_by_handle_at(mount, handle, os.O_PATH | os.O_CLOEXEC)
        finally:
            os.close(mount)
        if folder < 0:
            return None
        try:
            path = os.readlink(f"/proc/self/fd/{folder}")
        finally:
            os.close(folder)
        return path.removeprefix(self._root) or "/" if path.startswith(self._root) else None


class Scope:
    """A cgroup and all below it, for ids that the kernel tells. Not thread-safe."""

    def __init__(self, cgroup: str, paths: CgroupPaths | None = None) -> None:
        self._path = "/" + os.path.relpath(cgroup, cgroup2_root())
        self._paths = paths or CgroupPaths()

    def holds(self, cgroup: int) -> bool | None:
        """None: the id is 0, or its cgroup went before anybody asked."""
        path = self._paths.path_of(cgroup)
        return None if path is None else path == self._path or path.startswith(f"{self._path}/")
