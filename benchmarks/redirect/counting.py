"""An origin that counts who arrives, and whether he came by himself: by the time to live of his first packet."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.host import ORIGIN_ADDRESS, Failed, end_with_us, in_namespace, origin_namespace
from benchmarks.redirect.callers import TTL
from benchmarks.redirect.figures import Arrivals

PORT = 7008
_TCP_SAVE_SYN, _TCP_SAVED_SYN, _HEADERS_BYTES = 27, 28, 128
_END_DEADLINE_S = 10


class Counting:
    """The running origin, seen from outside."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def arrivals(self, who: str) -> Arrivals:
        """Whoever has said `who` since this was last asked."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{who}\n")
        self._process.stdin.flush()
        return Arrivals(**json.loads(self._process.stdout.readline()))


@contextmanager
def serving(namespace_fd: int) -> Iterator[Counting]:
    """The origin, listening; it ends with the context. Raises `Failed`."""
    argv = end_with_us([sys.executable, "-m", "benchmarks.redirect.counting"])
    inside = in_namespace(origin_namespace(namespace_fd), argv)
    with subprocess.Popen(inside, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise Failed(f"the counting origin ended with {process.wait()}")
        try:
            yield Counting(process)
        finally:
            process.kill()


class _Book:
    def __init__(self) -> None:
        self._seen: dict[str, set[int]] = {}
        self._alone: dict[str, int] = {}
        self._twice: dict[str, int] = {}

    def note(self, who: str, number: int, by_itself: bool) -> None:
        seen = self._seen.setdefault(who, set())
        self._twice[who] = self._twice.get(who, 0) + (number in seen)
        seen.add(number)
        self._alone[who] = self._alone.get(who, 0) + by_itself

    def take(self, who: str) -> Arrivals:
        seen = len(self._seen.pop(who, ()))
        return Arrivals(seen, self._alone.pop(who, 0), self._twice.pop(who, 0))


class _Caller(asyncio.Protocol):
    def __init__(self, book: _Book) -> None:
        self._book, self._head = book, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        header = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, _TCP_SAVED_SYN, _HEADERS_BYTES)
        self._by_itself = header[8] == TTL  # RFC 791: the ninth byte of an IPv4 header

    def data_received(self, data: bytes) -> None:
        self._head += data
        if self._head.endswith(b"\n"):
            who, number = self._head.split()
            self._book.note(who.decode(), int(number), self._by_itself)
            self._transport.write(b"ok\n")
            self._transport.close()


async def _serve() -> None:
    """Until the end of stdin; each line asks for one caller's arrivals."""
    loop, book = asyncio.get_running_loop(), _Book()
    listener = socket.create_server((ORIGIN_ADDRESS, PORT), backlog=4096)
    listener.setsockopt(socket.IPPROTO_TCP, _TCP_SAVE_SYN, 1)
    await loop.create_server(lambda: _Caller(book), sock=listener)
    questions = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(questions), sys.stdin)
    print("ready", flush=True)
    while who := (await questions.readline()).decode().strip():
        arrived = book.take(who)
        print(json.dumps({"seen": arrived.seen, "alone": arrived.alone, "twice": arrived.twice}), flush=True)


if __name__ == "__main__":
    asyncio.run(_serve())
