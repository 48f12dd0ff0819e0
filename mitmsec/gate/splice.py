"""Moving bytes between two sockets inside the kernel: splice(2) through a pipe.

A pipe is only held while it holds bytes: an idle direction needs none, so ten thousand idle relays cost no pipe and no
buffer. Pipes are of 1 MiB, few, and shared through a pool. When the pool is exhausted (so many receivers are slow at
once), a direction copies through a small buffer of its own instead, until a pipe is free.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket

PIPE_SIZE_BYTES = 1 << 20  # the kernel's default limit for an unprivileged pipe (pipe-max-size)
PIPES_LIMIT = 48  # below pipe-user-pages-soft (64 MiB of an unprivileged user), beyond which pipes shrink to one page
FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class Pipe:
    """A kernel buffer. `held_bytes` were taken from one socket and not yet given to the other."""

    __slots__ = ("_read_fd", "_write_fd", "held_bytes", "size_bytes")

    def __init__(self) -> None:
        self._read_fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.held_bytes = 0
        with contextlib.suppress(OSError):  # limits of the user or the machine: a smaller pipe works as well
            fcntl.fcntl(self._write_fd, fcntl.F_SETPIPE_SZ, PIPE_SIZE_BYTES)
        self.size_bytes = fcntl.fcntl(self._write_fd, fcntl.F_GETPIPE_SZ)

    def fill(self, source: socket.socket) -> int:
        """Take what lies in `source`, up to the pipe's size. 0: end of stream. Raises BlockingIOError, OSError.

        Only to be called when empty: of a full pipe and an empty socket the kernel says the same.
        """
        self.held_bytes = os.splice(source.fileno(), self._write_fd, self.size_bytes, flags=FLAGS)
        return self.held_bytes

    def drain(self, sink: socket.socket) -> int:
        """Give to `sink` what it takes; the number of bytes. Raises BlockingIOError, OSError."""
        moved = os.splice(self._read_fd, sink.fileno(), self.held_bytes, flags=FLAGS)
        self.held_bytes -= moved
        return moved

    def close(self) -> None:
        os.close(self._read_fd)
        os.close(self._write_fd)


class Pipes:
    """A bounded pool of pipes."""

    def __init__(self, limit: int = PIPES_LIMIT) -> None:
        self._limit = limit
        self._free: list[Pipe] = []
        self.made = 0

    def take(self) -> Pipe | None:
        """An empty pipe, or None: all are in use, or the process has no descriptors left."""
        if self._free:
            return self._free.pop()
        if self.made >= self._limit:
            return None
        try:
            pipe = Pipe()
        except OSError:
            return None
        self.made += 1
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        """An empty pipe is kept for the next; one that still holds bytes of an ended flow is closed."""
        if pipe.held_bytes:
            pipe.close()
            self.made -= 1
        else:
            self._free.append(pipe)

    def close(self) -> None:
        """Close the free ones."""
        while self._free:
            self._free.pop().close()
            self.made -= 1
