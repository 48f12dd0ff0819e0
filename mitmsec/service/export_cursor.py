"""The file that says how far an export has come: one export's at a time, replaced as a whole, on disk at each step."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mitmsec.audit.export.cursor import Cursor, encoded, parsed

LIMIT_BYTES = 65_536


class CursorRefused(Exception):
    """The file cannot be used; the text says why."""


class CursorFile:
    """Held by one process from `held` on."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Cursor | None:
        """What was kept last; None: nothing yet. Raises CursorRefused."""
        try:
            with open(self.path, "rb") as file:
                return parsed(file.read(LIMIT_BYTES))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CursorRefused(f"cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise CursorRefused(f"is no cursor: {error}") from error

    def keep(self, cursor: Cursor) -> None:
        """It is on disk when this returns, or the one before is. Raises OSError."""
        new = self.path.with_name(self.path.name + ".new")
        new.unlink(missing_ok=True)  # of somebody who was killed
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        with open(os.open(new, flags, 0o600), "wb") as file:
            file.write(encoded(cursor))
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self.path)
        sync_folder(self.path)


@contextmanager
def held(path: Path) -> Iterator[CursorFile]:
    """Nobody else uses it meanwhile. Raises CursorRefused."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(path.with_name(path.name + ".lock"), flags, 0o600)
    except OSError as error:
        raise CursorRefused(f"cannot be written: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CursorRefused("is another export's, which is running") from None
        yield CursorFile(path)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """That a file of this name is there survives a power cut, too."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
