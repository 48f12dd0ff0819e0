"""The system's table of sockets: whose a connection is when no event told, and which connections there are.

On Linux through NETLINK_SOCK_DIAG, for the network namespace that the table was made in; the processes that have a
socket open are found in /proc. On Windows through iphlpapi.dll (`windows_table`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol

from mitmsec.core.model import Confidence, Endpoint, Value
from mitmsec_redirect.divert_signals import Flow
from mitmsec_redirect.sockdiag import (
    NETLINK_SOCK_DIAG,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    SOCK_DIAG_BY_FAMILY,
    CookieLookup,
    cgroup_in,
)

type Pair = bytes  # ports and addresses of a TCP socket, local first

SOCK_DESTROY = 21
NLM_F_ACK, NLM_F_DUMP = 0x4, 0x300
NLMSG_DONE = 3
# all but TIME_WAIT (6), CLOSE (7) and LISTEN (10): over, or nobody's yet; include/net/tcp_states.h
STATES: Final = 0xFFF & ~(1 << 0 | 1 << 6 | 1 << 7 | 1 << 10)
ANSWER_BYTES: Final = 1 << 18
MAPPED: Final = bytes(10) + b"\xff\xff"

_HEADER: Final = struct.Struct("=IHHII")
_PAIR: Final = struct.Struct("!HH16s16s")
_REQUEST: Final = struct.Struct("=BBBBI")
SYN_SENT: Final = b"\x02"
_STATE_AT, _INODE_AT = 1, 68  # of an inet_diag_msg
_ID_AT, _COOKIE_AT = 16 + 4, 16 + 4 + 40  # of an answer: inet_diag_sockid, its cookie


def pair_of(local: bytes, local_port: int, remote: bytes, remote_port: int) -> Pair:
    """For addresses of 4 or 16 bytes."""
    return _PAIR.pack(local_port, remote_port, local, remote)


def turned(pair: Pair) -> Pair:
    """The same connection as its other end sees it."""
    local_port, remote_port, local, remote = _PAIR.unpack(pair)
    return _PAIR.pack(remote_port, local_port, remote, local)


@dataclass(frozen=True, slots=True)
class OpenSocket:
    """One TCP socket that is not yet over."""

    pair: Pair
    cookie: int
    raw_id: bytes  # the kernel's name for it
    family: int
    message: bytes = field(default=b"", repr=False, compare=False)

    @property
    def is_connecting(self) -> bool:
        """Its SYN has not been answered yet."""
        return self.message[_STATE_AT : _STATE_AT + 1] == SYN_SENT

    @property
    def inode(self) -> int:
        """0: no process has it any more, or it is not known."""
        return int.from_bytes(self.message[_INODE_AT : _INODE_AT + 4], sys.byteorder)

    @property
    def cgroup(self) -> int:
        """The id of its maker's cgroup; 0: the kernel does not say."""
        return cgroup_in(self.message)

    @property
    def local_port(self) -> int:
        port: int = _PAIR.unpack(self.pair)[0]
        return port

    @property
    def remote(self) -> Endpoint:
        _, port, _, address = _PAIR.unpack(self.pair)
        is_v6 = self.family == socket.AF_INET6 and bool(any(address[4:]))
        text = socket.inet_ntop(socket.AF_INET6, address) if is_v6 else socket.inet_ntoa(address[:4])
        return Endpoint.of(text, port)


class Named(Value, frozen=True):
    """Whom the table names for a flow, and how far that holds.

    TABLE: that process has the socket, or had begun before the socket was made. INFERRED: one of these times cannot be
    asked for, so the pid may be somebody else's by now.
    """

    pid: int
    confidence: Confidence = Confidence.TABLE
    made_ns: int | None = None  # when the socket was made, by the clock of events; None: that is not told


class SocketTable(Protocol):
    """What both systems can say."""

    def named(self, flow: Flow) -> Named | None:
        """Whose the flow's socket is. Takes tens of milliseconds."""

    def pairs(self) -> frozenset[Pair]:
        """All TCP connections that are not yet over."""

    def close(self) -> None: ...


class DiagTable:
    """Linux. Not thread-safe."""

    def __init__(self) -> None:
        self._lookup = CookieLookup()
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)
        self._sock.bind((0, 0))
        self._number = 0  # of the question: what is left of an answer that broke off is none to the next one

    def named(self, flow: Flow) -> Named | None:
        """The lowest pid of those that have the socket open now."""
        found = self._lookup.find(flow.local, flow.remote, flow.transport)
        pid = None if found is None or not found.inode else holder_of(found.inode)
        return None if pid is None else Named(pid)

    def pairs(self) -> frozenset[Pair]:
        return frozenset(one.pair for one in self.open_sockets())

    def open_sockets(self, states: int = STATES) -> list[OpenSocket]:
        """All TCP sockets of the namespace in one of these states, IPv4 and IPv6.

        Raises OSError; after one that broke off, perhaps once more, until the kernel is through with its answer.
        """
        found = []
        for family in (socket.AF_INET, socket.AF_INET6):
            request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, states) + bytes(48)
            self._ask(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, request)
            for answer in self._answers():
                raw_id = bytes(answer[_ID_AT : _ID_AT + 48])
                cookie: int = struct.unpack_from("=Q", answer, _COOKIE_AT)[0]
                message = bytes(answer[_HEADER.size :])
                found.append(OpenSocket(_plain(raw_id[:36]), cookie, raw_id, family, message))
        return found

    def udp_cookies(self) -> set[int]:
        """The cookies of all UDP sockets of the namespace that have a port.

        One that lived throughout may be missing all the same, where others came and went meanwhile. Raises OSError.
        """
        found: set[int] = set()
        for family in (socket.AF_INET, socket.AF_INET6):
            request = _REQUEST.pack(family, socket.IPPROTO_UDP, 0, 0, 0xFFFFFFFF) + bytes(48)
            self._ask(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, request)
            found.update(struct.unpack_from("=Q", answer, _COOKIE_AT)[0] for answer in self._answers())
        return found

    def destroy(self, one: OpenSocket) -> bool:
        """End the connection as if it had been reset (CONFIG_INET_DIAG_DESTROY). False: it was over already.

        Raises OSError where the kernel cannot.
        """
        request = _REQUEST.pack(one.family, socket.IPPROTO_TCP, 0, 0, STATES) + one.raw_id
        self._ask(SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, request)
        code = next(_error_in(answer) for answer in self._messages())
        if code not in (0, errno.ENOENT):
            raise OSError(code, f"end a connection: {os.strerror(code)}")
        return code == 0

    def close(self) -> None:
        self._lookup.close()
        self._sock.close()

    def _ask(self, kind: int, flags: int, request: bytes) -> None:
        self._number = (self._number + 1) & 0xFFFFFFFF
        self._sock.send(_HEADER.pack(_HEADER.size + len(request), kind, flags, self._number, 0) + request)

    def _answers(self) -> Iterator[memoryview]:
        """Each message of a dump, its header included."""
        for message in self._messages():
            _, kind, *_ = _HEADER.unpack_from(message)
            if kind not in (NLMSG_DONE, NLMSG_ERROR):
                yield message
            elif (code := _error_in(message)) > 0:  # the kernel ends a dump that it could not go on with as any other
                raise OSError(code, f"list sockets: {os.strerror(code)}")
            else:
                return

    def _messages(self) -> Iterator[memoryview]:
        """Those that answer the last question, without end."""
        while True:
            data = memoryview(self._sock.recv(ANSWER_BYTES))
            while data:
                length, _, _, number, _ = _HEADER.unpack_from(data)
                if number == self._number:
                    yield data[:length]
                data = data[(length + 3) & ~3 :]


def _error_in(message: memoryview) -> int:
    """0: none."""
    code: int = -struct.unpack_from("=i", message, _HEADER.size)[0]
    return code


def _plain(pair: Pair) -> Pair:
    """A v4-mapped connection is known by its IPv4 addresses."""
    if pair[4:16] != MAPPED:
        return pair
    return pair[:4] + pair[16:20].ljust(16, b"\0") + pair[32:36].ljust(16, b"\0")


def holder_of(inode: int) -> int | None:
    """The lowest pid of those that have the socket open; None: nobody, or nobody whom we may look at."""
    return holders_of({inode}).get(inode)


def holders_of(inodes: Collection[int]) -> dict[int, int]:
    """The same of many sockets, in one look at all processes."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[int, int] = {}
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        if not wanted:
            break
        folder = f"/proc/{pid}/fd"
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):
                with contextlib.suppress(OSError):  # closed meanwhile
                    if (inode := wanted.pop(os.readlink(f"{folder}/{name}"), None)) is not None:
                        found[inode] = pid
    return found


def packed(endpoint: Endpoint) -> bytes:
    """The address's 4 or 16 bytes."""
    return socket.inet_pton(socket.AF_INET6 if endpoint.is_v6 else socket.AF_INET, endpoint.address)
