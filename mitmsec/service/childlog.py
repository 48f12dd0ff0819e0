"""What children write to stdout and stderr, into the supervisor's log: line by line, and never without bound.

    child ── pipe ──► ChildOutput: LINES_PER_S lines of LINE_BYTES ──► "worker 123: …" ──► LogFile: LOG_BYTES, twice
                           └── more: counted, said once a second; beyond BYTES_PER_S the pipe is left full
    print, traceback, logging ─► OwnWords: OWN_LINES_PER_S lines of LINE_BYTES ───────► LogFile

A child may be an attacker's. It holds no descriptor of the log, so it can neither overwrite nor truncate it; it cannot
fill the disk, take all of the supervisor's time, or put escape sequences on the terminal of who reads the log. What
makes the supervisor itself speak may be an attacker's doing as well, so its own words are held to the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import time
from collections.abc import Callable
from pathlib import Path

LINE_BYTES = 2048
LINES_PER_S = 50
OWN_LINES_PER_S = 200  # several tracebacks
BYTES_PER_S = 1 << 20
CHUNK_BYTES = 1 << 16
LAST_CHUNKS = 4  # read of a child that has ended
LOG_BYTES = 4 << 20  # then the file is kept as `….1`, in place of an older one


class LogFile:
    """The log behind `descriptor`, which is open for appending. It goes on in a new file when `path` is full."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor

    def write(self, line: str) -> None:
        """`line`, if the disk takes it."""
        with contextlib.suppress(OSError):
            if os.fstat(self._descriptor).st_size >= LOG_BYTES:
                self._turn()
            os.write(self._descriptor, line.encode(errors="backslashreplace") + b"\n")

    def _turn(self) -> None:
        os.replace(self._path, f"{self._path}.1")
        fresh = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        full = os.fstat(self._descriptor)
        for descriptor in {1, 2, self._descriptor}:  # our own words go there, too
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(descriptor), full):
                    os.dup2(fresh, descriptor)
        os.close(fresh)


class OwnWords(io.TextIOBase):
    """Stands in for `sys.stderr` and `sys.stdout` of the supervisor. Never raises for what is written."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._write, self._clock = write, clock
        self._partial = ""
        self._since_s, self._lines, self._dropped = clock(), 0, 0

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        """Whole lines go to the log, the rest waits for its end."""
        *lines, last = text.split("\n")
        for line in lines:
            self._say(self._partial + line)
            self._partial = ""
        self._partial = (self._partial + last)[: LINE_BYTES + 1]
        return len(text)

    def _say(self, line: str) -> None:
        now_s = self._clock()
        if now_s - self._since_s >= 1:
            self._since_s, self._lines = now_s, 0
            self._say_dropped()
        if self._lines >= OWN_LINES_PER_S:
            self._dropped += 1
            return
        self._lines += 1
        cut = line[:LINE_BYTES].encode(errors="backslashreplace")[:LINE_BYTES]
        self._write(f"{_printable(cut)}{' …' if len(line) > LINE_BYTES else ''}")

    def _say_dropped(self) -> None:
        dropped, self._dropped = self._dropped, 0
        if dropped:
            self._write(f"{dropped} more lines of the supervisor in a second before this, dropped")


class ChildOutput:
    """The reading end of one child's pipe. It owns `descriptor`; `name` stands before each line."""

    def __init__(
        self, descriptor: int, name: str, write: Callable[[str], None], loop: asyncio.AbstractEventLoop
    ) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor, self._name, self._write, self._loop = descriptor, name, write, loop
        self._partial = b""
        self._lines = self._bytes = self._dropped = 0  # of this second
        self._second: asyncio.TimerHandle | None = None
        loop.add_reader(descriptor, self._readable)

    def _readable(self) -> None:
        if not self._read():
            self.close()
        elif self._bytes >= BYTES_PER_S:
            self._loop.remove_reader(self._descriptor)  # the child waits, if it wants to write on

    def _read(self) -> bool:
        """Take one chunk. False at the end."""
        try:
            data = os.read(self._descriptor, CHUNK_BYTES)
        except BlockingIOError:
            return True
        if self._second is None:
            self._second = self._loop.call_later(1.0, self._next_second)
        self._bytes += len(data)
        self._take(data)
        return bool(data)

    def _take(self, data: bytes) -> None:
        while self._lines < LINES_PER_S:
            line, newline, data = data.partition(b"\n")
            self._partial += line[: LINE_BYTES + 1 - len(self._partial)]
            if not newline:
                return
            self._say()
        self._dropped += data.count(b"\n")
        if b"\n" in data or not self._partial:
            self._partial = data.rpartition(b"\n")[2][: LINE_BYTES + 1]

    def _say(self) -> None:
        text, self._partial = self._partial, b""
        self._lines += 1
        if text:
            self._write(f"{self._name}: {_printable(text[:LINE_BYTES])}{' …' if len(text) > LINE_BYTES else ''}")

    def _next_second(self) -> None:
        self._second = None
        self._say_dropped()
        if self._bytes >= BYTES_PER_S:
            self._loop.add_reader(self._descriptor, self._readable)
        self._lines = self._bytes = 0

    def _say_dropped(self) -> None:
        dropped, self._dropped = self._dropped, 0
        if dropped:
            self._write(f"{self._name}: {dropped} more lines in this second, dropped")

    def close(self) -> None:
        """The child has ended: what is still in the pipe, within bounds. Idempotent."""
        if self._descriptor < 0:
            return
        descriptor = self._descriptor
        self._loop.remove_reader(descriptor)
        for _ in range(LAST_CHUNKS):
            before = self._bytes
            if not self._read() or self._bytes == before:
                break
        if self._partial:
            self._say()
        self._say_dropped()
        if self._second is not None:
            self._second.cancel()
        self._descriptor = -1
        os.close(descriptor)


def _printable(line: bytes) -> str:
    text = line.rstrip(b"\r").decode(errors="backslashreplace")
    return "".join(letter if letter.isprintable() or letter == "\t" else f"\\x{ord(letter):02x}" for letter in text)
