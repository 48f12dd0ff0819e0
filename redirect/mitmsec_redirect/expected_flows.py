"""How the gate learns where a connection was going that comes to it packet by packet: it is told before the SYN is.

    windivert ── announce ──► socket ──► gate: an accepted connection ── find ──► its flow
        │                                                                ▲
        └── the SYN goes on ──────────────── later ──────────────────────┘

The telling is finished before the connection can begin, so that whoever accepts it only has to read what lies there.
What was told and never came, because its program gave up, is forgotten after a while. One packet is one flow.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket

import msgspec

from mitmsec.core.model import Endpoint, Process, Value
from mitmsec_redirect.records import Origin

PACKET_LIMIT_BYTES = 64 << 10  # texts of a process are paths and names
SO_SNDBUFFORCE = 32  # socket(7)
BUFFER_BYTES = 8 << 20  # several thousand flows, told in a gate's busiest moment
KEPT_S = 30.0  # longer than a SYN is sent again and again before its program gives up at once
KEPT_LIMIT = 16_384


class ExpectedFlow(Value, frozen=True):
    """What the gate has to know before a connection comes to it: these are the names of the socket it will accept."""

    client: Endpoint
    gate: Endpoint
    origin: Origin
    process: Process


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ExpectedFlow).decode


def channel() -> tuple[socket.socket, socket.socket]:
    """The teller's end and the gate's, both non-blocking."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setblocking(False)
    try:
        ends[0].setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, BUFFER_BYTES)
    except OSError:  # not root: the system's limit, some two hundred flows
        ends[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
    return ends


def announce(teller: socket.socket, flow: ExpectedFlow) -> None:
    """Told when this returns. Raises OSError: nobody reads, nobody is there to read, or it is too long to be read."""
    packet = _encode(flow)
    if len(packet) > PACKET_LIMIT_BYTES:  # paths are a program's to choose; its ancestors' are not worth a connection
        bare = msgspec.structs.replace(flow.process, parent=None)
        packet = _encode(msgspec.structs.replace(flow, process=bare))
    if len(packet) > PACKET_LIMIT_BYTES:
        raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
    teller.send(packet, socket.MSG_NOSIGNAL)


class ExpectedFlows:
    """The gate's side. Not thread-safe."""

    def __init__(self, told: socket.socket) -> None:
        told.setblocking(False)
        self._told = told
        self._kept: dict[tuple[Endpoint, Endpoint], tuple[float, ExpectedFlow]] = {}  # oldest first

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, client: Endpoint, gate: Endpoint, now_s: float) -> ExpectedFlow | None:
        """The flow between these two ends of an accepted socket, once. None: nobody told of it."""
        self.hear(now_s)
        found = self._kept.pop((client, gate), None)
        return None if found is None else found[1]

    def hear(self, now_s: float) -> None:
        """Read what lies there, forget what is old. Due now and then, or the channel runs full."""
        with contextlib.suppress(BlockingIOError):
            while packet := self._told.recv(PACKET_LIMIT_BYTES):
                flow = _decode(packet)
                self._kept.pop((flow.client, flow.gate), None)
                self._kept[flow.client, flow.gate] = (now_s, flow)
        while self._kept and (len(self._kept) > KEPT_LIMIT or now_s - next(iter(self._kept.values()))[0] > KEPT_S):
            del self._kept[next(iter(self._kept))]

    def close(self) -> None:
        self._told.close()
