"""Exports into files: a new one, or one that goes on where it ended, whatever interrupted it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import click

from mitmsec.service.export_cursor import sync_folder
from mitmsec.service.export_delivery import Undelivered
from mitmsec.service.options import EXIT_USAGE, fail
from mitmsec.service.terminal import shown

BLOCK_BYTES = 65_536


class Written:
    """A sink of one open file; what refuses it is an OSError, of the whole command."""

    settles_after, settles_within_s = 1, 0.0

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def take(self, records: Sequence[bytes]) -> None:
        self._file.write(b"".join(records))

    def settle(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())


class Printed:
    """A sink of stdout."""

    settles_after, settles_within_s = 1, 0.0

    def take(self, records: Sequence[bytes]) -> None:
        click.echo(b"".join(records), nl=False)

    def settle(self) -> None:
        """Each line has been flushed already."""


@contextmanager
def new_file(path: Path, *, replaces: bool) -> Iterator[BinaryIO]:
    """Ours alone, on disk at the end; not there where the body raises, and what was there before is then as it was."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    writing = path.with_name(f".{path.name}.new") if replaces else path
    try:
        if replaces:
            writing.unlink(missing_ok=True)  # of somebody who was killed
        descriptor = os.open(writing, flags, 0o600)
    except FileExistsError:
        fail(f"--output: {shown(path)} is there already", "name a new file, or replace it: --force", EXIT_USAGE)
    except OSError as error:
        fail(f"--output: {shown(path)} cannot be made: {error.strerror}", "name another file", EXIT_USAGE)
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(writing, path)
        sync_folder(path)
    except BaseException as error:
        writing.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


class Appended:
    """A sink that goes on at the end of a file. A line that was torn off by a kill or a full disk is cut off first.

    A file that was moved away (by logrotate) is left, and a new one of the name begun.
    """

    settles_after, settles_within_s = 1, 0.0

    def __init__(self, path: Path, header: bytes) -> None:
        self._path, self._header = path, header
        self._descriptor: int | None = None

    def take(self, records: Sequence[bytes]) -> None:
        """Raises Undelivered."""
        try:
            self._write(self._open(), b"".join(records))
        except OSError as error:
            self.close()  # its end is torn: opened once more, it is cut
            raise Undelivered(f"{shown(self._path)}: {error.strerror}") from error

    def settle(self) -> None:
        """Raises Undelivered."""
        try:
            if self._descriptor is not None:
                os.fsync(self._descriptor)
        except OSError as error:
            self.close()
            raise Undelivered(f"{shown(self._path)}: {error.strerror}") from error

    def close(self) -> None:
        """Idempotent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> int:
        if self._descriptor is not None and not self._is_still_there(self._descriptor):
            os.fsync(self._descriptor)
            self.close()
        if self._descriptor is None:
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            self._descriptor = os.open(self._path, flags, 0o600)
            found = os.fstat(self._descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(0, "is no file")
            if found.st_uid not in (0, os.geteuid()):
                raise OSError(0, "is somebody else's, who could read what is written")
            if not _cut_torn_line(self._descriptor):
                self._write(self._descriptor, self._header)
            sync_folder(self._path)
        return self._descriptor

    def _is_still_there(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(descriptor))
        except FileNotFoundError:
            return False

    def _write(self, descriptor: int, data: bytes) -> None:
        while data:
            data = data[os.write(descriptor, data) :]


def _cut_torn_line(descriptor: int) -> int:
    """Drop what stands behind the last end of a line. Returns the size that is left, in bytes."""
    size = end = os.fstat(descriptor).st_size
    while end:
        begin = max(0, end - BLOCK_BYTES)
        at = os.pread(descriptor, end - begin, begin).rfind(b"\n")
        if at >= 0:
            end = begin + at + 1
            break
        end = begin
    if end != size:
        os.ftruncate(descriptor, end)
    return end
