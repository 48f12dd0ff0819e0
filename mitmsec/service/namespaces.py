"""The network namespaces of this machine: those that some process lives in, or that have a name in /run/netns.

In any other there is nobody left whom anything of ours could govern.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAMED = Path("/run/netns")
NS_GET_NSTYPE = 0xB703  # ioctl_ns(2)


def found() -> Iterator[tuple[str, int]]:
    """Each network namespace once: where it was found, and a descriptor that is good until the next one."""
    seen: set[tuple[int, int]] = set()
    for path in _places():
        with _opened(path) as fd:
            if fd is not None and (key := _identity(fd)) not in seen:
                seen.add(key)
                yield str(path), fd


def _places() -> Iterator[Path]:
    yield Path("/proc/self/ns/net")
    with contextlib.suppress(OSError):
        yield from sorted(NAMED.iterdir())
    yield from (Path(entry.path, "ns/net") for entry in os.scandir("/proc") if entry.name.isdigit())


@contextmanager
def _opened(path: Path) -> Iterator[int | None]:
    """None: it has gone, or is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield None
        return
    try:
        yield fd if _is_network(fd) else None
    finally:
        os.close(fd)


def _is_network(fd: int) -> bool:
    try:
        return fcntl.ioctl(fd, NS_GET_NSTYPE) == os.CLONE_NEWNET
    except OSError:  # no namespace at all
        return False


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino
