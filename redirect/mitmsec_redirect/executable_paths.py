"""Where executables lie, as the hooks note it in the kernel when they first meet one: known however soon it ends.

    hook: new executable ─► names up to the root ─► paths ◄── find(), when nobody lives to be read ── callers
                                                      ▲ forget(): it leads to another file, or nowhere ──┘

What stands there is a candidate only: the names are those that the caller's own mounts have, and may be another file's
by now. Whoever takes one sees first that the very file lies there.
"""

from __future__ import annotations

import contextlib
import os

from mitmsec_redirect import path_records
from mitmsec_redirect.bpf import Map, MapKind
from mitmsec_redirect.path_records import PathMaps, parse_path
from mitmsec_redirect.process_records import EXECUTABLE, Executable
from mitmsec_redirect.records import INDEX

PATHS_LIMIT = 2048  # executables; 1.7 MB in the kernel
PATHS_OF_PROCESSOR = 128  # that many free elements each processor may keep from the others


class ExecutablePaths:
    """One for all hooks of a supervisor. Its maps are made when the first of them asks; not thread-safe."""

    def __init__(self) -> None:
        self._paths: Map | None = None
        self._blank: Map | None = None

    def maps(self) -> PathMaps:
        """For a hook's programs, which keep them as long as they live. Raises EbpfUnavailable, OSError."""
        if self._paths is None:
            size, limit = path_records.VALUE_BYTES, PATHS_LIMIT + PATHS_OF_PROCESSOR * (os.cpu_count() or 1)
            self._paths = Map.create(MapKind.LRU_HASH, EXECUTABLE.size, size, limit, "ms_paths")
        if self._blank is None:
            self._blank = Map.create(MapKind.ARRAY, INDEX.size, path_records.VALUE_BYTES, 1, "ms_paths_blank")
        return PathMaps(self._paths.fd, self._blank.fd)

    def find(self, executable: Executable) -> str | None:
        """Where it lay when a hook first met it, by the mounts of whoever ran it; None: not known."""
        value = None if self._paths is None else self._paths.lookup(executable.key())
        return None if value is None else parse_path(value)

    def forget(self, executable: Executable) -> None:
        """What `find` says, or that it says nothing, is of no use: the next who runs it may tell better."""
        if self._paths is not None:
            self._paths.delete(executable.key())

    def close(self) -> None:
        """Let go of the maps; what hooks have stays with them. Idempotent."""
        with contextlib.ExitStack() as held:
            for one in (self._paths, self._blank):
                if one is not None:
                    held.callback(one.close)
        self._paths = self._blank = None
