"""Tables of nftables that dead supervisors left, in whatever network namespace they are.

A table can be seen and removed only from within its namespace, so each one is visited that some process lives in or
that has a name in /run/netns. In any other there is nobody left whom a table could govern.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from mitmsec_redirect import nft
from mitmsec_redirect.backend import BackendUnavailable

NAMED = Path("/run/netns")
NS_GET_NSTYPE = 0xB703  # ioctl_ns(2)


def reap(state_id: str, *, keep: Collection[str] = ()) -> list[tuple[str, str]]:
    """Remove the tables of this state's dead owners, but for those in `keep`: their names, and what went wrong."""
    done: list[tuple[str, str]] = []
    for place, fd in _namespaces():
        if not _present(state_id, fd):
            continue
        try:
            done += [(name, "") for name in nft.reap(_prefix(state_id), fd, keep=keep)]
        except (OSError, BackendUnavailable) as error:
            done.append((f"{_prefix(state_id)}* in {place}", str(error)))
    return done


def remaining(state_id: str) -> list[str]:
    """The tables of this state that are there, those of the living included."""
    found: list[str] = []
    for _, fd in _namespaces():
        found += [f"table {name}" for name in _present(state_id, fd)]
    return found


def _present(state_id: str, netns_fd: int) -> list[str]:
    with contextlib.suppress(OSError):  # a kernel without nf_tables has no tables
        return [table.name for table in nft.leftovers(_prefix(state_id), netns_fd)]
    return []


def _prefix(state_id: str) -> str:
    return f"mitmsec-{state_id}-"


def _namespaces() -> Iterator[tuple[str, int]]:
    """Each network namespace once: where it was found, and a descriptor that is good until the next one."""
    if shutil.which("nft", path=nft.FOLDERS) is None:  # nobody here has made a table
        return
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
