"""A mirror of one network namespace's routes, in a map that the connect programs read.

A diverted connect() always succeeds, so the program must know by itself which destinations have no route, and which
source address an undiverted connection would have had. The kernel's own answers are kept for it:

    rules, routes, own addresses ──► prefixes ──► one witness each ──► RTM_GETROUTE ──► (source, errno) per prefix
            ▲                                                                                  │
            └── notifications: refresh()                            longest-prefix-match map ◄─┘

The mirror is *exact* where the answer depends on the destination alone. Rules by user, port, protocol or TOS, IPv6
routes by source, or too many routes make it partial: the program then refuses nothing, and the gate finds out instead.
Rules by mark are exact for unmarked sockets; rules by source for sockets that have not bound one.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterable, Iterator, Mapping

from mitmsec.core.model import Value
from mitmsec_redirect import netlink
from mitmsec_redirect.bpf import Map
from mitmsec_redirect.netlink import NetlinkBroken, Reply, RouteSocket
from mitmsec_redirect.prefixes import Prefix, partings, witnesses
from mitmsec_redirect.records import (
    COOKIE,
    NAMESPACE_FLAGS,
    ROUTE,
    ROUTE_KEY,
    ROUTE_KEY_FIXED_BITS,
    UNKNOWN_ADDRESS,
    V4_MAPPED,
    NamespaceFlag,
    RouteFlag,
)

PREFIX_LIMIT = 2048  # per family: one question each, tens of microseconds, while the supervisor does nothing else
DUMP_ATTEMPTS = 5
RTM_F_CLONED = 0x200
RTN_BROADCAST, RTN_MULTICAST = 3, 5
IFA_ADDRESS, IFA_LOCAL, IFAL_ADDRESS = 1, 2, 1
FRA_DST, FRA_SRC = 1, 2
# GOTO, PRIORITY, IIFNAME, FWMARK, FLOW, SUPPRESS_*, TABLE, FWMASK, OIFNAME, PAD, L3MDEV, PROTOCOL: the kernel's answer
# for an unmarked, unbound socket takes them into account by itself
RULE_ATTRIBUTES_ANSWERED = frozenset({FRA_DST, FRA_SRC, 3, 4, 6, 10, 11, 13, 14, 15, 16, 17, 18, 19, 21})
# where the kernel's answer changes although no table says so: "this" network and the wildcard, multicast, broadcast
SPECIAL_V4 = ((bytes(4), 0), (bytes(4), 8), (bytes(4), 32), (b"\xe0\0\0\0", 4), (b"\xff\xff\xff\xff", 32))
SPECIAL_V6 = ((bytes(16), 0), (bytes(16), 128), (b"\xff".ljust(16, b"\0"), 8), (b"\xfe\xc0".ljust(16, b"\0"), 10))


class Family(Value, frozen=True):
    """What differs between IPv4 and IPv6."""

    number: int
    special: tuple[tuple[bytes, int], ...]
    exact: NamespaceFlag
    mapped: bytes  # what stands before the address in a key


V4 = Family(number=socket.AF_INET, special=SPECIAL_V4, exact=NamespaceFlag.EXACT_V4, mapped=V4_MAPPED)
V6 = Family(number=socket.AF_INET6, special=SPECIAL_V6, exact=NamespaceFlag.EXACT_V6, mapped=b"")


class RouteMirror:
    """Keeps `routes` and the flags of its own namespace in `namespaces`, if it is one of those, up to date.

    Not thread-safe.

    Make it inside the namespace to be mirrored. Call `refresh` first, and whenever `fileno()` is readable.
    """

    def __init__(self, cookie: int, namespaces: Map, routes: Map) -> None:
        self._cookie = cookie
        self._namespaces = namespaces
        self._routes = routes
        self._known: dict[bytes, bytes] = {}
        self._news = netlink.notifications()
        self._ask = RouteSocket()
        self.flags = NamespaceFlag(0)

    def fileno(self) -> int:
        return self._news.fileno()

    @property
    def partial(self) -> bool:
        """Some destination without a route would be diverted instead of refused."""
        return self.flags & (V4.exact | V6.exact) != V4.exact | V6.exact

    def refresh(self) -> None:
        """Read what changed and tell the programs. Never raises for the state of the tables: it becomes partial."""
        self._drain()
        flags, answers = NamespaceFlag(0), dict[bytes, bytes]()
        for family in (V4, V6):
            with contextlib.suppress(OSError, NetlinkBroken):
                flags |= self._mirror(family, answers)
        try:
            self._write(answers)
        except OSError:  # the map is full
            flags = NamespaceFlag(0)
        self.flags = flags
        if self._namespaces.lookup(COOKIE.pack(self._cookie)) is not None:  # else a mirror would allow a namespace
            self._namespaces.update(COOKIE.pack(self._cookie), NAMESPACE_FLAGS.pack(flags))

    def close(self) -> None:
        self._news.close()
        self._ask.close()

    def _drain(self) -> None:
        while True:
            try:
                self._news.recv(netlink.RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # some were lost: all the more reason to read the tables
                    raise

    def _mirror(self, family: Family, answers: dict[bytes, bytes]) -> NamespaceFlag:
        prefixes, flags = self._tables(family)
        if len(prefixes) > PREFIX_LIMIT:
            return NamespaceFlag(0)
        for prefix, witness in witnesses(prefixes):
            answers[self._key(family, prefix)] = self._answer(family, prefix, witness)
        return flags

    def _tables(self, family: Family) -> tuple[set[Prefix], NamespaceFlag]:
        for attempt in range(DUMP_ATTEMPTS):
            try:
                return self._read_tables(family)
            except NetlinkBroken:
                if attempt == DUMP_ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable")

    def _read_tables(self, family: Family) -> tuple[set[Prefix], NamespaceFlag]:
        rules = self._ask.dump(netlink.RTM_GETRULE, family.number, netlink.RULE_MESSAGE)
        routes = self._ask.dump(netlink.RTM_GETROUTE, family.number, netlink.ROUTE_MESSAGE)
        lasting = [route for route in routes if not route.fields[8] & RTM_F_CLONED]
        prefixes = {Prefix.of(address, length) for address, length in family.special}
        prefixes.update(_destinations(family, [*rules, *lasting]))
        if family is V6:
            prefixes.update(self._source_boundaries())
            prefixes -= {
                prefix for prefix in prefixes if prefix.length >= 96 and prefix.first >> 32 == 0xFFFF
            }  # is IPv4
        return prefixes, _flags(family, rules, lasting)

    def _source_boundaries(self) -> Iterator[Prefix]:
        """Where RFC 6724's choice of an IPv6 source changes: at its labels, and where our own addresses part."""
        for label in self._ask.dump(netlink.RTM_GETADDRLABEL, V6.number, netlink.LABEL_MESSAGE):
            yield Prefix.of(label.attributes.get(IFAL_ADDRESS, bytes(16)), label.fields[2])
        own = self._ask.dump(netlink.RTM_GETADDR, V6.number, netlink.ADDRESS_MESSAGE)
        yield from partings(
            (reply.attributes.get(IFA_LOCAL, reply.attributes[IFA_ADDRESS]), reply.fields[1])
            for reply in own
            if len(reply.attributes.get(IFA_ADDRESS, b"")) == 16
        )

    def _answer(self, family: Family, prefix: Prefix, witness: bytes) -> bytes:
        try:
            reply = self._ask.route_to(witness)
        except TimeoutError:
            raise
        except OSError as error:
            return ROUTE.pack(UNKNOWN_ADDRESS, error.errno or errno.ENETUNREACH, 0)
        if reply.fields[7] in (RTN_BROADCAST, RTN_MULTICAST):
            return ROUTE.pack(UNKNOWN_ADDRESS, errno.ENETUNREACH, 0)  # tcp_v4_connect, tcp_v6_connect
        source = reply.attributes.get(netlink.RTA_PREFSRC)
        if source is None:
            return ROUTE.pack(UNKNOWN_ADDRESS, errno.EADDRNOTAVAIL, 0)
        whole = RouteFlag.SOURCE_IS_REMOTE if source == witness and prefix.length < prefix.width else 0
        return ROUTE.pack(family.mapped + source, 0, whole)

    def _key(self, family: Family, prefix: Prefix) -> bytes:
        address = family.mapped + prefix.first.to_bytes(prefix.width // 8)
        return ROUTE_KEY.pack(ROUTE_KEY_FIXED_BITS + 8 * len(family.mapped) + prefix.length, self._cookie, address)

    def _write(self, answers: Mapping[bytes, bytes]) -> None:
        """New and changed ones first: in between, no destination loses its answer. In a full map, old ones first."""
        try:
            self._insert(answers)
        except OSError:
            self._remove_all_but(answers)
            self._insert(answers)
        self._remove_all_but(answers)

    def _insert(self, answers: Mapping[bytes, bytes]) -> None:
        for key, value in answers.items():
            if self._known.get(key) != value:
                self._routes.update(key, value)
                self._known[key] = value

    def _remove_all_but(self, answers: Mapping[bytes, bytes]) -> None:
        for key in [key for key in self._known if key not in answers]:
            self._routes.delete(key)
            del self._known[key]


def _destinations(family: Family, replies: Iterable[Reply]) -> Iterator[Prefix]:
    """Destinations of rules and routes: both keep the length second and the address in attribute 1."""
    width = 4 if family is V4 else 16
    for reply in replies:
        yield Prefix.of(reply.attributes.get(FRA_DST, bytes(width)), reply.fields[1])


def _flags(family: Family, rules: Iterable[Reply], routes: Iterable[Reply]) -> NamespaceFlag:
    if any(route.fields[3] or route.fields[2] for route in routes):  # by TOS, by source
        return NamespaceFlag(0)
    flags = family.exact
    for rule in rules:
        if rule.fields[3] or not RULE_ATTRIBUTES_ANSWERED.issuperset(rule.attributes):
            return NamespaceFlag(0)
        if rule.fields[2]:
            flags |= NamespaceFlag.SOURCE_MATTERS
    return flags
