"""The bytes in which the kernel tells of connections that came in: offsets for `inbound_programs`, and a parser.

One record lies in each socket, is filled in as things happen, and is sent whole each time:

     0 kind │ 4 flags │ 8 cookie │ 16 namespace │ 24 began │ 32 at │ 40 local[16] │ 56 remote[16]
    72 local port │ 76 remote port │ 80 sent │ 88 received │ 96 error │ 100 -
   104 pid │ 108 uid │ 112 comm[16] │ 128 started │ 136 parent's start │ 144 parent │ 148 -
   152 device │ 160 inode │ 168 ctime s │ 176 ns │ 180 - │ 184 peer[16] │ 200 peer's port │ 204 - │ 208

From 104 on it says whose it is: of a listener, and of a connection that nobody has accepted yet, who called listen();
then, who accepted. From 184 on it says who the peer really is, where the gate has made the connection (`legs`). `at` is
when that happened which `kind` says. Of a listener, `local` is what it serves
(`steering_records`). Addresses are 16 bytes, IPv4 as ::ffff:a.b.c.d; remote ports are in network order,
that at 76 in the upper half; times are CLOCK_MONOTONIC, starts CLOCK_BOOTTIME.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Final

from mitmsec.core.model import Caller, Endpoint, Value
from mitmsec_redirect.records import CALLER_FIELDS, V4_MAPPED, address_text, caller_of, port_field

INBOUND: Final = struct.Struct("=IIQQQQ16s16sIIQQIIII16sQQIIQQqII16sII")
KIND, FLAGS, COOKIE, NAMESPACE, BEGAN, AT, LOCAL, REMOTE = 0, 4, 8, 16, 24, 32, 40, 56
LOCAL_PORT, REMOTE_PORT, SENT, RECEIVED, ERROR = 72, 76, 80, 88, 96
PID, UID, COMM, STARTED, PARENT_STARTED, PARENT, EXECUTABLE = 104, 108, 112, 128, 136, 144, 152
PEER, PEER_PORT = 184, 200


class InboundKind(IntEnum):
    """What has just happened."""

    LISTENS = 0  # of a listener, where connections are led to the gate
    BEGAN = 1  # the handshake is complete
    ACCEPTED = 2
    ENDED = 3


class InboundFlag(IntFlag):
    """What `flags` may hold."""

    SELECTED = 1  # to be told of
    ACCEPTED = 2  # whose it is, is who accepted; without it, who called listen()
    IN_RUN = 4  # of a listener: what is in its cgroup is told by that cgroup's own hook
    GATES = 8  # a leg of the gate's, which tells of the whole connection itself
    BY_SELECTED = 16  # of a listener: who called listen() was selected then
    ALSO_V4 = 32  # of one on all addresses of IPv6: on all of IPv4 too


class Inbound(Value, frozen=True):
    """A connection that came in, as far as the kernel knew it at that moment."""

    kind: InboundKind
    cookie: int  # of its socket: names it until the machine is started anew
    netns: int  # cookie of the network namespace
    local: Endpoint
    remote: Endpoint
    began_ns: int
    at_ns: int  # when that happened which `kind` says
    sent_bytes: int  # payload, by the program here
    received_bytes: int
    error: int  # errno that it ended with; 0: orderly
    is_accepted: bool
    """Whether `pid` is the process that accepted it; else it is the one that listens, 0 where that is not known."""
    pid: int
    uid: int
    comm: str
    caller: Caller | None  # None with `pid` 0
    by_selected: bool = False
    """Of a listener: who called listen() was selected then, whatever has become of it."""


def listener(
    *,
    cookie: int,
    netns: int,
    at_ns: int,
    local: bytes,
    port: int,
    pid: int,
    uid: int,
    comm: str,
    by_selected: bool,
    also_v4: bool = False,
) -> bytes:
    """The record of a listener that `pid` has, as the kernel would have written it, but for the caller.

    `local` and `port` are what it serves (`steering_records`), with `also_v4` not only all addresses of IPv6.
    """
    flags = (InboundFlag.BY_SELECTED if by_selected else 0) | (InboundFlag.ALSO_V4 if also_v4 else 0)
    where = (local, bytes(16), port, 0)
    name = comm.encode(errors="replace")[:15]
    times = (0, at_ns)
    rest = (*(0,) * (CALLER_FIELDS), bytes(16), 0, 0)
    return INBOUND.pack(InboundKind.LISTENS, flags, cookie, netns, *times, *where, 0, 0, 0, 0, pid, uid, name, *rest)


def served_keys(record: bytes) -> tuple[bytes, ...]:
    """What a listener's record says that it serves, as keys (`steering_records`)."""
    port = record[LOCAL_PORT : LOCAL_PORT + 4]
    is_also_v4 = int.from_bytes(record[FLAGS : FLAGS + 4], "little") & InboundFlag.ALSO_V4
    return record[LOCAL : LOCAL + 16] + port, *((V4_MAPPED + bytes(4) + port,) if is_also_v4 else ())


def parse_inbound(record: bytes) -> Inbound:
    """`record` is one of the ring."""
    kind, flags, cookie, netns, began, at, local, remote, *rest = INBOUND.unpack(record)
    local_port, remote_port, sent, received, error, _, pid, uid, comm, *who = rest
    return Inbound(
        kind=InboundKind(kind),
        cookie=cookie,
        netns=netns,
        local=Endpoint(address=address_text(local), port=local_port),
        remote=Endpoint(address=address_text(remote), port=port_field(remote_port >> 16)),
        began_ns=began,
        at_ns=at,
        sent_bytes=sent,
        received_bytes=received,
        error=error,
        is_accepted=bool(flags & InboundFlag.ACCEPTED),
        pid=pid,
        uid=uid,
        comm=comm.split(b"\0", 1)[0].decode(errors="replace"),
        caller=caller_of(*who[:CALLER_FIELDS]),
        by_selected=bool(flags & InboundFlag.BY_SELECTED),
    )
