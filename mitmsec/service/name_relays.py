"""What a service needs so that its gate hears DNS: sockets for the gate to relay at, and what leads there.

    /etc/resolv.conf ─┐
    UDP flows ────────┴─► name servers ──► a relay each (mitmsec_redirect.dns_lead) ══ descriptors ══► each gate

The sockets stay ours: a gate that is begun anew reads on where the last one stopped, and as long as the service lives
nobody else can have their ports, which programs are connected to. Afterwards only root can: they are below 1024.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path

from mitmsec.channel import close_all
from mitmsec.core.model import Endpoint, Transport
from mitmsec.core.resolv_conf import nameservers
from mitmsec.service.control import NamesStatus
from mitmsec_redirect import netns
from mitmsec_redirect.connect_hook import ConnectHook
from mitmsec_redirect.dns_lead import Lead
from mitmsec_redirect.sockdiag import CookieLookup

RESOLV_CONF = Path("/etc/resolv.conf")
RELAYS_V4, RELAYS_V6 = 8, 5  # with the maps, as many as fit into a message (mitmsec.channel)
IP_PKTINFO, SO_ATTACH_FILTER, SO_RCVBUFFORCE = 8, 26, 33
ROOM_BYTES = 1 << 20  # a thousand questions, while the gate is busy or replaced
# Classic BPF (linux/filter.h): of the packet's interface, which for loopback is 1 in every network namespace.
LOAD_INTERFACE, IF_LOOPBACK = (0x20, 0, 0, 0xFFFFF008), (0x15, 0, 1, 1)
TAKE, DROP = (0x06, 0, 0, 0xFFFFFFFF), (0x06, 0, 0, 0)
PORTS = range(952, 511, -1)  # below 1024, and where IANA has assigned next to nothing
ANYBODYS = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")  # of the reader's network namespace; IPv6's, too


class NameRelays:
    """Made by `open`, ended by `close`."""

    def __init__(self, sockets: list[socket.socket], lead: Lead, held: ExitStack, named: Sequence[str] | None) -> None:
        self._sockets, self.lead, self._held, self._named = sockets, lead, held, named
        self._read: tuple[int, int, int] | None = None  # which resolv.conf

    @classmethod
    def open(cls, network: int, named: Sequence[str] | None = None) -> NameRelays:
        """In the network namespace `network`. `named`: a command's name servers, whose mounts may be others than ours.

        None: they are those of our /etc/resolv.conf, as it changes. Raises EbpfUnavailable, OSError.
        """
        with ExitStack() as held:
            sockets = netns.inside(network, relay_sockets)
            for one in sockets:
                held.callback(one.close)
            lead = Lead.open(sockets)
            held.callback(lead.close)
            relays = cls(sockets, lead, held.pop_all(), named)
        for address in named or ():
            lead.meet(address, named=True)
        relays.look()
        return relays

    def look(self) -> None:
        """Meet whom /etc/resolv.conf names by now; to be called ten times a second."""
        if self._named is not None:
            return
        with suppress(OSError, UnicodeDecodeError):  # there is none: they are met when they are asked
            now = RESOLV_CONF.stat()
            if (is_this := (now.st_ino, now.st_mtime_ns, now.st_size)) != self._read:
                self._read = is_this
                for address in nameservers(RESOLV_CONF.read_text()):
                    self.lead.meet(address, named=True)

    @property
    def status(self) -> NamesStatus:
        return NamesStatus(servers=self.lead.servers, beyond=self.lead.beyond)

    def beside(self, hook: ConnectHook) -> tuple[Lead, ConnectHook] | None:
        """For `UdpHook.open`. None: there are no relays here, so nothing is to be led."""
        return (self.lead, hook) if self._sockets else None

    def descriptors(self) -> tuple[int, ...]:
        """What a gate is given that begins now: three maps, then the sockets."""
        self.lead.renew()
        return (*self.lead.descriptors, *(one.fileno() for one in self._sockets))

    def close(self) -> None:
        """Idempotent. Who is still connected to a relay is refused from now on, once the gate has ended too."""
        self._held.close()


def relay_sockets() -> list[socket.socket]:
    """For this machine's programs, at all addresses that they may have; each with a port of its own.

    As many as can be had in the current network namespace, none where its low ports are anybody's or where it cannot be
    told whose a UDP socket is. What a message was sent to comes with it.
    """
    found: list[socket.socket] = []
    bound = _first_of_anybody()
    free = (port for port in PORTS if port < bound)
    for family, count in ((socket.AF_INET, RELAYS_V4), (socket.AF_INET6, RELAYS_V6)):
        with suppress(OSError):  # there is no such family
            while count and (port := next(free, None)) is not None:
                if not _has_name(port) and (one := _bound(family, port)) is not None:
                    found.append(one)
                    count -= 1
    if not all(map(_can_be_looked_up, found[:1])):  # the gate could not tell who was led to it
        close_all([one.detach() for one in found])
        return []
    return found


def _can_be_looked_up(sock: socket.socket) -> bool:
    """The kernel has sock_diag for UDP, or can load it."""
    loopback = "::1" if sock.family == socket.AF_INET6 else "127.0.0.1"
    end = Endpoint(address=loopback, port=sock.getsockname()[1])
    with closing(CookieLookup()) as sockets:
        return sockets.find(end, end, Transport.UDP) is not None


def _first_of_anybody() -> int:
    """From this port on no privilege is needed. Nobody must be able to have what programs are connected to."""
    try:
        return int(ANYBODYS.read_text())
    except FileNotFoundError:  # built without sysctl
        return PORTS.start + 1


def _has_name(port: int) -> bool:
    """Somebody expects a service there (/etc/services)."""
    try:
        socket.getservbyport(port, "udp")
    except OSError:
        return False
    return True


def _bound(family: socket.AddressFamily, port: int) -> socket.socket | None:
    """None: somebody else has the port. Raises OSError where there is no such family."""
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        _hear_loopback_only(sock)  # before anybody could send to it
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, ROOM_BYTES)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 has its own
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        sock.bind(("", port))
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            return None
        raise
    return sock


def _hear_loopback_only(sock: socket.socket) -> None:
    """What this machine sends to itself comes by loopback, whichever of its addresses it is sent to."""
    steps = struct.pack("=HBBIHBBIHBBIHBBI", *LOAD_INTERFACE, *IF_LOOPBACK, *TAKE, *DROP)
    code = ctypes.create_string_buffer(steps, len(steps))
    program = struct.pack("@HP", len(steps) // 8, ctypes.addressof(code))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
