"""From the gate's accepted socket to the client's own socket: exactly, by the four-tuple, through NETLINK_SOCK_DIAG.

    client socket  local = accepted.getpeername()    remote = accepted.getsockname()
                   └── its cookie is the key of the origins map

One request and one answer, no dump; no privilege needed. sock_diag(7), struct inet_diag_req_v2. The cgroup of a socket
(Linux 5.9) is that of who made it, at the time.
"""

from __future__ import annotations

import socket
import struct
import sys
from dataclasses import dataclass, field

from mitmsec.core.model import Endpoint, Transport
from mitmsec_redirect.netlink import parse

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLM_F_REQUEST = 1
NLMSG_ERROR = 2
COOKIE_OFFSET = 16 + 4 + 40  # netlink header, inet_diag_msg up to idiag_cookie
UID_OFFSET = COOKIE_OFFSET + 8 + 12  # cookie, expires, both queues
INET_DIAG_CGROUP_ID = 21  # linux/inet_diag.h
ANSWER_BYTES = 16384

_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBBI")
_TUPLE = struct.Struct(">HH16s16s")
_ANY_COOKIE = b"\xff" * 8
_MESSAGE = struct.Struct("=72x")  # inet_diag_msg, before its attributes


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
    if len(message) < _MESSAGE.size:
        return 0
    return int.from_bytes(parse(message, _MESSAGE).attributes.get(INET_DIAG_CGROUP_ID, b"")[:8], sys.byteorder)


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
        found = self.find(local, remote, interface=interface)
        return None if found is None else found.cookie

    def find(
        self, local: Endpoint, remote: Endpoint, transport: Transport = Transport.TCP, interface: int = 0
    ) -> FoundSocket | None:
        """As `cookie_of`, and whose it is. A UDP socket is found as a datagram from `remote` would find it."""
        self._number = (self._number + 1) & 0xFFFFFFFF
        self._sock.send(_question(self._number, local, remote, transport, interface))
        while True:
            answer = self._sock.recv(ANSWER_BYTES)
            _, kind, _, number, _ = _HEADER.unpack_from(answer)
            if number != self._number:
                continue  # the answer to a question whose caller was interrupted
            if kind == NLMSG_ERROR:
                return None
            low, high = struct.unpack_from("=II", answer, COOKIE_OFFSET)
            uid, inode = struct.unpack_from("=II", answer, UID_OFFSET)
            return FoundSocket(low | high << 32, uid, inode, answer[_HEADER.size :])

    def close(self) -> None:
        self._sock.close()


def _question(number: int, local: Endpoint, remote: Endpoint, transport: Transport, interface: int) -> bytes:
    family = socket.AF_INET6 if local.is_v6 else socket.AF_INET
    protocol, sides = socket.IPPROTO_TCP, (local, remote)
    if transport is Transport.UDP:  # the kernel takes them the other way round, "for historical reasons"
        protocol, sides = socket.IPPROTO_UDP, (remote, local)
    addresses = (socket.inet_pton(family, side.address).ljust(16, b"\0") for side in sides)
    body = (
        _REQUEST.pack(family, protocol, 0, 0, 0xFFFFFFFF)
        + _TUPLE.pack(sides[0].port, sides[1].port, *addresses)
        + struct.pack("=I", interface)
        + _ANY_COOKIE
    )
    return _HEADER.pack(_HEADER.size + len(body), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, number, 0) + body
