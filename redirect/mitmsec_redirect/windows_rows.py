"""The tables of sockets that iphlpapi.dll fills in: GetExtendedTcpTable and GetExtendedUdpTable (iphlpapi.h, tcpmib.h).

    count, 32 bits │ to the rows' alignment │ row │ row │ …

    TCP, IPv4   state, address, port, remote address, port, pid                   24 │ created │ module
    TCP, IPv6   address, scope, port, remote address, scope, port, state, pid     56 │ created │ module
    UDP, IPv4   address, port, pid                                            12 + 4 │ created │ flags │ module
    UDP, IPv6   address, scope, port, pid                                     28 + 4 │ created │ flags │ module

Up to the first │ is OWNER_PID, all of it OWNER_MODULE, which also says when the socket was made: a process that began
later has only its pid in common with the owner. Ports are in network order, in the first two bytes of 32 bits.

The system fills the buffer, so there are two outcomes: the sockets, or `Malformed` where the count promises more than
there is. No bytes raise.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from mitmsec.core.model import Endpoint, Transport, Value

LISTENING, TIME_WAIT, CLOSED = 2, 11, 1  # MIB_TCP_STATE
EPOCH_1601_NS: Final = 11_644_473_600 * 10**9  # from FILETIME's beginning to that of Unix
_COUNT: Final = struct.Struct("<I")
_MODULE_WORDS: Final = 16 * 8  # OwningModuleInfo: tags of services, for GetOwnerModuleFromTcpEntry


class Kind(Enum):
    """Which table: its transport, whether it is of IPv6, and whether rows tell when a socket was made."""

    TCP4_PID = (Transport.TCP, False, False)
    TCP4_MODULE = (Transport.TCP, False, True)
    TCP6_PID = (Transport.TCP, True, False)
    TCP6_MODULE = (Transport.TCP, True, True)
    UDP4_PID = (Transport.UDP, False, False)
    UDP4_MODULE = (Transport.UDP, False, True)
    UDP6_PID = (Transport.UDP, True, False)
    UDP6_MODULE = (Transport.UDP, True, True)

    def __init__(self, transport: Transport, is_v6: bool, has_module: bool) -> None:
        self.transport, self.is_v6, self.has_module = transport, is_v6, has_module


class OwnedSocket(Value, frozen=True):
    """One row."""

    transport: Transport
    local: Endpoint
    remote: Endpoint | None  # None: of UDP, which has none, and of who listens
    pid: int | None  # None: the system names nobody, as of TIME_WAIT
    state: int | None  # MIB_TCP_STATE; None of UDP
    created_ns: int | None  # Unix time; None where the table does not tell, or does not know

    @property
    def is_connected(self) -> bool:
        """A TCP connection that is not yet over."""
        return self.remote is not None and self.state not in (TIME_WAIT, CLOSED)


class Malformed(Value, frozen=True):
    """Bytes that are no such table."""

    reason: str


_FIELDS: Final = {  # the part of a row that both classes of table have
    (Transport.TCP, False): struct.Struct("<I4s2s2x4s2s2xI"),
    (Transport.TCP, True): struct.Struct("<16s4x2s2x16s4x2s2xII"),
    (Transport.UDP, False): struct.Struct("<4s2s2xI"),
    (Transport.UDP, True): struct.Struct("<16s4x2s2xI"),
}
_CREATED: Final = struct.Struct("<q")


def row_bytes(kind: Kind) -> int:
    """The size of one row."""
    bare = _FIELDS[kind.transport, kind.is_v6].size
    if not kind.has_module:
        return bare
    flags = 8 if kind.transport is Transport.UDP else 0
    return _aligned(bare) + _CREATED.size + flags + _MODULE_WORDS


def parse(kind: Kind, table: bytes | bytearray | memoryview) -> tuple[OwnedSocket, ...] | Malformed:
    """The sockets of a table, in its order. Bytes behind the last row do not count: the buffer may be larger."""
    if len(table) < _COUNT.size:
        return Malformed(reason="no count")
    (count,) = _COUNT.unpack_from(table)
    first = _aligned(_COUNT.size) if kind.has_module else _COUNT.size
    size = row_bytes(kind)
    if first + count * size > len(table) and count:
        return Malformed(reason=f"{count} rows of {size} bytes promised in {len(table)}")
    return tuple(_rows(kind, table, range(first, first + count * size, size)))


def _rows(kind: Kind, table: bytes | bytearray | memoryview, places: range) -> Iterator[OwnedSocket]:
    fields = _FIELDS[kind.transport, kind.is_v6]
    for at in places:
        state: int | None = None
        remote: Endpoint | None = None
        match kind.transport, kind.is_v6:
            case Transport.TCP, False:
                state, local, port, far, far_port, pid = fields.unpack_from(table, at)
                remote = _endpoint(far, far_port)
            case Transport.TCP, True:
                local, port, far, far_port, state, pid = fields.unpack_from(table, at)
                remote = _endpoint(far, far_port)
            case _:
                local, port, pid = fields.unpack_from(table, at)
        yield OwnedSocket(
            transport=kind.transport,
            local=_endpoint(local, port),
            remote=None if state == LISTENING else remote,
            pid=pid or None,
            state=state,
            created_ns=_created(table, at + _aligned(fields.size)) if kind.has_module else None,
        )


def _created(table: bytes | bytearray | memoryview, at: int) -> int | None:
    """A FILETIME, in units of 100 ns; 0 or what lies before 1970 is none."""
    nanoseconds = int(_CREATED.unpack_from(table, at)[0]) * 100 - EPOCH_1601_NS
    return nanoseconds if nanoseconds > 0 else None


def _endpoint(address: bytes, port: bytes) -> Endpoint:
    text = IPv4Address(address) if len(address) == 4 else IPv6Address(address)
    return Endpoint.of(str(text), int.from_bytes(port))


def _aligned(size: int) -> int:
    """To 64 bits, as C lays them."""
    return (size + 7) // 8 * 8
