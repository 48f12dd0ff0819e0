"""What commands did to the CA and is not on record yet: written down before it is done, forgotten once it is on disk.

    ca init ── note ──► STATE/run/ca-operations ── left ──► recorded, flushed ── forget
                 │
                 └── the command fails ──► withdrawn

A supervisor that starts records what a command that was killed had begun. So an operation can stand in the log twice,
and one that a kill stopped halfway stands in it as if it were done; none is missing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from mitmsec.audit.event import CaSeen
from mitmsec.service.state import State

NAME = "ca-operations"


@contextlib.contextmanager
def noted(state: State, seen: CaSeen) -> Iterator[None]:
    """`seen` will go on record, unless the body raises. Raises OSError."""
    with _held(state) as path:
        _write(path, [*_read(path), seen])
    try:
        yield
    except BaseException:
        with _held(state) as path:
            _write(path, _without_last(_read(path), seen))
        raise


def left(state: State) -> list[CaSeen]:
    """Oldest first. A line that a crash cut short is nobody's."""
    return _read(_path(state))


def forget(state: State, count: int) -> None:
    """The oldest `count` are on record."""
    with _held(state) as path:
        _write(path, _read(path)[count:])


def _without_last(every: list[CaSeen], seen: CaSeen) -> list[CaSeen]:
    """What is equal to it, and was done before, stays."""
    if seen in every:
        del every[len(every) - 1 - every[::-1].index(seen)]
    return every


def _path(state: State) -> Path:
    return state.run / NAME


def _read(path: Path) -> list[CaSeen]:
    found = []
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(msgspec.MsgspecError):
                found.append(msgspec.json.decode(line, type=CaSeen))
    return found


def _write(path: Path, every: list[CaSeen]) -> None:
    if not every:
        path.unlink(missing_ok=True)
        return
    temporary = path.with_suffix(".new")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
        file.writelines(msgspec.json.encode(seen) + b"\n" for seen in every)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


@contextlib.contextmanager
def _held(state: State) -> Iterator[Path]:
    """Of a command and a supervisor, one at a time."""
    path = _path(state)
    descriptor = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield path
    finally:
        os.close(descriptor)
