"""What a tool is given, and what it says: within a time, and not without end.

A user's own tool says what that user likes, and root listens: so not even what is of no use is kept without a bound.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import time
from typing import IO

OUTPUT_LIMIT_BYTES = 16 << 20
PIECE_BYTES = 1 << 16


class TooMuch(Exception):
    """It says more than anybody has to say."""


def talk(process: subprocess.Popen[bytes], stdin: bytes, limit_s: float) -> tuple[bytes, bytes]:
    """Output and errors of a process with pipes, which has ended by then. Raises TimeoutError, TooMuch."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    ends_s = time.monotonic() + limit_s
    talking = _Talk(process.stdin, stdin)
    with talking.selector:
        output, errors = talking.listen_to(process.stdout), talking.listen_to(process.stderr)
        while talking.selector.get_map():
            talking.go_on(_left_s(ends_s))
    try:
        process.wait(_left_s(ends_s))
    except subprocess.TimeoutExpired:
        raise TimeoutError from None
    return bytes(output), bytes(errors)


class _Talk:
    """With whoever has the other ends of these pipes."""

    def __init__(self, mouth: IO[bytes], words: bytes) -> None:
        self.selector = selectors.DefaultSelector()
        self._left = memoryview(words)
        self._said: list[bytearray] = []
        os.set_blocking(mouth.fileno(), False)
        self.selector.register(mouth, selectors.EVENT_WRITE)

    def listen_to(self, pipe: IO[bytes]) -> bytearray:
        """What will have come through it."""
        self._said.append(bytearray())
        self.selector.register(pipe, selectors.EVENT_READ, self._said[-1])
        return self._said[-1]

    def go_on(self, limit_s: float) -> None:
        for key, _ in self.selector.select(limit_s):
            is_over = self._say(key.fd) if key.data is None else _hear(key.fd, key.data)
            if is_over:
                self.selector.unregister(key.fileobj)
                key.fileobj.close()  # type: ignore[union-attr]
        if sum(map(len, self._said)) > OUTPUT_LIMIT_BYTES:
            raise TooMuch(f"more than {OUTPUT_LIMIT_BYTES >> 20} MiB")

    def _say(self, descriptor: int) -> bool:
        """Whether that was all, or nobody reads."""
        try:
            self._left = self._left[os.write(descriptor, self._left) :] if self._left else self._left
        except BrokenPipeError:
            return True
        except BlockingIOError:
            return False
        return not self._left


def _hear(descriptor: int, into: bytearray) -> bool:
    piece = os.read(descriptor, PIECE_BYTES)
    into += piece
    return not piece


def _left_s(ends_s: float) -> float:
    """Raises TimeoutError."""
    left_s = ends_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s
