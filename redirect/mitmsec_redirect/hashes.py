"""SHA-256 of executables, computed beside the event loop: nobody waits for another program's.

    begin(file) ──► known ─► at once
                └─► queue of files ──► THREADS, a piece of one file, then of the next ──► Future

Files take turns piece by piece, so a small one is done soon however large the others are (a sparse file of terabytes
costs nothing to make). A file is known by device, inode, size and times; one that could not be hashed within DEADLINE_S
is not tried again as long as it is remembered.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import OrderedDict, deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

THREADS = 2
PIECE_BYTES = 4 << 20
DEADLINE_S = 60.0
WAITING_LIMIT = 128  # files under way; more are not begun
REMEMBERED = 1024

type FileIdentity = tuple[int, int, int, int, int]  # device, inode, size, mtime and ctime in nanoseconds


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


@dataclass(slots=True)
class _Job:
    """One file under way."""

    descriptor: int
    identity: FileIdentity
    result: Future[str | None]
    ends_s: float
    state: Any = field(default_factory=hashlib.sha256)


class ExecutableHashes:
    """Hashes by file. `begin` is called from one thread, its Future fulfilled by another."""

    def __init__(self) -> None:
        self._results: Remembered[FileIdentity, Future[str | None]] = Remembered(REMEMBERED)
        self._jobs: deque[_Job] = deque()
        self._work = threading.Semaphore(0)
        self._under_way = 0
        self._started = False
        self._lock = threading.Lock()

    def begin(self, descriptor: int) -> Future[str | None]:
        """The hash, in hex, of the file that `descriptor` (owned from now on) is; None when it cannot be had."""
        identity = identity_of(os.fstat(descriptor))
        if (known := self._results.find(identity)) is not None:
            os.close(descriptor)
            return known
        result: Future[str | None] = Future()
        result.set_running_or_notify_cancel()  # others wait for it too: nobody cancels it
        with self._lock:
            is_full = self._under_way >= WAITING_LIMIT
            self._under_way += not is_full
        if is_full:
            os.close(descriptor)
            result.set_result(None)
            return result
        self._start()
        self._results.keep(identity, result)
        self._jobs.append(_Job(descriptor, identity, result, time.monotonic() + DEADLINE_S))
        self._work.release()
        return result

    def known(self, identity: FileIdentity) -> Future[str | None] | None:
        """What `begin` answered for this file."""
        return self._results.find(identity)

    def _start(self) -> None:
        if not self._started:
            self._started = True
            for _ in range(THREADS):
                threading.Thread(target=self._serve, name="hashes", daemon=True).start()

    def _serve(self) -> None:
        while True:
            self._work.acquire()
            job = self._jobs.popleft()
            if self._goes_on(job):
                self._jobs.append(job)
                self._work.release()

    def _goes_on(self, job: _Job) -> bool:
        """Hash one piece. False when the file is done, one way or the other."""
        digest: str | None = None
        try:
            if piece := os.read(job.descriptor, PIECE_BYTES):
                job.state.update(piece)
                if time.monotonic() < job.ends_s:
                    return True
            elif identity_of(os.fstat(job.descriptor)) == job.identity:  # else it was written to meanwhile
                digest = job.state.hexdigest()
        except OSError:
            pass
        os.close(job.descriptor)
        with self._lock:
            self._under_way -= 1
        job.result.set_result(digest)
        return False


def identity_of(status: os.stat_result) -> FileIdentity:
    """What tells one content of one file from another."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
