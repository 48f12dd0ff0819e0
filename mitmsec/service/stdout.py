"""Our own standard output: told apart from everything else that can be written to, and that can break.

A reader that has gone (`| head -1`) and a disk that is full are no faults of ours; a broken pipe of our own sockets is.
All of them are an OSError, and click takes every EPIPE for the first. So what stdout refuses is `Unwritable`, which is
none.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Buffer, Iterator
from contextlib import contextmanager
from typing import TypeGuard

DESCRIPTOR = 1


class Unwritable(Exception):
    """Standard output takes no more."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"stdout: {_lower(error.strerror or str(error))}")
        self.reader_has_gone = error.errno == errno.EPIPE


class _Closed(io.RawIOBase):
    """Stands for a stdout that was closed before we began (`>&-`): what has nowhere to go is not written."""

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer, /) -> int:
        raise Unwritable(OSError(errno.EBADF, "it is closed"))


class _Raw(io.FileIO):
    """The descriptor, without owning it."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "wb", closefd=False)

    def write(self, data: Buffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise Unwritable(error) from error


@contextmanager
def told_apart() -> Iterator[None]:
    """In the body, and when it ends, what stdout refuses raises `Unwritable`; what is left then goes nowhere.

    A terminal stays as it is, and so does a stdout that is not the process's own. One that was closed from the start
    takes nothing.
    """
    before = sys.stdout
    if before is None:  # its descriptor may be that of another file by now
        sys.stdout = io.TextIOWrapper(_Closed(), "utf-8", write_through=True)
        try:
            yield
        finally:
            sys.stdout = before
        return
    if not _is_the_process_own(before):
        yield
        return
    raw = io.BufferedWriter(_Raw(DESCRIPTOR))
    after = io.TextIOWrapper(raw, before.encoding, before.errors, write_through=before.write_through)
    sys.stdout = after
    try:
        try:
            yield
        finally:
            after.flush()
    except Unwritable:
        _give_up()
        raise
    finally:
        sys.stdout = before


def _is_the_process_own(stream: object) -> TypeGuard[io.TextIOWrapper]:
    try:
        return isinstance(stream, io.TextIOWrapper) and stream.fileno() == DESCRIPTOR and not stream.isatty()
    except (OSError, ValueError):  # a stand-in without a descriptor
        return False


def _give_up() -> None:
    """The interpreter will try once more to write what is left: let it succeed."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, DESCRIPTOR)
    os.close(nowhere)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
