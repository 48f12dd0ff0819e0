"""What was done to which store, on disk before it is done: whoever is killed in between leaves a word for `clean`.

STATE/trust/  root 0755          who is trusted where is no secret
  lock        held by whoever changes stores, and by the tools that it has started, should they outlive it
  NUMBER/     one root in one store
    entry.json                   0644; without it nothing was done yet
    before/   0700               what lay there before, each content by its SHA-256

    (nothing) ── keep ──► adding ── steps, read back ──► trusted ──┬─► restoring ──┬─► (nothing)
                            └───────── undone ─────────────────────┴─► removing ───┘
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path

import msgspec

from mitmsec.core.model import Value
from mitmsec_certs.truststore.plan import Root, Store
from mitmsec_certs.truststore.tree import Node, replace, sync

ENTRY, BEFORE, LOCK = "entry.json", "before", "lock"


class Phase(StrEnum):
    """How far it has come."""

    ADDING = "adding"
    REMOVING = "removing"  # only the root is taken out, for others have changed the store since
    RESTORING = "restoring"  # what lay there before is put back
    TRUSTED = "trusted"


class Entry(Value, frozen=True):
    """One root in one store."""

    number: int
    store: Store
    root: Root
    phase: Phase
    since: str  # RFC 3339, UTC
    entries: frozenset[str]  # that a look gave before
    before: dict[str, Node]
    after: dict[str, Node] | None = None  # once it is trusted


class Journal:
    """The folder. Call everything but `entries` inside of `held`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else changes stores meanwhile; who does is waited for. Raises OSError."""
        with contextlib.suppress(FileExistsError):
            self.folder.mkdir()
            self.folder.chmod(0o755)  # whatever the umask is
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        descriptor = os.open(self.folder / LOCK, flags, 0o600)
        try:
            os.set_inheritable(descriptor, True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def entries(self) -> list[Entry]:
        """In the order in which they were made. Raises OSError, msgspec.MsgspecError for one that nobody wrote."""
        found = [self._read(folder) for folder in self._folders()]
        return [entry for entry in found if entry is not None]

    def new(self) -> int:
        """The number of a new entry, whose folder `before` is there and empty."""
        self._drop_unwritten()
        number = max((int(folder.name) for folder in self._folders()), default=0) + 1
        self.before(number).mkdir(parents=True, mode=0o700)
        self._folder(number).chmod(0o755)
        return number

    def before(self, number: int) -> Path:
        """Where the contents lie."""
        return self._folder(number) / BEFORE

    def keep(self, number: int, contents: Mapping[str, bytes]) -> None:
        """Contents by their SHA-256, on disk when this returns. Raises OSError."""
        for name, data in contents.items():
            replace(str(self.before(number) / name), data, 0o600)

    def contents(self, number: int) -> Mapping[str, bytes]:
        """By SHA-256."""
        return {path.name: path.read_bytes() for path in self.before(number).iterdir()}

    def write(self, entry: Entry) -> None:
        """On disk when this returns. Raises OSError."""
        replace(str(self._folder(entry.number) / ENTRY), msgspec.json.encode(entry), 0o644)
        sync(self.folder)

    def remove(self, entry: Entry) -> None:
        """It is over."""
        folder = self._folder(entry.number)
        (folder / ENTRY).unlink()
        sync(folder)
        shutil.rmtree(folder)

    def vanish(self) -> None:
        """The folder itself, where no entry is left."""
        self._drop_unwritten()
        if not self._folders():
            shutil.rmtree(self.folder, ignore_errors=True)

    def _drop_unwritten(self) -> None:
        """Of somebody who was killed before anything was done."""
        for folder in self._folders():
            if not (folder / ENTRY).exists():
                shutil.rmtree(folder)

    def _folder(self, number: int) -> Path:
        return self.folder / f"{number:04}"

    def _folders(self) -> list[Path]:
        with contextlib.suppress(FileNotFoundError):
            return sorted(
                (path for path in self.folder.iterdir() if path.name.isdigit()), key=lambda one: int(one.name)
            )
        return []

    def _read(self, folder: Path) -> Entry | None:
        with contextlib.suppress(FileNotFoundError):
            return msgspec.json.decode((folder / ENTRY).read_bytes(), type=Entry)
        return None
