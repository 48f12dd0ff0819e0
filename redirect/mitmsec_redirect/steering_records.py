"""The bytes that the kernel and the gate share about connections which are led to the gate as they come in.

A *leg* is the gate's own connection to a listener: the kernel is told of it before it is made, so that it is not led to
the gate again, and so that the listener's program can be told whose connection it really has:

    key    0 remote[16] │ 16 local[16] │ 32 remote port │ 36 local port │ 40        as the listener sees them
    value  0 peer[16] │ 16 peer's port │ 20 - │ 24

What somebody of ours *serves*, the address and port that it listens on, is kept with how many sockets do; it stays
there when nobody does any more. All addresses of IPv6 are ::, those of IPv4 ::ffff:0.0.0.0, which nobody ever calls;
who listens on all of both is counted at both:

    key    0 local[16] │ 16 local port │ 20

Who is undecided as it listens has a small share of the room, so that it takes none from who is selected: its listeners
are also kept by cookie in `undecided`, and what nobody served before it, by the same key, in `undecided_at`.

Addresses are 16 bytes, IPv4 as ::ffff:a.b.c.d. The remote ports are in network order, the local port is the machine's.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

from mitmsec.core.model import Endpoint, Value
from mitmsec_redirect.records import address_bytes, port_field

LEG: Final = struct.Struct("=16s16sII")
LEG_REMOTE, LEG_LOCAL, LEG_REMOTE_PORT, LEG_LOCAL_PORT = 0, 16, 32, 36
PEER: Final = struct.Struct("=16sII")
SERVED: Final = struct.Struct("=16sI")
SERVED_LOCAL, SERVED_PORT = 0, 16
LISTENS: Final = struct.Struct("=Q")  # of what is served: how many sockets listen on it
MARK: Final = struct.Struct("=I")  # of what is only there or not


class SteeringMaps(Value, frozen=True):
    """Descriptors of the maps that `inbound_programs` fills and reads, and the namespace that it does so for."""

    served: int
    listeners: int
    legs: int
    undecided: int
    undecided_at: int
    counts: int  # by Steered
    namespace: int  # its cookie


class Steered(IntEnum):
    """What could not be led to a gate; indices of the counts."""

    LET_IN = 0  # connections
    REFUSED = 1
    NO_ROOM = 2  # listeners for which there was none
    NO_ROOM_UNDECIDED = 3  # those of programs that nobody had judged, beyond their share of it


def leg_key(remote: Endpoint, local: Endpoint) -> bytes:
    """A leg as the listener sees it: `local` is the address that it was called at."""
    return LEG.pack(address_bytes(remote.address), address_bytes(local.address), port_field(remote.port), local.port)


def peer_value(peer: Endpoint) -> bytes:
    """Whose connection a leg carries on."""
    return PEER.pack(address_bytes(peer.address), port_field(peer.port), 0)
