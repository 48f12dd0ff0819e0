"""The origin: answers on every address of the corpus, TCP and UDP, and writes down whose flow it saw."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

from benchmarks.attribution import job, labels
from benchmarks.attribution.labels import Sighting
from benchmarks.attribution.plan import number_of

_HTTP = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n"
_HEAD_LIMIT_BYTES = 4096
_PKTINFO_BYTES = 20  # in6_pktinfo: address and interface


class Sightings:
    """The book of one far end."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def note(self, far_end: str, peer: tuple[str, int], first_bytes: bytes) -> None:
        """Something reached `far_end`; addresses that belong to no flow are nobody's."""
        number = number_of(far_end)
        if number is not None:
            os.write(self._fd, labels.line(Sighting(number, *peer, labels.token(first_bytes))))


class Stream(asyncio.Protocol):
    """One accepted connection: a first line in, an answer out, the end."""

    def __init__(self, book: Sightings) -> None:
        self._book, self._head, self._noted = book, b"", False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        # now, for after a reset the kernel tells neither
        self._far_end, self._peer = transport.get_extra_info("sockname")[0], transport.get_extra_info("peername")[:2]

    def data_received(self, data: bytes) -> None:
        self._head += data
        if self._noted or (b"\n" not in self._head and len(self._head) < _HEAD_LIMIT_BYTES):
            return
        self._note()
        if self._head.startswith(b"GET "):
            self._transport.write(_HTTP)
        else:
            self._transport.write(self._head.partition(b"\n")[0] + b"\n")
        self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._note()

    def _note(self) -> None:
        if not self._noted:
            self._noted = True
            self._book.note(self._far_end, self._peer, self._head)


def answer_datagram(sock: socket.socket, book: Sightings) -> None:
    """One datagram in, the same out, from the address that it was sent to."""
    data, ancillary, _, peer = sock.recvmsg(2048, socket.CMSG_SPACE(_PKTINFO_BYTES))
    ((_, _, info),) = ancillary
    book.note(socket.inet_ntop(socket.AF_INET6, info[:16]), peer[:2], data)
    reply = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, info[:16] + bytes(4))
    sock.sendmsg([data], [reply], 0, peer)


async def serve(work: job.Job) -> None:
    """Until killed; says `ready` on stdout."""
    loop, book = asyncio.get_running_loop(), Sightings(work.sightings)
    listener = socket.create_server(("::", job.ORIGIN_PORT), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
    await loop.create_server(lambda: Stream(book), sock=listener)
    datagrams = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    datagrams.bind(("::", job.ORIGIN_PORT))
    datagrams.setblocking(False)
    loop.add_reader(datagrams, answer_datagram, datagrams, book)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(job.read(Path(sys.argv[1]))))
