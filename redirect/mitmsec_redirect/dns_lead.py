"""Which name servers have a relay of the gate, as the UDP programs are told of it, and as the gate reads it.

    supervisor: `Lead`      server ─► port of its relay (servers)    asked by what sends
    gate: `LedServers`      port of the relay ─► server (behind)     asked by what receives, and by the gate
                            cookies of sockets (led)                 noted by what sends, asked by the gate

A relay is a socket on all of the machine's addresses that hears loopback only, with a port below 1024 of its own. It
serves the first server that it was given for as long as it lives: programs may be connected to it. So there are as many
servers as relays; what comes later is not led, and counted. What a program sends to a relay by itself, without having
been led there, is not for the gate: it might else ask for whom this machine's rules let ask nobody.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from ipaddress import IPv6Address, ip_address

from mitmsec.core.model import Endpoint, Transport
from mitmsec_redirect import kernel_types, records
from mitmsec_redirect.bpf import Map, MapKind
from mitmsec_redirect.connect_hook import ConnectHook
from mitmsec_redirect.lead_steps import DNS_PORT, LeadLayout
from mitmsec_redirect.sockdiag import CookieLookup

SERVERS_LIMIT = 64
LED_LIMIT = 16384  # sockets; the one that was led longest ago makes room
RESERVED = 2  # relays of each family, for servers that the machine itself names
BEYOND_LIMIT = 1024  # whom there is no relay for, counted once each
_ADDRESS_BYTES = 16


class Lead:
    """Made by `open`; it owns its maps, not the sockets. Not thread-safe."""

    def __init__(self, maps: tuple[Map, Map, Map], held: ExitStack, relays: Iterable[socket.socket]) -> None:
        self._servers, self._behind, self._asking = maps
        self._held = held
        self._free: dict[bool, list[int]] = {False: [], True: []}
        for relay in relays:
            self._free[relay.family == socket.AF_INET6].append(relay.getsockname()[1])
        self._led: dict[str, int] = {}
        self._beyond: set[str] = set()

    @classmethod
    def open(cls, relays: Sequence[socket.socket]) -> Lead:
        """No server is led yet. Raises EbpfUnavailable, OSError."""
        with ExitStack() as held:
            port = records.INDEX.size

            def make(name: str, kind: MapKind, key: int, value: int, entries: int) -> Map:
                made = Map.create(kind, key, value, entries, f"ms_dns_{name}")
                held.callback(made.close)
                return made

            servers = make("servers", MapKind.HASH, _ADDRESS_BYTES, port, SERVERS_LIMIT)
            behind = make("behind", MapKind.HASH, port, _ADDRESS_BYTES, SERVERS_LIMIT)
            led = make("led", MapKind.LRU_HASH, records.COOKIE.size, port, LED_LIMIT)
            return cls((servers, behind, led), held.pop_all(), relays)

    def layout(self, hook: ConnectHook) -> LeadLayout | None:
        """For `UdpHook`, beside this connect hook. None: this kernel does not tell its types."""
        offsets = kernel_types.lead_offsets()
        if offsets is None:
            return None
        shared = {name: hook.map_fd(name) for name in ("truth", "routes", "namespaces", "heartbeat")}
        own = {"servers": self._servers.fd, "behind": self._behind.fd, "led": self._asking.fd}
        return LeadLayout(**own, **shared, offsets=offsets)

    def meet(self, address: str, *, named: bool = False) -> None:
        """A program asks this name server, or may: from now on by its relay, if it is to have one.

        The last RESERVED are for those that the machine itself has `named`: programs ask whom they like.
        """
        if address in self._led or not _can_be_led(address):
            return
        free = self._free[":" in address]
        if len(free) <= (0 if named else RESERVED):
            if len(self._beyond) < BEYOND_LIMIT:
                self._beyond.add(address)
            return
        self._beyond.discard(address)
        port = free.pop(0)
        self._led[address] = port
        field, packed = records.INDEX.pack(records.port_field(port)), records.address_bytes(address)
        self._behind.update(field, packed)  # first: no answer must be without its server
        self._servers.update(packed, field)

    def renew(self) -> None:
        """Another gate begins: what the one before had withdrawn is led again."""
        for address, port in self._led.items():
            self._servers.update(records.address_bytes(address), records.INDEX.pack(records.port_field(port)))

    @property
    def servers(self) -> tuple[str, ...]:
        """Who has a relay, in the order in which they were met."""
        return tuple(self._led)

    @property
    def beyond(self) -> int:
        """How many servers were met that have none; at most BEYOND_LIMIT."""
        return len(self._beyond)

    @property
    def descriptors(self) -> tuple[int, int, int]:
        """For `LedServers`; ours, so duplicate them by passing them on."""
        return self._servers.fd, self._behind.fd, self._asking.fd

    def close(self) -> None:
        """Idempotent."""
        self._held.close()


def _can_be_led(address: str) -> bool:
    """One machine's, and without an interface: an address of a link means nothing without that."""
    ip = ip_address(address)
    is_odd = ip.is_link_local if isinstance(ip, IPv6Address) else ip.is_reserved  # to ipaddress, ::1 is reserved too
    return not (ip.is_multicast or ip.is_unspecified or is_odd)


class LedServers:
    """The gate's end, without privilege (Linux 5.19), in the relays' network. It owns the descriptors; not
    thread-safe.
    """

    def __init__(self, servers_fd: int, behind_fd: int, led_fd: int) -> None:
        self._servers = Map(servers_fd, _ADDRESS_BYTES, records.INDEX.size)
        self._behind = Map(behind_fd, records.INDEX.size, _ADDRESS_BYTES)
        self._led = Map(led_fd, records.COOKIE.size, records.INDEX.size)
        self._sockets = CookieLookup()

    def behind(self, port: int) -> Endpoint | None:
        """The server of the relay with this port."""
        packed = self._behind.lookup(records.INDEX.pack(records.port_field(port)))
        return None if packed is None else Endpoint(address=records.address_text(packed), port=DNS_PORT)

    def leads(self, asker: Endpoint, relay: Endpoint) -> bool:
        """Who asks from there, at this address and port of the relay, was led to it, and would get an answer."""
        try:
            found = self._sockets.find(asker, relay, Transport.UDP)
        except OSError:  # the kernel has no memory for that now
            return False
        return found is not None and self._led.lookup(records.COOKIE.pack(found.cookie)) is not None

    def withdraw(self, server: Endpoint) -> None:
        """Lead no further question to its relay, until `restore`."""
        self._servers.delete(records.address_bytes(server.address))

    def restore(self, server: Endpoint, port: int) -> None:
        """Lead to this relay again."""
        field = records.INDEX.pack(records.port_field(port))
        self._servers.update(records.address_bytes(server.address), field)

    def close(self) -> None:
        self._sockets.close()
        for one in (self._servers, self._behind, self._led):
            os.close(one.fd)
