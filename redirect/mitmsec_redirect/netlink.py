"""The little of rtnetlink that the mirror of the routes needs: dumps, one route question, notifications (rtnetlink(7)).

Answers come from the kernel, not from the network; still, a message that is too short for what it claims ends the
reading with `NetlinkBroken` instead of an IndexError.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator, Mapping
from typing import Final

from mitmsec.core.model import Value

NETLINK_ROUTE = 0
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
NLM_F_DUMP_INTR = 0x10
NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_GETADDR, RTM_GETROUTE, RTM_GETRULE, RTM_GETADDRLABEL = 22, 26, 34, 74
SOL_NETLINK, NETLINK_GET_STRICT_CHK = 270, 12
RECEIVE_BYTES = 1 << 18
ANSWER_DEADLINE_S = 2.0

# multicast groups as bits of the bind address: links, addresses, routes, rules; nexthop objects come as a 32nd group
GROUPS: Final = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 0x40000 | 0x80000000

_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
ROUTE_MESSAGE: Final = struct.Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
RULE_MESSAGE: Final = struct.Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, -, -, action, flags
ADDRESS_MESSAGE: Final = struct.Struct("=BBBBI")  # family, prefixlen, flags, scope, index
LABEL_MESSAGE: Final = struct.Struct("=BBBBII")  # family, -, prefixlen, flags, index, sequence


class NetlinkBroken(Exception):
    """An answer that makes no sense, or a dump that changed while it was read."""


class Reply(Value, frozen=True):
    """One message: the fields of its fixed part, and its attributes by number."""

    fields: tuple[int, ...]
    attributes: Mapping[int, bytes]


def messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Kind, flags, number and payload of each message in one datagram. Raises NetlinkBroken."""
    at = 0
    while at < len(data):
        if at + _HEADER.size > len(data):
            raise NetlinkBroken("a message header is cut off")
        size, kind, flags, number, _ = _HEADER.unpack_from(data, at)
        if size < _HEADER.size or at + size > len(data):
            raise NetlinkBroken(f"a message claims {size} bytes")
        yield kind, flags, number, data[at + _HEADER.size : at + size]
        at += (size + 3) & ~3


def parse(payload: bytes, shape: struct.Struct) -> Reply:
    """Split a payload into its fixed part and its attributes. Raises NetlinkBroken."""
    if len(payload) < shape.size:
        raise NetlinkBroken("a message is shorter than its fixed part")
    attributes: dict[int, bytes] = {}
    at = (shape.size + 3) & ~3
    while at + _ATTRIBUTE.size <= len(payload):
        size, kind = _ATTRIBUTE.unpack_from(payload, at)
        if size < _ATTRIBUTE.size or at + size > len(payload):
            raise NetlinkBroken(f"an attribute claims {size} bytes")
        attributes[kind & 0x3FFF] = payload[at + _ATTRIBUTE.size : at + size]
        at += (size + 3) & ~3
    return Reply(fields=shape.unpack_from(payload), attributes=attributes)


class RouteSocket:
    """Questions about addresses, rules and routes of the network namespace that it was made in. Not thread-safe."""

    def __init__(self) -> None:
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE)
        self._sock.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        self._sock.settimeout(ANSWER_DEADLINE_S)
        self._sock.bind((0, 0))
        self._number = 0

    def dump(self, kind: int, family: int, shape: struct.Struct) -> list[Reply]:
        """All objects of one kind and family. Raises NetlinkBroken when they changed meanwhile, OSError."""
        body = bytes([family]).ljust(shape.size, b"\0")
        replies: list[Reply] = []
        for reply_kind, flags, payload in self._ask(kind, NLM_F_DUMP, body):
            if flags & NLM_F_DUMP_INTR:
                raise NetlinkBroken("the tables changed while they were read")
            if reply_kind == NLMSG_DONE:
                return replies
            replies.append(parse(payload, shape))
        raise NetlinkBroken("a dump without an end")

    def route_to(self, address: bytes) -> Reply:
        """The route that an unbound socket's connection to `address` (4 or 16 bytes) would take. Raises OSError."""
        family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
        fixed = ROUTE_MESSAGE.pack(family, len(address) * 8, 0, 0, 0, 0, 0, 0, 0)
        body = fixed + _ATTRIBUTE.pack(_ATTRIBUTE.size + len(address), RTA_DST) + address
        for _, _, payload in self._ask(RTM_GETROUTE, 0, body):
            return parse(payload, ROUTE_MESSAGE)
        raise NetlinkBroken("no answer")

    def _ask(self, kind: int, flags: int, body: bytes) -> Iterator[tuple[int, int, bytes]]:
        self._number = (self._number + 1) & 0xFFFFFFFF
        self._sock.send(_HEADER.pack(_HEADER.size + len(body), kind, NLM_F_REQUEST | flags, self._number, 0) + body)
        while True:
            for reply_kind, reply_flags, number, payload in messages(self._sock.recv(RECEIVE_BYTES)):
                if number != self._number:
                    continue  # what is left of an answer that was given up
                if reply_kind == NLMSG_ERROR:
                    code = -struct.unpack_from("=i", payload)[0]
                    raise OSError(code, f"netlink: {errno.errorcode.get(code, code)}")
                yield reply_kind, reply_flags, payload

    def close(self) -> None:
        self._sock.close()


def notifications() -> socket.socket:
    """A non-blocking socket that becomes readable whenever links, addresses, rules or routes change."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE)
    sock.setblocking(False)
    sock.bind((0, GROUPS))
    return sock


RTA_DST, RTA_PREFSRC = 1, 7
