"""The filter strings of the `windivert` backend's handles, and what they match beyond what was asked for.

A filter may hold 256 tests and 1,277 tokens, and libebpfdivert lowers only 64 alternatives into the kernel: with one
more, *all* packets come to user space to be judged. So a filter of many flows is widened, by as little as fits:

    FLOWS        (ip.DstAddr == 192.0.2.7 and tcp.SrcPort == 40001) or …     nothing else
    PORTS        tcp.SrcPort == 40001 or tcp.SrcPort == 40007 or …           whatever else goes out from these ports
    RANGES       (tcp.SrcPort >= 40001 and tcp.SrcPort <= 40007) or …        and from those between; smallest gaps first
    EVERYTHING   tcp.SrcPort <= 49999 or tcp.SrcPort >= 52000                all but own traffic; only when asked for

The same flows give the same text. Our own connections to origins come from a reserved range of local ports, which no
filter that diverts matches, whatever its width. The language has neither negated groups nor lists.

Later fragments have no ports, so filters of flows match fragments whatever their flow; not with libebpfdivert: what it
cannot lower (`fragment`, `loopback`, `ipv6.NextHdr`, most `localPort`) it widens to whole protocols.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from itertools import pairwise

from mitmsec.core.model import Transport, Value

EVENTS_FILTER = "event == CONNECT and (tcp or (udp and remotePort == 443))"
# the first bit of a long header; later packets of a QUIC connection have a short one (RFC 9000 §17)
QUIC_FILTER = "outbound and udp.DstPort == 443 and udp.Payload[0] >= 128"
FRAGMENTS_V4 = {
    Transport.TCP: "(ip.Protocol == 6 and fragment)",
    Transport.UDP: "(ip.Protocol == 17 and fragment)",
}
FRAGMENTS_V6 = "ipv6.NextHdr == 44"
TESTS_LEAST, RULES_LEAST = 40, 15  # so that two ranges of TCP and two of UDP always fit
TOKENS_MOST = 1_277  # of either compiler, parentheses included; ranges stay below it by their number of tests


class Limits(Value, frozen=True):
    """What a filter's compiler takes: tests, and alternatives once the expression is multiplied out.

    Raises ValueError for less than any filter needs.
    """

    tests: int
    rules: int
    fragments_and_loopback: bool  # whether they can be told apart without taking whole protocols along

    def __post_init__(self) -> None:
        if self.tests < TESTS_LEAST or self.rules < RULES_LEAST:
            raise ValueError(f"no filter fits into {self.tests} tests and {self.rules} alternatives")


WINDIVERT = Limits(tests=255, rules=255, fragments_and_loopback=True)
EBPFDIVERT = Limits(tests=255, rules=64, fragments_and_loopback=False)


class Ports(Value, frozen=True, order=True):
    """A range of ports, both ends included. Raises ValueError unless 0 <= first <= last <= 65535."""

    first: int
    last: int

    def __post_init__(self) -> None:
        if not 0 <= self.first <= self.last <= 0xFFFF:
            raise ValueError(f"{self.first}..{self.last} is no range of ports")

    def __contains__(self, port: int) -> bool:
        return self.first <= port <= self.last


class Own(Value, frozen=True):
    """The gate's listening port, and the local ports of its connections to origins: those are never diverted.

    Raises ValueError if the listener is among them: its answers must be diverted.
    """

    gate_port: int
    upstream: Ports

    def __post_init__(self) -> None:
        if self.gate_port in self.upstream:
            raise ValueError(f"the gate's port {self.gate_port} is among those of its own connections")

    def others(self) -> tuple[Ports, ...]:
        """All ports but these."""
        taken = sorted([self.upstream, Ports(first=self.gate_port, last=self.gate_port)])
        edges = [-1, *(edge for ports in taken for edge in (ports.first, ports.last)), 0x10000]
        free = ((edges[at] + 1, edges[at + 1] - 1) for at in (0, 2, 4))
        return tuple(Ports(first=first, last=last) for first, last in free if first <= last)


class Term(Value, frozen=True, order=True):
    """What a filter says of one flow: the program's own port, and the far address (4 or 16 bytes)."""

    local_port: int
    remote: bytes
    transport: Transport = Transport.TCP


class Width(IntEnum):
    """How much more than its flows a filter matches; the drawing above."""

    FLOWS = 0
    PORTS = 1
    RANGES = 2
    EVERYTHING = 3


class FlowFilter(Value, frozen=True):
    """A filter that matches every flow it was made for. What else it matches must go on untouched."""

    text: str
    width: Width
    terms: frozenset[Term]  # of width FLOWS: these flows
    ports: tuple[
        tuple[Transport, Ports], ...
    ]  # of any other width: whatever flow of the program's side has such a port

    def covers(self, term: Term) -> bool:
        """Whether packets of this flow are matched already, so that no new filter is needed."""
        return term in self.terms or any(
            term.transport is transport and term.local_port in ports for transport, ports in self.ports
        )


def socket_filter(ports: Iterable[Ports] = (), limits: Limits = WINDIVERT) -> str:
    """SOCKET layer, sniffed: who connects, to these remote ports if any are named (if too many, to some more)."""
    runs = _merged(_runs(ports), min(limits.rules, (limits.tests - 1) // 2))
    return f"tcp and ({_any('remotePort', runs)})" if runs else "tcp"


def syn_filter(own: Own, ports: Iterable[Ports] = (), limits: Limits = WINDIVERT) -> str:
    """NETWORK layer, diverted: the first SYN of every connection but ours, to these remote ports if any are named."""
    runs = _merged(_runs(ports), min(limits.rules // 3, (limits.tests - 7) // 2))
    there = f" and ({_any('tcp.DstPort', runs)})" if runs else ""
    return f"outbound and tcp.Syn and !tcp.Ack and ({_any('tcp.SrcPort', own.others())}){there}"


def data_filter(terms: Iterable[Term], own: Own, limits: Limits = WINDIVERT) -> FlowFilter:
    """NETWORK layer, diverted: outgoing packets of these flows, and all of the gate's answers.

    TCP only. Terms with a port of our own are left out.
    """
    kept = _ours_left_out((term for term in terms if term.transport is Transport.TCP), own)
    rules, tests = limits.rules - 3, limits.tests - 5
    groups = _groups(kept)
    if _count(groups) <= rules and len(groups) + _tests(groups) <= tests:
        exact = _data(_exact(groups, "Dst", "Src"), own, limits, Width.FLOWS, kept)
        if tokens(exact.text) <= TOKENS_MOST:
            return exact
    runs = _runs_of(kept, Transport.TCP)
    if len(runs) <= rules and sum(map(_tests_of, runs)) <= tests:
        return _data([_any("tcp.SrcPort", runs)], own, limits, Width.PORTS, ports=runs)
    runs = _merged(runs, min(rules, tests // 2), apart=own.upstream)
    return _data([_any("tcp.SrcPort", runs)], own, limits, Width.RANGES, ports=runs)


def everything_filter(own: Own, limits: Limits = WINDIVERT) -> FlowFilter:
    """As `data_filter`, for whatever flows."""
    return _data([_any("tcp.SrcPort", own.others())], own, limits, Width.EVERYTHING, ports=own.others())


def capture_filter(terms: Iterable[Term], own: Own, limits: Limits = WINDIVERT) -> FlowFilter:
    """NETWORK layer, sniffed: packets of these flows, both ways. Terms with a TCP port of our own are left out."""
    kept = _ours_left_out(terms, own)
    rules, tests = limits.rules - 3, limits.tests - 5
    groups = _groups(kept)
    if not groups:
        return FlowFilter(text="false", width=Width.FLOWS, terms=kept, ports=())
    if 3 * _count(groups) <= rules and 3 * (len(groups) + _tests(groups)) + 4 <= tests:
        out, back = _or(_exact(groups, "Dst", "Src")), _or(_exact(groups, "Src", "Dst"))
        exact = FlowFilter(text=_both_ways(out, back, limits), width=Width.FLOWS, terms=kept, ports=())
        if tokens(exact.text) <= TOKENS_MOST:
            return exact
    runs = {transport: found for transport in Transport if (found := _runs_of(kept, transport))}
    if 3 * _count(runs) <= rules and 3 * _tests(runs) + 4 <= tests:
        return _capture(runs, limits, Width.PORTS)
    most = min(rules // 3, (tests - 10) // 6) // len(runs)
    apart = {Transport.TCP: own.upstream}
    return _capture({kind: _merged(found, most, apart.get(kind)) for kind, found in runs.items()}, limits, Width.RANGES)


def capture_everything_filter(own: Own, limits: Limits = WINDIVERT) -> FlowFilter:
    """As `capture_filter`, for whatever flows."""
    runs = {Transport.TCP: own.others(), Transport.UDP: (Ports(first=0, last=0xFFFF),)}
    return _capture(runs, limits, Width.EVERYTHING)


def tokens(text: str) -> int:
    """As the compiler counts them."""
    return len(text.split()) + text.count("(") + text.count(")") + text.count("!")


type _Runs = tuple[Ports, ...]


def _data(
    alternatives: Sequence[str],
    own: Own,
    limits: Limits,
    width: Width,
    terms: frozenset[Term] = frozenset(),
    ports: _Runs = (),
) -> FlowFilter:
    gate = f"tcp.SrcPort == {own.gate_port}"
    text = f"outbound and ({_or([gate, *alternatives, *_fragments(limits, Transport.TCP)])})"
    return FlowFilter(text=text, width=width, terms=terms, ports=tuple((Transport.TCP, run) for run in ports))


def _capture(runs: dict[Transport, _Runs], limits: Limits, width: Width) -> FlowFilter:
    out, back = (_or([_any(f"{kind}.{end}Port", found) for kind, found in runs.items()]) for end in ("Src", "Dst"))
    ports = tuple((transport, run) for transport, found in runs.items() for run in found)
    return FlowFilter(text=_both_ways(out, back, limits), width=width, terms=frozenset(), ports=ports)


def _both_ways(out: str, back: str, limits: Limits) -> str:
    """On loopback answers are outbound too."""
    ways = [f"(outbound and ({out}))", f"(inbound and ({back}))"]
    if limits.fragments_and_loopback:
        ways.append(f"(outbound and loopback and ({back}))")
    return _or([*ways, *_fragments(limits, *Transport)])


def _fragments(limits: Limits, *transports: Transport) -> Iterator[str]:
    if limits.fragments_and_loopback:
        yield from (FRAGMENTS_V4[transport] for transport in transports)
        yield FRAGMENTS_V6


def _or(alternatives: Iterable[str]) -> str:
    return " or ".join(alternatives) or "false"


def _any(field: str, runs: Iterable[Ports]) -> str:
    return _or(_within(field, run) for run in runs)


def _within(field: str, run: Ports) -> str:
    match run:
        case Ports(first=first, last=last) if first == last:
            return f"{field} == {first}"
        case Ports(first=0, last=last):
            return f"{field} <= {last}"
        case Ports(first=first, last=0xFFFF):
            return f"{field} >= {first}"
        case _:
            return f"({field} >= {run.first} and {field} <= {run.last})"


def _tests_of(run: Ports) -> int:
    return 1 if run.first in (0, run.last) or run.last == 0xFFFF else 2


def _exact(groups: dict[tuple[Transport, bytes], _Runs], address: str, port: str) -> list[str]:
    """One alternative for each far address: with it at the `address` end, and our ports at the `port` end."""
    found = []
    for (kind, remote), runs in groups.items():
        ports = _any(f"{kind}.{port}Port", runs)
        found.append(f"({_address(address, remote)} and {f'({ports})' if len(runs) > 1 else ports})")
    return found


def _address(end: str, packed: bytes) -> str:
    if len(packed) == 4:
        return f"ip.{end}Addr == {'.'.join(map(str, packed))}"
    return f"ipv6.{end}Addr == {packed.hex(':', 2)}"


def _ours_left_out(terms: Iterable[Term], own: Own) -> frozenset[Term]:
    return frozenset(
        term
        for term in terms
        if term.transport is not Transport.TCP
        or (term.local_port != own.gate_port and term.local_port not in own.upstream)
    )


def _groups(terms: Iterable[Term]) -> dict[tuple[Transport, bytes], _Runs]:
    ports: dict[tuple[Transport, bytes], list[Ports]] = {}
    for term in terms:
        ports.setdefault((term.transport, term.remote), []).append(Ports(first=term.local_port, last=term.local_port))
    return {key: _runs(ports[key]) for key in sorted(ports)}


def _runs_of(terms: Iterable[Term], transport: Transport) -> _Runs:
    return _runs(Ports(first=term.local_port, last=term.local_port) for term in terms if term.transport is transport)


def _runs(ports: Iterable[Ports]) -> _Runs:
    """The same ports as few ranges as can be, in order."""
    runs: list[Ports] = []
    for ports_ in sorted(ports):
        if runs and ports_.first <= runs[-1].last + 1:
            runs[-1] = Ports(first=runs[-1].first, last=max(runs[-1].last, ports_.last))
        else:
            runs.append(ports_)
    return tuple(runs)


def _merged(runs: _Runs, most: int, apart: Ports | None = None) -> _Runs:
    """At most `most` ranges (two or more) that cover `runs`; smallest gaps are filled, never one that holds `apart`."""
    gaps = sorted(
        range(1, len(runs)),
        key=lambda at: (not _parts(runs[at - 1], runs[at], apart), runs[at - 1].last - runs[at].first),
    )
    cuts = [0, *sorted(gaps[: most - 1]), len(runs)]
    return tuple(Ports(first=runs[a].first, last=runs[b - 1].last) for a, b in pairwise(cuts) if a < b)


def _parts(one: Ports, other: Ports, apart: Ports | None) -> bool:
    return apart is not None and one.last < apart.first and apart.last < other.first


def _count(groups: dict[Transport, _Runs] | dict[tuple[Transport, bytes], _Runs]) -> int:
    return sum(map(len, groups.values()))


def _tests(groups: dict[Transport, _Runs] | dict[tuple[Transport, bytes], _Runs]) -> int:
    return sum(_tests_of(run) for runs in groups.values() for run in runs)
