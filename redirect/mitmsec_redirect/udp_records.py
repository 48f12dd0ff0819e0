"""The bytes that `udp_programs` write: a record for each new UDP flow and each socket that ends, and counts by flow.

A flow is one socket and one remote endpoint. A record of the ring begins alike for both:

     0 socket's cookie │ 8 what │ 12 - │ 16 attempt, as in `records`            160 bytes: a flow
                                        │ 16 time                               24 bytes: a socket was closed

The map of flows has the counts. `what` says which call showed the flow first.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Final

from mitmsec.core.model import Caller, Direction, Endpoint, Value
from mitmsec_redirect import records
from mitmsec_redirect.backend import SocketOwner

COOKIE, WHAT, BODY = 0, 8, 16
FLOW: Final = struct.Struct(f"=QII{records.ATTEMPT.size}s")
RELEASED: Final = struct.Struct("=QIIQ")

KEY: Final = struct.Struct("=Q16sII")  # cookie, remote, port in network order, zero
KEY_REMOTE, KEY_PORT = 8, 24
COUNTS: Final = struct.Struct("=QQQQ")  # datagrams sent and received, CLOCK_MONOTONIC of the last one, flags
SENT, RECEIVED, LAST, FLAGS = 0, 8, 16, 24


class What(IntEnum):
    """The call that a record is about."""

    CONNECTED = 1
    SENT = 2
    RECEIVED = 3
    RELEASED = 4


class FlowFlag(IntFlag):
    """What the counts' flags may hold."""

    CONNECTED = 1  # the kernel runs no hook for what the socket sends: nothing is counted from then on


class UdpFlow(Value, frozen=True):
    """The first datagram of a flow that was sent or received, or the connect() before it."""

    socket_cookie: int
    remote: Endpoint
    local: Endpoint  # address 0.0.0.0 or ::, and port 0, where the socket was not bound (yet)
    direction: Direction  # INBOUND: the remote spoke first
    connected: bool  # it began with connect(): whether anything was sent is not known
    pid: int  # of the process that made the call, in the first pid namespace
    uid: int
    comm: str
    at_ns: int  # CLOCK_MONOTONIC
    selected: bool = False  # under a standing selection: its caller was; False: nobody had judged it yet
    caller: Caller | None = None
    owner: SocketOwner | None = None  # who was found to have the socket, where no call told who made it

    @property
    def key(self) -> bytes:
        """Its key in the map of flows."""
        remote, port = records.address_bytes(self.remote.address), records.port_field(self.remote.port)
        return KEY.pack(self.socket_cookie, remote, port, 0)


class SocketReleased(Value, frozen=True):
    """A socket that had flows is closed."""

    socket_cookie: int
    at_ns: int  # CLOCK_MONOTONIC


class Counts(Value, frozen=True):
    """What is counted of a flow. `connected`: it was once connected, and the numbers are not all that there was."""

    sent: int
    received: int
    last_ns: int  # CLOCK_MONOTONIC
    connected: bool


def is_flow(record: bytes) -> bool:
    """It tells of a flow, not of a socket's end."""
    return len(record) == FLOW.size


def parse_record(record: bytes) -> UdpFlow | SocketReleased:
    """`record` is one record of the ring."""
    if not is_flow(record):
        cookie, _, _, at_ns = RELEASED.unpack(record)
        return SocketReleased(cookie, at_ns)
    cookie, what, _, attempt = FLOW.unpack(record)
    origin = records.parse_origin(attempt)
    return UdpFlow(
        socket_cookie=cookie,
        remote=origin.remote,
        local=origin.bound or Endpoint(address="::" if origin.remote.is_v6 else "0.0.0.0", port=0),  # noqa: S104
        direction=Direction.INBOUND if what == What.RECEIVED else Direction.OUTBOUND,
        connected=what == What.CONNECTED,
        pid=origin.pid,
        uid=origin.uid,
        comm=origin.comm,
        at_ns=origin.connected_ns,
        selected=origin.selected,
        caller=origin.caller,
    )


def key_of(record: bytes) -> bytes:
    """The key in the map of flows of the flow that `record` tells."""
    flow = parse_record(record)
    assert isinstance(flow, UdpFlow)
    return flow.key


def parse_counts(value: bytes) -> Counts:
    """`value` is one element of the map of flows."""
    sent, received, last_ns, flags = COUNTS.unpack(value)
    return Counts(sent, received, last_ns, bool(flags & FlowFlag.CONNECTED))
