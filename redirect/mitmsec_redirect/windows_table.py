"""Windows' table of sockets, asked through iphlpapi.dll: whose a connection is, and which there are.

Nothing here has been run on Windows; tests/redirect/test_windows_table.py holds the calls against what is documented
with a library object of its own. `windows_rows` reads the rows.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from ctypes import byref, c_int, c_uint32, c_void_p
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final

import psutil

from mitmsec.core.model import Confidence, Endpoint, Transport
from mitmsec_redirect.divert_signals import Flow
from mitmsec_redirect.socket_table import Pair, packed, pair_of
from mitmsec_redirect.windows_rows import Kind, Malformed, OwnedSocket, parse

NO_ERROR, ERROR_INSUFFICIENT_BUFFER = 0, 122
AF_INET, AF_INET6 = 2, 23  # winsock2.h
TCP_TABLE_OWNER_MODULE_ALL, UDP_TABLE_OWNER_MODULE = 8, 2
TRIES = 8  # the table may grow between the question for its size and the one for its rows
SPARE_BYTES = 16 * 1024  # so that it seldom does
ROUNDING_NS = 1_000_000  # psutil's floating point; nobody makes a socket in the first thousandth of a second
KINDS: Final = {
    Transport.TCP: (Kind.TCP4_MODULE, Kind.TCP6_MODULE),
    Transport.UDP: (Kind.UDP4_MODULE, Kind.UDP6_MODULE),
}


@dataclass(frozen=True, slots=True)
class Named:
    """Whom the table names for a flow, and how far that holds.

    TABLE: the process began before the socket was made. INFERRED: one of these times cannot be asked for, so the pid
    may be somebody else's by now.
    """

    pid: int
    confidence: Confidence


class WindowsTable:
    """`library` stands for iphlpapi.dll; `began_ns` says when a process began. Raises OSError where there is none."""

    def __init__(self, library: Any = None, began_ns: Callable[[int], int | None] | None = None) -> None:
        self._library = library or _iphlpapi()
        self._began_ns = began_ns or _began_ns

    def sockets(self, transport: Transport) -> Iterator[OwnedSocket]:
        """Of IPv4, then of IPv6. Raises OSError."""
        for kind in KINDS[transport]:
            found = parse(kind, self._read(kind))
            if isinstance(found, Malformed):
                raise OSError(f"iphlpapi.dll: {found.reason}")
            yield from found

    def owner_of(self, flow: Flow) -> int | None:
        """The pid of who made the flow's socket, as `named` says it, however far that holds."""
        named = self.named(flow)
        return None if named is None else named.pid

    def named(self, flow: Flow) -> Named | None:
        """Who made the flow's socket. UDP sockets name no remote, so of those by the local end. Raises OSError."""
        for one in self.sockets(flow.transport):
            if one.pid is None or one.local.port != flow.local.port or not _is_at(one.local, flow.local):
                continue
            if one.remote == flow.remote or one.transport is Transport.UDP:
                return self._named(one.pid, one.created_ns)
        return None

    def pairs(self) -> frozenset[Pair]:
        return frozenset(
            pair_of(packed(one.local), one.local.port, packed(one.remote), one.remote.port)
            for one in self.sockets(Transport.TCP)
            if one.remote is not None and one.is_connected
        )

    def close(self) -> None:
        """Nothing is held."""

    def _named(self, pid: int, created_ns: int | None) -> Named | None:
        """None: the process that has the pid now began later."""
        began_ns = None if created_ns is None else self._began_ns(pid)
        if began_ns is None or created_ns is None:
            return Named(pid, Confidence.INFERRED)
        return Named(pid, Confidence.TABLE) if began_ns <= created_ns + ROUNDING_NS else None

    def _read(self, kind: Kind) -> bytes:
        size = c_uint32(0)
        buffer = None
        family = AF_INET6 if kind.is_v6 else AF_INET
        for _ in range(TRIES):
            if kind.transport is Transport.TCP:
                ask, rows = self._library.GetExtendedTcpTable, TCP_TABLE_OWNER_MODULE_ALL
            else:
                ask, rows = self._library.GetExtendedUdpTable, UDP_TABLE_OWNER_MODULE
            status = ask(buffer, byref(size), 0, family, rows, 0)
            if status == NO_ERROR:
                return bytes(buffer or b"")
            if status != ERROR_INSUFFICIENT_BUFFER:
                raise OSError(f"iphlpapi.dll: error {status}")
            size.value += SPARE_BYTES
            buffer = ctypes.create_string_buffer(size.value)
        raise OSError("iphlpapi.dll: the table of sockets grows faster than it can be read")


def _is_at(bound: Endpoint, local: Endpoint) -> bool:
    """A socket that is bound to no address is at all of them."""
    return bound.address == local.address or ip_address(bound.address).is_unspecified


def _began_ns(pid: int) -> int | None:
    try:
        return int(psutil.Process(pid).create_time() * 1e9)
    except psutil.Error:
        return None


def _iphlpapi() -> Any:
    if not hasattr(ctypes, "WinDLL"):
        raise OSError("iphlpapi.dll is there on Windows only")
    return _declared(ctypes.WinDLL("iphlpapi"))


def _declared(library: Any) -> Any:
    for name in ("GetExtendedTcpTable", "GetExtendedUdpTable"):
        function = getattr(library, name)
        function.argtypes, function.restype = [c_void_p, c_void_p, c_int, c_uint32, c_int, c_uint32], c_uint32
    return library
