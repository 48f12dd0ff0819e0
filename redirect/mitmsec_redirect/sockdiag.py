"""From the gate's accepted socket to the client's own socket: exactly, by the four-tuple, through NETLINK_SOCK_DIAG.

    client socket  local = accepted.getpeername()    remote = accepted.getsockname()
                   └── its cookie is the key of the origins map

One request and one answer, no dump; no privilege needed. sock_diag(7), struct inet_diag_req_v2. The cgroup of a socket
(Linux 5.9) is that of who made it, at the time.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field
from functools import lru_cache

from mitmsec.core.model import Endpoint, Transport

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLM_F_REQUEST = 1
NLMSG_ERROR = 2
COOKIE_OFFSET = 16 + 4 + 40  # netlink header, inet_diag_msg up to idiag_cookie
INET_DIAG_SKV6ONLY, INET_DIAG_CGROUP_ID = 11, 21  # linux/inet_diag.h
ANSWER_BYTES = 4096
ADDRESSES_LIMIT = 1024

_HEADER = struct.Struct("=IHHII")
_QUESTION = struct.Struct("=IHHIIBBBBIHH16s16sI8s")
"""Netlink header; then family, protocol, -, -, states, both ports in network order, addresses, interface, cookie."""
_ANY_STATE, _ANY_COOKIE = 0xFFFFFFFF, b"\xff" * 8
_MESSAGE_BYTES = 72  # inet_diag_msg, before its attributes
_ATTRIBUTE = struct.Struct("=HH")
_CGROUP_ID = struct.Struct("=Q")
_COOKIE = struct.Struct("=Q")
_FOUND = struct.Struct("=II12xII")  # from the cookie on: its halves, expires, both queues, uid, inode


@dataclass(frozen=True, slots=True)
class FoundSocket:
    """A socket as the kernel knows it."""

    cookie: int
    uid: int  # of who made it
    inode: int  # 0: no process has it any more
    message: bytes = field(default=b"", repr=False, compare=False)

    @property
    def cgroup(self) -> int:
        """The id of its cgroup; 0: the kernel does not say."""
        return cgroup_in(self.message)


def cgroup_in(message: bytes) -> int:
    """The id of the cgroup that an `inet_diag_msg` and its attributes tell; 0: they do not."""
    told = attribute_in(message, INET_DIAG_CGROUP_ID, _CGROUP_ID.size)
    return int(_CGROUP_ID.unpack(told)[0]) if told else 0


def attribute_in(message: bytes, wanted: int, size_bytes: int) -> bytes:
    """What the attribute of this kind and size behind an `inet_diag_msg` holds; empty where there is none."""
    at = _MESSAGE_BYTES
    while at + _ATTRIBUTE.size <= len(message):
        size, kind = _ATTRIBUTE.unpack_from(message, at)
        if size < _ATTRIBUTE.size or at + size > len(message):
            break
        if kind == wanted and size == _ATTRIBUTE.size + size_bytes:
            return message[at + _ATTRIBUTE.size : at + size]
        at += (size + 3) & ~3
    return b""


class CookieLookup:
    """Asks the kernel about sockets of the network namespace that it was made in. Not thread-safe."""

    def __init__(self) -> None:
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)
        self._sock.bind((0, 0))
        self._number = 0

    def cookie_of(self, local: Endpoint, remote: Endpoint, interface: int = 0) -> int | None:
        """The cookie of the TCP socket with this local and remote address; None when there is none (any more).

        The client may have reset and gone before it is asked for: then the accepted socket is dead as well.
        v4-mapped connections are found by their IPv4 addresses, as the kernel keeps them.
        """
        here, there = (_packed(local.address), local.port), (_packed(remote.address), remote.port)
        answer = self._ask(Transport.TCP, here, there, interface)
        return None if answer is None else int(_COOKIE.unpack_from(answer, COOKIE_OFFSET)[0])

    def find(
        self, local: Endpoint, remote: Endpoint, transport: Transport = Transport.TCP, interface: int = 0
    ) -> FoundSocket | None:
        """As `cookie_of`, and whose it is. A UDP socket is found as a datagram from `remote` would find it."""
        here, there = (_packed(local.address), local.port), (_packed(remote.address), remote.port)
        return self.find_packed(transport, here, there, interface)

    def find_packed(
        self, transport: Transport, local: tuple[bytes, int], remote: tuple[bytes, int], interface: int
    ) -> FoundSocket | None:
        """The same, by addresses of 4 or 16 bytes and ports as they stand in packets."""
        answer = self._ask(transport, local, remote, interface)
        if answer is None:
            return None
        low, high, uid, inode = _FOUND.unpack_from(answer, COOKIE_OFFSET)
        return FoundSocket(low | high << 32, uid, inode, answer[_HEADER.size :])

    def _ask(
        self, transport: Transport, local: tuple[bytes, int], remote: tuple[bytes, int], interface: int
    ) -> bytes | None:
        self._number = (self._number + 1) & 0xFFFFFFFF
        self._sock.send(_question(self._number, transport, local, remote, interface))
        while True:
            answer = self._sock.recv(ANSWER_BYTES)
            _, kind, _, number, _ = _HEADER.unpack_from(answer)
            if number == self._number:  # else to a question whose caller was interrupted
                return None if kind == NLMSG_ERROR else answer

    def close(self) -> None:
        self._sock.close()


def _question(
    number: int, transport: Transport, local: tuple[bytes, int], remote: tuple[bytes, int], interface: int
) -> bytes:
    family = socket.AF_INET if len(local[0]) == 4 else socket.AF_INET6
    protocol = socket.IPPROTO_TCP
    if transport is Transport.UDP:  # the kernel takes them the other way round, "for historical reasons"
        protocol, local, remote = socket.IPPROTO_UDP, remote, local
    return _QUESTION.pack(
        _QUESTION.size, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, number, 0, family, protocol, 0, 0, _ANY_STATE,
        socket.htons(local[1]), socket.htons(remote[1]), local[0], remote[0], interface, _ANY_COOKIE,
    )  # fmt: skip


@lru_cache(ADDRESSES_LIMIT)
def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
