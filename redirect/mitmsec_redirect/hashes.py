"""SHA-256 of executables, computed beside the event loop: nobody waits for another program's.

    begin(file) ──► known ─► at once
                └─► queue of files ──► THREADS, a piece of one file, then of the next ──► Future

Files take turns piece by piece, so a small one is done soon however large the others are (a sparse file of terabytes
costs nothing to make). Where there is no room for one more, the one with most left to read is given up, of the same
user if that has its share: so nobody keeps a small file from being hashed by large ones.

A file is known by device, inode, size and times, and its hash is remembered only where a change of its content shows in
those. In memory (tmpfs) it does not: pages written through a shared mapping leave the times as they are. A file system
of which we do not know better is taken for such a one; its files are hashed once for each process. One that could not
be hashed within DEADLINE_S is not tried again as long as it is remembered.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import stat
import sys
import threading
import time
from collections import OrderedDict, deque
from concurrent.futures import Future
from typing import Any

import msgspec

THREADS = 2
PIECE_BYTES = 4 << 20
SIZE_LIMIT_BYTES = 4 << 30  # no executable comes near
DEADLINE_S = 60.0
WAITING_LIMIT = 128  # files under way
USER_LIMIT = 16  # of those, of one user
REMEMBERED = 1024
STATFS_BYTES = 256  # more than struct statfs has

# Magic numbers of file systems, statfs(2). On these, whoever writes changes the file's times, by a mapping too.
CHANGES_SHOW = frozenset(
    {
        0x0000EF53,  # ext2, ext3, ext4
        0x2FC12FC1,  # zfs
        0x58465342,  # xfs
        0x73717368,  # squashfs
        0x9123683E,  # btrfs
        0xE0F5E1E2,  # erofs
        0xF2F52010,  # f2fs
    }
)
OVERLAY = 0x794C7630  # containers live on it; what lies below may be tmpfs, so only files of root's alone are trusted

type FileIdentity = tuple[int, int, int, int, int]  # device, inode, size, mtime and ctime in nanoseconds

_libc = None if sys.platform == "win32" else ctypes.CDLL(None)


class Remembered[K, V](OrderedDict[K, V]):
    """At most `limit` values; those used least recently are dropped."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def find(self, key: K) -> V | None:
        value = self.get(key)
        if value is not None:
            self.move_to_end(key)
        return value

    def keep(self, key: K, value: V) -> V:
        self[key] = value
        self.move_to_end(key)
        if len(self) > self._limit:
            self.popitem(last=False)
        return value


class _Job(msgspec.Struct, eq=False):
    """One file under way. `left_bytes` is what it had when it began, less what has been read."""

    descriptor: int
    identity: FileIdentity
    uid: int
    left_bytes: int
    result: Future[str | None]
    ends_s: float
    state: Any = msgspec.field(default_factory=hashlib.sha256)
    is_given_up: bool = False


class ExecutableHashes:
    """Hashes by file. `begin` is called from one thread, its Future fulfilled by another."""

    def __init__(self) -> None:
        self._results: Remembered[FileIdentity, Future[str | None]] = Remembered(REMEMBERED)
        self._under_way: set[_Job] = set()
        self._waiting: deque[_Job] = deque()  # those of them that no thread has in hand
        self._started = False
        self._changed = threading.Condition()

    def begin(self, descriptor: int, uid: int) -> Future[str | None]:
        """The hash, in hex, of the file that `descriptor` (owned from now on) is; None when it cannot be had.

        `uid` is the user on whose account it is.
        """
        status = os.fstat(descriptor)
        identity = identity_of(status)
        if (known := self._results.find(identity)) is not None:
            os.close(descriptor)
            return known
        result: Future[str | None] = Future()
        result.set_running_or_notify_cancel()  # others wait for it too: nobody cancels it
        if status.st_size > SIZE_LIMIT_BYTES:
            os.close(descriptor)
            result.set_result(None)
            return result
        if can_be_remembered(descriptor):
            self._results.keep(identity, result)
        self._start()
        self._add(_Job(descriptor, identity, uid, status.st_size, result, time.monotonic() + DEADLINE_S))
        return result

    def known(self, identity: FileIdentity) -> Future[str | None] | None:
        """What `begin` answered for this file, if that still holds."""
        return self._results.find(identity)

    def _add(self, job: _Job) -> None:
        with self._changed:
            self._under_way.add(job)
            self._waiting.append(job)
            self._changed.notify()
            mine = [one for one in self._under_way if one.uid == job.uid]
            if len(mine) > USER_LIMIT:
                surplus = max(mine, key=lambda one: one.left_bytes)
            elif len(self._under_way) > WAITING_LIMIT:
                surplus = max(self._under_way, key=lambda one: one.left_bytes)
            else:
                return
            self._under_way.discard(surplus)
            surplus.is_given_up = True
            if surplus in self._waiting:  # else a thread has it, and ends it after this piece
                self._waiting.remove(surplus)
                os.close(surplus.descriptor)
        self._results.pop(surplus.identity, None)  # there may be room another time
        surplus.result.set_result(None)

    def _start(self) -> None:
        if not self._started:
            self._started = True
            for _ in range(THREADS):
                threading.Thread(target=self._serve, name="hashes", daemon=True).start()

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                job = self._waiting.popleft()
            is_done, digest = _piece(job)
            with self._changed:
                if not is_done and not job.is_given_up:
                    self._waiting.append(job)
                    continue
                self._under_way.discard(job)
            os.close(job.descriptor)
            if not job.is_given_up:
                job.result.set_result(digest)


def _piece(job: _Job) -> tuple[bool, str | None]:
    """Hash one piece; whether the file is done, one way or the other, and its hash."""
    try:
        if piece := os.read(job.descriptor, PIECE_BYTES):
            job.state.update(piece)
            job.left_bytes -= len(piece)
            return time.monotonic() >= job.ends_s, None
        if identity_of(os.fstat(job.descriptor)) == job.identity:  # else it was written to meanwhile
            return True, job.state.hexdigest()
    except OSError:
        pass
    return True, None


def identity_of(status: os.stat_result) -> FileIdentity:
    """What tells one content of one file from another, where `can_be_remembered`."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def can_be_remembered(descriptor: int) -> bool:
    """Whether the content of this file cannot change without its identity."""
    kind = _file_system(descriptor)
    if kind != OVERLAY:
        return kind in CHANGES_SHOW
    status = os.fstat(descriptor)
    return status.st_uid == 0 and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _file_system(descriptor: int) -> int:
    """Its magic number; 0: not known. Windows lets who owns a file set its times, so there none is trusted."""
    if _libc is None:
        return 0
    answer = ctypes.create_string_buffer(STATFS_BYTES)
    if _libc.fstatfs(descriptor, answer) != 0:
        return 0
    return int.from_bytes(answer.raw[:4], "little")
