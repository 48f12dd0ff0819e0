"""STATE/quarantine, as the recorder writes it: one file for each item, whole or not there, sealed before it came.

    SealedSeen 0, 1, … ──► ITEM.part ── the last one ──► on disk, elsewhere ──► ITEM ──► `on_kept`
                              └─ a gap, too much, a full disk, its producer ends ──► removed, `on_failed`

What a worker that was taken over sends may be anything: it is bounded, never read, and lies under its flow's name.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO

from mitmsec.audit.event import SealedSeen
from mitmsec.audit.intake import Source
from mitmsec.core.allowance import Allowance
from mitmsec.core.quarantine import ITEM_LIMIT_BYTES
from mitmsec.service.quarantine_room import Room

OPEN_LIMIT = 256  # of one producer
ITEMS_PER_S, ITEMS_BURST = 2.0, 64.0  # likewise: each item is two syncs of a disk on which the log lies, too
LOOK_AGAIN_S = 60.0  # so often a full folder is looked through for files that somebody has removed
PART = ".part"
THERE = "one of that name is there already"
FULL = "there is no more room for it: remove others, once they have been released"
_NAME = re.compile(r"[0-9A-Za-z]{1,64}-[0-9a-f]{8}")


class _Open:
    """An item that is not complete. Without a `file` it has failed, and what still comes of it is dropped."""

    def __init__(self, file: BinaryIO | None) -> None:
        self.file, self.size_bytes, self.digest = file, 0, hashlib.sha256()


class QuarantineFolder:
    """`on_disk(work, done)` has `work`, which waits for the disk, done where nobody waits for it, and then calls `done`
    with what it raised. `on_kept(source, seen, size_bytes, sha256)` for an item that is on disk;
    `on_failed(source, flow, why)` for one that is not going to be.
    """

    def __init__(
        self,
        folder: Path,
        on_disk: Callable[[Callable[[], None], Callable[[OSError | None], None]], None],
        on_kept: Callable[[Source, SealedSeen, int, str], None],
        on_failed: Callable[[Source | None, str, str], None],
        room: Room | None = None,
    ) -> None:
        """What another recorder has left incomplete is removed, and told."""
        self._folder, self._on_disk, self._on_kept, self._on_failed = folder, on_disk, on_kept, on_failed
        self._room = Room() if room is None else room
        self._look_again_s = -LOOK_AGAIN_S
        self._open: dict[tuple[Source, str], _Open] = {}
        self._closing: set[tuple[Source, str]] = set()  # complete, and on their way to the disk
        self._allowances: dict[Source, Allowance] = {}
        self._expected: dict[tuple[Source, str], str] = {}  # flows of items that were announced
        for entry in os.scandir(folder):
            if not entry.name.endswith(PART):
                self._room.found(entry.name, entry.stat(follow_symlinks=False).st_size)
                continue
            item = entry.name.removesuffix(PART)
            has_two_names = entry.stat(follow_symlinks=False).st_nlink > 1
            os.unlink(entry)
            if not has_two_names:  # else all of it is there
                on_failed(None, item.rpartition("-")[0], f"{item}: the recorder ended before all of it had come")

    def expect(self, source: Source, flow: str, item: str) -> None:
        """A finding says that its content is to come under this name."""
        key = (source, item)
        if key not in self._open and sum(owner == source for owner, _ in self._expected) < OPEN_LIMIT:
            self._expected[key] = flow

    def piece(self, source: Source, seen: SealedSeen, now_s: float) -> None:
        """The next piece of an item. `now_s` is of a clock that never goes back."""
        key = (source, seen.item)
        self._expected.pop(key, None)
        one = self._open.get(key)
        if one is None:
            is_crowded = self._is_crowded(source)
            one = self._begun(source, seen, now_s, is_crowded=is_crowded)
            if not is_crowded:
                self._open[key] = one
        if one.file is not None:
            self._add(key, one, seen, now_s)
        if seen.is_last:
            self._open.pop(key, None)

    def holds(self, session: str) -> bool:
        """Some item of `session` is complete, and neither kept nor failed yet."""
        return any(source.session == session for source, _ in self._closing)

    def ended(self, source: Source) -> None:
        """Nothing more comes of this producer."""
        self._allowances.pop(source, None)
        for key, one in list(self._open.items()):
            if key[0] == source:
                self._fail(key, one, key[1].rpartition("-")[0], "its worker ended before all of it had come")
                del self._open[key]
        for key, flow in list(self._expected.items()):
            if key[0] == source:
                del self._expected[key]
                self._on_failed(source, flow, f"{key[1]}: its worker ended before any of it had come")

    def _is_crowded(self, source: Source) -> bool:
        return sum(owner == source for owner, _ in [*self._open, *self._closing]) >= OPEN_LIMIT

    def _may_begin(self, source: Source, now_s: float) -> bool:
        return self._allowances.setdefault(source, Allowance(ITEMS_PER_S, ITEMS_BURST, now_s)).spend(now_s)

    def _has_room(self, source: Source, item: str, size_bytes: int, now_s: float) -> bool:
        """Whether it may have so many bytes; where there is no room, after a look at what has been removed."""
        if self._room.take(item, source.session, size_bytes):
            return True
        if now_s < self._look_again_s:
            return False
        self._look_again_s = now_s + LOOK_AGAIN_S
        there = {name.removesuffix(PART) for name in os.listdir(self._folder)}
        self._room.keep(there | {item for _, item in self._closing})  # which change their names meanwhile
        return self._room.take(item, source.session, size_bytes)

    def _begun(self, source: Source, seen: SealedSeen, now_s: float, *, is_crowded: bool) -> _Open:
        why = ""
        if not _NAME.fullmatch(seen.item) or seen.item.rpartition("-")[0] != seen.flow:
            why = "a name that is none"
        elif seen.at:
            why = "its beginning has not come"
        elif is_crowded:
            why = "too many at once"
        elif seen.item in self._room:
            why = THERE
        elif not self._may_begin(source, now_s):
            why = "more than its worker may put there in so short a time"
        elif not self._has_room(source, seen.item, 0, now_s):
            why = FULL
        else:
            with contextlib.suppress(OSError):
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                return _Open(open(os.open(self._folder / f"{seen.item}{PART}", flags, 0o600), "wb", buffering=0))
            self._room.free(seen.item)
            why = "it cannot be written"
        self._on_failed(source, seen.flow, f"{seen.item[:80]}: {why}")
        return _Open(None)

    def _add(self, key: tuple[Source, str], one: _Open, seen: SealedSeen, now_s: float) -> None:
        assert one.file is not None
        if seen.at != one.size_bytes:
            return self._fail(key, one, seen.flow, "some of it has been lost on its way")
        size_bytes = one.size_bytes + len(seen.data)
        if size_bytes > ITEM_LIMIT_BYTES or not self._has_room(*key, size_bytes, now_s):
            return self._fail(key, one, seen.flow, FULL)
        try:
            if one.file.write(seen.data) != len(seen.data):
                return self._fail(key, one, seen.flow, "the disk is full")
            one.size_bytes = size_bytes
            one.digest.update(seen.data)
        except OSError as error:
            return self._fail(key, one, seen.flow, f"{error.strerror}")
        if seen.is_last:
            self._close(key, one, seen)

    def _close(self, key: tuple[Source, str], one: _Open, seen: SealedSeen) -> None:
        assert one.file is not None
        self._closing.add(key)
        self._on_disk(partial(_put_on_disk, self._folder, one.file, seen.item), partial(self._closed, key, one, seen))

    def _closed(self, key: tuple[Source, str], one: _Open, seen: SealedSeen, error: OSError | None) -> None:
        self._closing.discard(key)
        if error is None:
            return self._on_kept(key[0], seen, one.size_bytes, one.digest.hexdigest())
        self._room.free(seen.item)
        why = THERE if isinstance(error, FileExistsError) else error.strerror
        self._on_failed(key[0], seen.flow, f"{seen.item}: {why}")

    def _fail(self, key: tuple[Source, str], one: _Open, flow: str, why: str) -> None:
        if one.file is None:
            return
        with contextlib.suppress(OSError):
            one.file.close()
        one.file = None
        self._room.free(key[1])
        with contextlib.suppress(OSError):
            os.unlink(self._folder / f"{key[1]}{PART}")
        self._on_failed(key[0], flow, f"{key[1]}: {why}")


def _put_on_disk(folder: Path, file: BinaryIO, item: str) -> None:
    """Under its name, which no other item has; else OSError is raised, and it is nowhere."""
    part, whole = folder / f"{item}{PART}", folder / item
    named = part
    try:
        with file:
            os.fsync(file.fileno())
        os.link(part, whole)  # where rename would replace one that is there
        named = whole
        os.unlink(part)
        _sync(folder)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(named)
        raise


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
