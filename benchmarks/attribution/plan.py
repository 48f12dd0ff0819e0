"""Which flows a corpus has: kinds, numbers, addresses. Pure; the same count and seed give the same plan."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, ip_address

V4_PREFIX, V6_PREFIX = "198.18.0.0/15", "2001:db8:a77::/64"
FLOWS_LIMIT = 1 << 17  # addresses in V4_PREFIX, which is for benchmarks (RFC 2544)
_V4_FIRST, _V6_FIRST = IPv4Address("198.18.0.0"), IPv6Address("2001:db8:a77::")


class Family(StrEnum):
    """How the caller writes the address."""

    MAPPED = "mapped"  # an IPv6 socket that calls ::ffff:a.b.c.d
    V4 = "v4"
    V6 = "v6"


class Course(StrEnum):
    """Which way a flow goes and what carries it; what a backend can see is a set of these."""

    INBOUND_TCP = "inbound/tcp"
    INBOUND_UDP = "inbound/udp"
    OUTBOUND_TCP = "outbound/tcp"
    OUTBOUND_UDP = "outbound/udp"


class Pattern(StrEnum):
    """What the caller does with processes and sockets around its flow."""

    BASH = "bash"
    BRIEF = "brief"
    CURL = "curl"
    EXEC_CHAIN = "exec_chain"
    FORKED = "forked"
    INETD = "inetd"
    INHERITED = "inherited"
    LENT = "lent"
    PASSED = "passed"
    PREFORKED = "preforked"
    REUSED = "reused"
    SERVER = "server"
    STEADY = "steady"
    THREADS = "threads"
    UDP_CONNECTED = "udp_connected"
    UDP_SENDTO = "udp_sendto"
    UDP_SERVER = "udp_server"


@dataclass(frozen=True, slots=True)
class Kind:
    """How a pattern is planned: `flows` of one unit belong together, `weight` is its share of all units."""

    course: Course
    flows: int
    weight: int
    why: str


_OUT, _IN = Course.OUTBOUND_TCP, Course.INBOUND_TCP
KINDS: dict[Pattern, Kind] = {
    Pattern.BASH: Kind(_OUT, 1, 3, "an interpreter that is not ours, executed: `exec 9<>/dev/tcp/…`"),
    Pattern.BRIEF: Kind(_OUT, 1, 20, "connects, writes and ends at once: gone before anybody reads its first packet"),
    Pattern.CURL: Kind(_OUT, 1, 3, "a whole program from start to end, plain HTTP"),
    Pattern.EXEC_CHAIN: Kind(_OUT, 3, 2, "Python, bash, curl in one process, a flow each, never waiting for an answer"),
    Pattern.FORKED: Kind(_OUT, 1, 10, "a grandchild connects and waits for the answer; its parent has ended"),
    Pattern.INETD: Kind(_IN, 1, 3, "the parent accepts, a child serves: the parent's flow"),
    Pattern.INHERITED: Kind(_OUT, 1, 3, "connects as one program, executes another, which writes and reads"),
    Pattern.LENT: Kind(_OUT, 1, 8, "one process makes the socket, another, of another program, connects it"),
    Pattern.PASSED: Kind(_OUT, 1, 8, "one process connects and ends, another, of another program, writes and reads"),
    Pattern.PREFORKED: Kind(_IN, 1, 6, "workers of one listener, which come and go: the worker that accepts"),
    Pattern.REUSED: Kind(_OUT, 2, 5, "a brief caller, then another program under the very same pid"),
    Pattern.SERVER: Kind(_IN, 1, 3, "one process listens, accepts and serves"),
    Pattern.STEADY: Kind(_OUT, 20, 1, "one process with many connections, as a browser"),
    Pattern.THREADS: Kind(_OUT, 4, 2, "threads that are not the first one connect: the flow is the process's"),
    Pattern.UDP_CONNECTED: Kind(Course.OUTBOUND_UDP, 1, 3, "a connected UDP socket"),
    Pattern.UDP_SENDTO: Kind(Course.OUTBOUND_UDP, 1, 3, "an unconnected one, `sendto()`"),
    Pattern.UDP_SERVER: Kind(Course.INBOUND_UDP, 1, 3, "one process answers datagrams"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Flow:
    """One flow to be made; its number is its address."""

    number: int
    pattern: Pattern
    family: Family

    @property
    def course(self) -> Course:
        """Direction and transport, which follow from the pattern."""
        return KINDS[self.pattern].course

    @property
    def far_end(self) -> str:
        """The address that belongs to this flow alone, as the caller writes it."""
        match self.family:
            case Family.V4:
                return str(_V4_FIRST + self.number)
            case Family.MAPPED:
                return f"::ffff:{_V4_FIRST + self.number}"
            case Family.V6:
                return str(_V6_FIRST + self.number)


Unit = tuple[Flow, ...]


def number_of(address: str) -> int | None:
    """The flow whose far end this is, however it is written; None for any other address or text."""
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return None
    if isinstance(ip, IPv6Address):
        if ip.ipv4_mapped is None:
            number = int(ip) - int(_V6_FIRST)
            return number if 0 <= number < FLOWS_LIMIT else None
        ip = ip.ipv4_mapped
    number = int(ip) - int(_V4_FIRST)
    return number if 0 <= number < FLOWS_LIMIT else None


def plan(count: int, seed: int, patterns: Iterable[Pattern] = tuple(Pattern)) -> tuple[Unit, ...]:
    """Units with at least `count` flows in all (at most a unit's more), every pattern among them at least once.

    Raises ValueError where there are not so many addresses, or no pattern.
    """
    chosen = sorted(set(patterns))
    if not chosen or not 0 < count <= FLOWS_LIMIT - 64 * len(chosen):
        raise ValueError(f"{count} flows of {len(chosen)} patterns")
    dice = random.Random(seed)  # not for secrets: for repetition
    order = list(chosen)
    planned = sum(KINDS[pattern].flows for pattern in order)
    weights = [KINDS[pattern].weight for pattern in chosen]
    while planned < count:
        (pattern,) = dice.choices(chosen, weights)
        order.append(pattern)
        planned += KINDS[pattern].flows
    dice.shuffle(order)
    return tuple(_numbered(order, dice))


def _numbered(order: Sequence[Pattern], dice: random.Random) -> Iterable[Unit]:
    number = 1
    for pattern in order:
        flows = KINDS[pattern].flows
        yield tuple(Flow(number + at, pattern, dice.choice(_families(pattern))) for at in range(flows))
        number += flows


def _families(pattern: Pattern) -> Sequence[Family]:
    """Who calls from outside has no use for a mapped address: the wire carries IPv4."""
    inbound = KINDS[pattern].course in (Course.INBOUND_TCP, Course.INBOUND_UDP)
    return (Family.V4, Family.V6) if inbound else tuple(Family)
