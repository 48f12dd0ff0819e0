"""Windows' table of sockets, asked through iphlpapi.dll: whose a connection is, and which there are.

Nothing here has been run on Windows; tests/redirect/test_windows_table.py holds the calls against what is documented
with a library object of its own. `windows_rows` reads the rows.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from ctypes import byref, c_int, c_uint32, c_void_p
from ipaddress import ip_address
from typing import Any, Final

import psutil
from msgspec.structs import replace

from mitmsec.core.model import Confidence, Endpoint, Transport
from mitmsec_redirect.divert_signals import Flow
from mitmsec_redirect.socket_table import Named, Pair, packed, pair_of
from mitmsec_redirect.windows_processes import Now, now
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


class WindowsTable:
    """`library` stands for iphlpapi.dll; `began_ns` says when a process began. Raises OSError where there is none."""

    def __init__(
        self,
        library: Any = None,
        began_ns: Callable[[int], int | None] | None = None,
        clock: Callable[[], Now] = now,
    ) -> None:
        self._library = library or _iphlpapi()
        self._began_ns = began_ns or _began_ns
        self._clock = clock

    def sockets(self, transport: Transport) -> Iterator[OwnedSocket]:
        """Of IPv4, then of IPv6. Raises OSError."""
        for kind in KINDS[transport]:
            found = parse(kind, self._read(kind))
            if isinstance(found, Malformed):
                raise OSError(f"iphlpapi.dll: {found.reason}")
            yield from found

    def named(self, flow: Flow) -> Named | None:
        """Who made the flow's socket; inferred where sockets of several could be it. Raises OSError.

        UDP sockets name no remote, so of those the local end decides, the one that says most first.
        """
        found = [one for one in self.sockets(flow.transport) if _may_be(one, flow)]
        first = min(found, key=lambda one: _vagueness(one.local, flow.local), default=None)
        if first is None or first.pid is None:
            return None
        named = self._named(first.pid, first.created_ns)
        if named is None or len({one.pid for one in found}) == 1:
            return named
        return replace(named, confidence=Confidence.INFERRED)

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
        if created_ns is None:
            return Named(pid, Confidence.INFERRED)
        began_ns, at = self._began_ns(pid), self._clock()
        made_ns = at.event_ns - (at.unix_ns - created_ns)
        if began_ns is None:
            return Named(pid, Confidence.INFERRED, made_ns)
        return Named(pid, Confidence.TABLE, made_ns) if began_ns <= created_ns + ROUNDING_NS else None

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


def _may_be(one: OwnedSocket, flow: Flow) -> bool:
    is_there = one.local.port == flow.local.port and _is_at(one.local, flow.local)
    return one.pid is not None and is_there and (one.remote == flow.remote or one.transport is Transport.UDP)


def _is_at(bound: Endpoint, local: Endpoint) -> bool:
    """A socket that is bound to no address is at all of its family's, and one of IPv6 may have IPv4's too."""
    is_unbound = ip_address(bound.address).is_unspecified and (bound.is_v6 or not local.is_v6)
    return is_unbound or bound.address == local.address


def _vagueness(bound: Endpoint, local: Endpoint) -> int:
    """0: bound to this very address."""
    return 0 if bound.address == local.address else 1 if bound.is_v6 == local.is_v6 else 2


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
