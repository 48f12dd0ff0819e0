"""The cgroups of runs: each has a hook of its own, so that a standing selection leaves out what is in them."""

from __future__ import annotations

import os
import struct
from collections.abc import Collection
from pathlib import Path, PurePath

from mitmsec_redirect.bpf import Map, MapKind
from mitmsec_redirect.cgroup import cgroup2_root
from mitmsec_redirect.cgroup_ids import CgroupPaths

RUNS_LIMIT = 1024
_CGROUP = struct.Struct("=Q")
_PRESENT = struct.pack("=I", 1)


class RunCgroups:
    """A map for `steps.Selection`. Not thread-safe."""

    def __init__(self) -> None:
        self._map = Map.create(MapKind.HASH, _CGROUP.size, len(_PRESENT), RUNS_LIMIT, "ms_runs")
        self._numbers: dict[Path, bytes] = {}

    @property
    def fd(self) -> int:
        return self._map.fd

    def are(self, paths: Collection[Path]) -> None:
        """These cgroups and no others; those that are gone are nobody's."""
        for path in self._numbers.keys() - set(paths):
            self._map.delete(self._numbers.pop(path))
        for path in set(paths) - self._numbers.keys():
            try:
                number = _CGROUP.pack(os.stat(path).st_ino)  # a cgroup's number is that of its folder
            except FileNotFoundError:  # its run has just ended
                continue
            self._map.update(number, _PRESENT)
            self._numbers[path] = number

    def close(self) -> None:
        self._map.close()


class RunMembers:
    """The same map, for whoever was given it: whether a socket's cgroup is a run's or below one. Not thread-safe."""

    def __init__(self, map_fd: int) -> None:
        self._map = Map(map_fd, _CGROUP.size, len(_PRESENT))
        self._paths = CgroupPaths()
        self._root: Path | None = None  # found once: all mounts are read for it

    def hold(self, cgroup: int) -> bool:
        """False also for a cgroup that is not known, and for 0."""
        if self._has(cgroup):
            return True
        if (path := self._paths.path_of(cgroup)) is None:
            return False
        root = self._root = self._root or cgroup2_root()
        above = PurePath(path).relative_to("/").parents
        return any(self._has(_number(root / one)) for one in above)

    def _has(self, cgroup: int) -> bool:
        return self._map.lookup(_CGROUP.pack(cgroup)) is not None


def _number(path: Path) -> int:
    """Of a cgroup; 0, which is none's: it has gone."""
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0
