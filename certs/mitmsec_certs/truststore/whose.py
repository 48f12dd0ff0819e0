"""Who could put something else at a path: root must not run, or write into, what another user can exchange."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator


def changers(path: str) -> frozenset[int] | None:
    """The users who could change what lies at `path`, links followed; None: a whole group of them, or everybody.

    Raises OSError where it cannot be found out.
    """
    owners = set()
    for step, is_last in _steps(os.path.realpath(path)):
        found = os.stat(step)
        owners.add(found.st_uid)
        is_shared = bool(found.st_mode & 0o002) or bool(found.st_mode & 0o020 and found.st_gid != 0)
        if is_shared and (is_last or not found.st_mode & stat.S_ISVTX):  # who may write to it may not exchange the rest
            return None
    return frozenset(owners)


def _steps(path: str) -> Iterator[tuple[str, bool]]:
    """The path and every folder above it."""
    yield path, True
    while path != "/":
        path = os.path.dirname(path)
        yield path, False
