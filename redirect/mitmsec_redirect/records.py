"""The bytes that the programs in the kernel and we in user space exchange: offsets for `steps`, parsers for the rest.

An `Attempt` is one connect() or sendmsg() as the program saw it. The same bytes stand in the origins map (it was
diverted) and in the ring of missed ones (it was not), so there is one layout to know:

     0 remote[16] │ 16 port │ 18 protocol │ 20 reason │ 24 pid │ 28 uid │ 32 comm[16]
    48 source[16] │ 64 source port │ 66 flags │ 68 - │ 72 time │ 80 namespace
    88 started │ 96 parent's start │ 104 parent │ 108 - │ 112 device │ 120 inode │ 128 ctime s │ 136 ns │ 140 - │ 144

Addresses are always 16 bytes, IPv4 as ::ffff:a.b.c.d; `port` is in network order, all else in the machine's.
From 88 on all is zero where the kernel's types are not known; 112–144 is the executable as in `process_records`.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag, StrEnum, unique
from functools import lru_cache
from ipaddress import IPv6Address
from typing import Final

from mitmsec.core.model import Caller, Confidence, Endpoint, Process, Transport, Value

ATTEMPT: Final = struct.Struct("=16sHHIII16s16sHHIQQQQIIQQqII")
REMOTE, PORT, PROTOCOL, REASON, PID, UID, COMM = 0, 16, 18, 20, 24, 28, 32
SOURCE, SOURCE_PORT, FLAGS, TIME, NAMESPACE = 48, 64, 66, 72, 80
STARTED, PARENT_STARTED, PARENT, EXECUTABLE = 88, 96, 104, 112
CALLER_FIELDS: Final = 9  # from STARTED on; the same in `inbound_records`

TRUTH: Final = struct.Struct("=16s16sII")  # remote, source (zero: unknown), remote port in network order, flags
TRUTH_REMOTE, TRUTH_SOURCE, TRUTH_PORT = 0, 16, 32

SETTINGS: Final = struct.Struct("=II")  # ports of the gate's listeners in network order; IPv6 0: there is none
PORT_V4, PORT_V6 = 0, 4

_NO_TIME: Final = bytes(8)
COOKIE: Final = struct.Struct("=Q")  # key of origins (a socket's) and of namespaces (a network namespace's)
HEARTBEAT: Final = struct.Struct("=Q")  # CLOCK_MONOTONIC, nanoseconds
COUNT: Final = struct.Struct("=Q")
INDEX: Final = struct.Struct("=I")
NAMESPACE_FLAGS: Final = struct.Struct("=I")

ROUTE_KEY: Final = struct.Struct("=IQ16s")  # bits that count, namespace, address: the namespace's 64 bits always count
ROUTE: Final = struct.Struct("=16sII")  # source address (zero: unknown), errno, flags
ROUTE_KEY_FIXED_BITS = 64
ROUTE_SOURCE, ROUTE_ERRNO, ROUTE_FLAGS = 0, 16, 20

PROTOCOL_TCP, PROTOCOL_UDP, PROTOCOL_MPTCP = 6, 17, 262
V4_MAPPED: Final = bytes(10) + b"\xff\xff"
UNKNOWN_ADDRESS: Final = bytes(16)


class AttemptFlag(IntFlag):
    """What `Attempt.flags` may hold."""

    BOUND = 1  # `source` is what the program itself bound, not what the route chose
    DENIED = 2
    SELECTED = 4  # by its entry, under a standing selection; without it nobody had judged the caller yet


_BOUND, _DENIED, _SELECTED = (int(flag) for flag in AttemptFlag)  # as flags they would take a microsecond each


class NamespaceFlag(IntFlag):
    """How far the mirror of a namespace's routes can be trusted; 0: not enough to refuse anything."""

    EXACT_V4 = 1
    EXACT_V6 = 2
    SOURCE_MATTERS = 4  # there are rules by source address: exact only for sockets that have not bound one


class RouteFlag(IntFlag):
    """What a route's flags may hold."""

    SOURCE_IS_REMOTE = 1  # a whole prefix is local: the source is the destination itself


@unique
class Reason(StrEnum):
    """Why a connection was not diverted. The words stand in fault events."""

    DEVICE_BOUND = "device_bound"
    GATE_STALLED = "gate_stalled"
    LINK_LOCAL = "link_local"
    NO_IPV6_LISTENER = "no_ipv6_listener"
    NO_MEMORY = "no_memory"
    OTHER_NETWORK_NAMESPACE = "other_network_namespace"
    OWN_LISTENER = "own_listener"
    QUIC_REFUSED = "quic_refused"
    UNSUPPORTED_PROTOCOL = "unsupported_protocol"


class Code(IntEnum):
    """A reason as the program writes it, which is also its index in the map of counts."""

    DIVERTED = 0
    DEVICE_BOUND = 1
    GATE_STALLED = 2
    LINK_LOCAL = 3
    NO_IPV6_LISTENER = 4
    NO_MEMORY = 5
    OTHER_NETWORK_NAMESPACE = 6
    OWN_LISTENER = 7
    QUIC_REFUSED = 8
    UNSUPPORTED_PROTOCOL = 9


class Origin(Value, frozen=True):
    """Where a diverted connection was meant to go, and who meant it."""

    remote: Endpoint
    pid: int  # of the process that called connect(), in the first pid namespace
    uid: int
    comm: str  # name of the calling thread
    connected_ns: int  # CLOCK_MONOTONIC
    bound: Endpoint | None  # what the program had bound; address 0.0.0.0 or ::, or port 0, where it left that open
    source: str | None  # the address that an undiverted connection would come from
    caller: Caller | None = None  # None: the kernel's types are not known
    selected: bool = False  # under a standing selection: its caller was, and not only undecided


class Missed(Value, frozen=True):
    """A connection, or for UDP a datagram, that was not diverted, and which way that went."""

    reason: Reason
    transport: Transport
    remote: Endpoint
    pid: int
    uid: int
    comm: str
    at_ns: int  # CLOCK_MONOTONIC
    netns: int  # cookie of the network namespace
    denied: bool  # False: it went out undiverted
    confidence: Confidence = Confidence.KERNEL  # how sure `pid` is; UNKNOWN: it is 0
    caller: Caller | None = None
    process: Process | None = None  # where it was read at once


def address_bytes(address: str) -> bytes:
    """16 bytes in network order, IPv4 as v4-mapped. Raises ValueError."""
    return IPv6Address(address).packed if ":" in address else IPv6Address(f"::ffff:{address}").packed


@lru_cache(maxsize=4096)
def address_text(packed: bytes) -> str:
    """Canonical text of 16 bytes; a v4-mapped address is written as IPv4."""
    ip = IPv6Address(packed)
    return str(ip.ipv4_mapped or ip)


def port_field(port: int) -> int:
    """`port` as the kernel's network-order fields hold it."""
    return port >> 8 | (port & 0xFF) << 8


def word(four: bytes) -> int:
    """Four bytes as one load of the machine (little-endian: x86_64, aarch64) sees them."""
    return int.from_bytes(four, "little")


def comm_text(comm: bytes) -> str:
    """A thread's name."""
    return comm.split(b"\0", 1)[0].decode(errors="replace")


def caller_of(
    started: int,
    parent_started: int,
    parent: int,
    _: int,
    device: int,
    inode: int,
    ctime_s: int,
    ctime_ns: int,
    __: int,
) -> Caller | None:
    """The fields from STARTED on. None: nothing is written there; a process that starts at 0 there is none."""
    if not started:
        return None
    return Caller(started, parent, parent_started, device, inode, ctime_s * 10**9 + ctime_ns)


def _bound(source: bytes, port: int, flags: int, remote: bytes) -> Endpoint | None:
    if not flags & _BOUND:
        if not port:
            return None
        source = V4_MAPPED + bytes(4) if remote.startswith(V4_MAPPED) else UNKNOWN_ADDRESS
    return Endpoint(address=address_text(source), port=port)


def parse_origin(value: bytes) -> Origin:
    """`value` is one element of the origins map."""
    remote, port, _, _, pid, uid, comm, source, source_port, flags, _, time_ns, _, *who = ATTEMPT.unpack(value)
    return Origin(
        remote=Endpoint(address=address_text(remote), port=port_field(port)),
        pid=pid,
        uid=uid,
        comm=comm_text(comm),
        connected_ns=time_ns,
        bound=_bound(source, source_port, flags, remote),
        source=None if source == UNKNOWN_ADDRESS else address_text(source),
        caller=caller_of(*who),
        selected=bool(flags & _SELECTED),
    )


def timeless(value: bytes) -> tuple[bytes, int]:
    """An element of the origins map as of time 0, by which others may be like it, and its time."""
    return value[:TIME] + _NO_TIME + value[TIME + 8 :], int.from_bytes(value[TIME : TIME + 8], "little")


def parse_missed(value: bytes) -> Missed:
    """`value` is one record of the ring of missed connections."""
    remote, port, protocol, code, pid, uid, comm, _, _, flags, _, time_ns, netns, *who = ATTEMPT.unpack(value)
    return Missed(
        reason=Reason[Code(code).name],
        transport=Transport.UDP if protocol == PROTOCOL_UDP else Transport.TCP,
        remote=Endpoint(address=address_text(remote), port=port_field(port)),
        pid=pid,
        uid=uid,
        comm=comm_text(comm),
        at_ns=time_ns,
        netns=netns,
        denied=bool(flags & _DENIED),
        caller=caller_of(*who),
    )
