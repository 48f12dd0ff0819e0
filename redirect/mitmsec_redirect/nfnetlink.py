"""The little of nfnetlink that the nftables backend says itself, because it says it several times a second.

Rules are text for nft(8). What is left: one element of a set (the heartbeat), counters, the tables that exist, and
conntrack's original addresses of a connection. include/uapi/linux/netfilter/{nfnetlink,nf_tables,nfnetlink_conntrack}.h
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from mitmsec.core.model import Endpoint, Value
from mitmsec_redirect import netlink
from mitmsec_redirect.netlink import NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBroken, Reply

NETLINK_NETFILTER = 12
NLM_F_ACK, NLM_F_CREATE = 0x4, 0x400
NESTED = 0x8000
ANSWER_BYTES = 1 << 16  # twice a dump's largest part; from 128 KiB on each receive maps memory, for 15 µs
ANSWER_DEADLINE_S = 2.0

CONNTRACK, NF_TABLES = 1, 10  # subsystems
BATCH_BEGIN, BATCH_END = 0x10, 0x11
GET_TABLE, NEW_ELEMENT, GET_ELEMENT, DELETE_ELEMENT, GET_OBJECT = 1, 12, 13, 14, 19
GET_CONNTRACK = 1
FAMILY_INET = 1  # of nf_tables

_HEADER: Final = struct.Struct("=IHHII")
_MESSAGE: Final = struct.Struct("=BBH")  # family, version 0, subsystem's own
_NOTHING: Final = struct.Struct("")
_COMMENT = 0  # NFTNL_UDATA_TABLE_COMMENT


def attribute(kind: int, *values: bytes) -> bytes:
    """One attribute; attributes as values nest."""
    body = b"".join(values)
    return struct.pack("=HH", len(body) + 4, kind) + body + bytes(-len(body) % 4)


def message(subsystem: int, kind: int, flags: int, family: int, number: int, *attributes: bytes) -> bytes:
    """One request of a subsystem."""
    return _framed(subsystem << 8 | kind, flags, number, _MESSAGE.pack(family, 0, 0) + b"".join(attributes))


def _framed(kind: int, flags: int, number: int, payload: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(payload), kind, NLM_F_REQUEST | flags, number, 0) + payload


def nested(value: bytes) -> Mapping[int, bytes]:
    """The attributes in a nested one. Raises NetlinkBroken."""
    return netlink.parse(value, _NOTHING).attributes


class Table(Value, frozen=True):
    """A table of family inet: its name and its remark."""

    name: str
    comment: str


class Element(Value, frozen=True):
    """What is counted in an element of a set, and for how long it is to live yet, in milliseconds."""

    packets: int
    left_ms: int


class Nfnetlink:
    """Questions and orders to the network namespace that it was made in. Needs CAP_NET_ADMIN. Not thread-safe."""

    def __init__(self) -> None:
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        self._sock.settimeout(ANSWER_DEADLINE_S)
        self._sock.bind((0, 0))
        self._number = 0

    def close(self) -> None:
        """Idempotent."""
        self._sock.close()

    # -- sets, counters, tables ----------------------------------------------------------------------------------------
    def renew(self, table: str, name: str, elements: tuple[bytes, ...]) -> None:
        """The set holds exactly these, each for as long as the set says, from now on. Raises OSError.

        Emptied and filled in one transaction: older kernels do not prolong an element that is there.
        """
        named = _set_name(table, name)
        added = attribute(3 | NESTED, *(_element(element) for element in elements))
        self._batch(
            message(NF_TABLES, DELETE_ELEMENT, NLM_F_ACK, FAMILY_INET, self._next(), named),
            message(NF_TABLES, NEW_ELEMENT, NLM_F_ACK | NLM_F_CREATE, FAMILY_INET, self._next(), named, added),
        )

    def empty(self, table: str, name: str) -> None:
        """The set holds nothing. Raises OSError."""
        named = _set_name(table, name)
        self._batch(message(NF_TABLES, DELETE_ELEMENT, NLM_F_ACK, FAMILY_INET, self._next(), named))

    def element(self, table: str, name: str, key: bytes) -> Element | None:
        """One element of a set with counters and timeouts; None: it is not there. Raises OSError, NetlinkBroken."""
        asked = attribute(3 | NESTED, _element(key))
        named = _set_name(table, name)
        data = message(NF_TABLES, GET_ELEMENT, 0, FAMILY_INET, self._next(), named, asked)
        try:
            for _, payload in self._answers(data):
                return element_in(payload)
        except FileNotFoundError:
            pass
        return None

    def remove(self, table: str, names: Iterable[str], key: bytes) -> None:
        """The element leaves these sets, each of which has it. Raises OSError; then nothing has changed."""
        gone = attribute(3 | NESTED, _element(key))
        self._batch(
            *(
                message(NF_TABLES, DELETE_ELEMENT, NLM_F_ACK, FAMILY_INET, self._next(), _set_name(table, name), gone)
                for name in names
            )
        )

    def counters(self, table: str) -> dict[str, int]:
        """Packets counted by each named counter of the table. Raises OSError, NetlinkBroken."""
        found = {}
        for reply in self._dump(NF_TABLES, GET_OBJECT, FAMILY_INET, attribute(1, _text(table))):
            data = nested(reply.attributes.get(4, b""))
            if reply.attributes.get(1) == _text(table) and 2 in data:
                found[_untext(reply.attributes[2])] = int.from_bytes(data[2])
        return found

    def tables(self) -> list[Table]:
        """The tables of family inet. Raises OSError, NetlinkBroken."""
        replies = self._dump(NF_TABLES, GET_TABLE, FAMILY_INET)
        return [Table(_untext(r.attributes.get(1, b"")), comment_of(r.attributes.get(6, b""))) for r in replies]

    # -- conntrack -----------------------------------------------------------------------------------------------------
    def original(self, gate: Endpoint, client: Endpoint) -> tuple[Endpoint, Endpoint] | None:
        """What the TCP connection that `gate` answers to `client` was before it was redirected: from where, to where.

        Its source port differs from `client`'s where two connections from one local address and port would have become
        the same. None: conntrack knows no such connection (any more). Raises OSError, NetlinkBroken.
        """
        question = attribute(2 | NESTED, *_tuple(gate, client))
        family = socket.AF_INET6 if gate.is_v6 else socket.AF_INET
        data = message(CONNTRACK, GET_CONNTRACK, 0, family, self._next(), question)
        try:
            for _, payload in self._answers(data):
                return _endpoints(netlink.parse(payload, _MESSAGE).attributes.get(1, b""))
        except FileNotFoundError:
            pass
        return None

    # -- the wire ------------------------------------------------------------------------------------------------------
    def _next(self) -> int:
        self._number = (self._number + 1) & 0xFFFFFFFF
        return self._number

    def _batch(self, *messages: bytes) -> None:
        """One transaction. Each message asks for an acknowledgement. Raises OSError."""
        around = _MESSAGE.pack(socket.AF_UNSPEC, 0, socket.htons(NF_TABLES))
        numbers = {struct.unpack_from("=I", one, 8)[0] for one in messages}
        begin, end = (_framed(kind, 0, self._number, around) for kind in (BATCH_BEGIN, BATCH_END))
        self._sock.send(b"".join((begin, *messages, end)))
        while numbers:
            for kind, _, number, payload in netlink.messages(self._sock.recv(ANSWER_BYTES)):
                if kind == NLMSG_ERROR and number in numbers:
                    _check(payload)
                    numbers.discard(number)

    def _dump(self, subsystem: int, kind: int, family: int, *attributes: bytes) -> Iterator[Reply]:
        data = message(subsystem, kind, NLM_F_DUMP, family, self._next(), *attributes)
        for reply_kind, payload in self._answers(data):
            if reply_kind == NLMSG_DONE:
                return
            yield netlink.parse(payload, _MESSAGE)

    def _answers(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        expected = self._number
        self._sock.send(data)
        while True:
            for kind, _, number, payload in netlink.messages(self._sock.recv(ANSWER_BYTES)):
                if number != expected:
                    continue  # what is left of an answer that was given up
                if kind == NLMSG_ERROR:
                    _check(payload)
                yield kind, payload


def _check(payload: bytes) -> None:
    if len(payload) < 4:
        raise NetlinkBroken("an acknowledgement is cut off")
    code = -struct.unpack_from("=i", payload)[0]
    if code:
        raise OSError(code, f"nfnetlink: {errno.errorcode.get(code, code)}")


def _element(key: bytes) -> bytes:
    return attribute(1 | NESTED, attribute(1 | NESTED, attribute(1, key)))


def element_in(payload: bytes) -> Element:
    """The first element that an answer tells. Raises NetlinkBroken."""
    told = nested(nested(netlink.parse(payload, _MESSAGE).attributes.get(3, b"")).get(1, b""))
    counter = nested(nested(told.get(7, b"")).get(2, b""))
    if 2 not in counter or 5 not in told:
        raise NetlinkBroken("an element without counter or time")
    return Element(int.from_bytes(counter[2]), int.from_bytes(told[5]))


def _set_name(table: str, name: str) -> bytes:
    return attribute(1, _text(table)) + attribute(2, _text(name))


def _text(text: str) -> bytes:
    return text.encode() + b"\0"


def _untext(value: bytes) -> str:
    return value.split(b"\0", 1)[0].decode(errors="replace")


def comment_of(userdata: bytes) -> str:
    """The remark in a table's user data, which is kind, length and value, one after the other."""
    at = 0
    while at + 2 <= len(userdata):
        kind, size = userdata[at : at + 2]
        if kind == _COMMENT:
            return _untext(userdata[at + 2 : at + 2 + size])
        at += 2 + size
    return ""


def _tuple(source: Endpoint, destination: Endpoint) -> tuple[bytes, bytes]:
    v6 = source.is_v6
    family = socket.AF_INET6 if v6 else socket.AF_INET
    addresses = (socket.inet_pton(family, end.address) for end in (source, destination))
    ports = (struct.pack("!H", end.port) for end in (source, destination))
    first = 3 if v6 else 1
    ip = (attribute(first + at, address) for at, address in enumerate(addresses))
    proto = (attribute(2 + at, port) for at, port in enumerate(ports))
    return attribute(1 | NESTED, *ip), attribute(2 | NESTED, attribute(1, bytes([socket.IPPROTO_TCP])), *proto)


def _endpoints(value: bytes) -> tuple[Endpoint, Endpoint]:
    parts = nested(value)
    ip, proto = nested(parts.get(1, b"")), nested(parts.get(2, b""))
    first, family = (3, socket.AF_INET6) if 3 in ip else (1, socket.AF_INET)
    try:
        source, destination = (
            Endpoint.of(socket.inet_ntop(family, ip[first + at]), int.from_bytes(proto[2 + at])) for at in (0, 1)
        )
    except (KeyError, ValueError) as error:
        raise NetlinkBroken(f"a connection without addresses: {error!r}") from error
    return source, destination
