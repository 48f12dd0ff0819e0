"""Filters match what they are for and, when widened, say what else; the real compilers and the kernel judge them."""

from __future__ import annotations

import sys
from functools import cache
from math import prod

import made_packets as made
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_packets import V4, V6
from windows_compiler import windows_compiler

from mitmsec.core.model import Transport
from mitmsec_redirect.filters import (
    EBPFDIVERT,
    RULES_LEAST,
    TESTS_LEAST,
    WINDIVERT,
    FlowFilter,
    Limits,
    Own,
    Ports,
    Term,
    Width,
    capture_everything_filter,
    capture_filter,
    data_filter,
    everything_filter,
    socket_filter,
    syn_filter,
)
from mitmsec_redirect.packet import Packet, parse

GATE = 8080
OWN = Own(gate_port=GATE, upstream=Ports(first=50_000, last=51_999))
LIBRARY = pytest.mark.skipif(sys.platform != "linux", reason="libebpfdivert judges filters on Linux")


def terms(count: int, *, step: int = 2, remotes: int = 1 << 16, transport: Transport = Transport.TCP) -> list[Term]:
    """Flows from ports `step` apart to `remotes` addresses in turn, of both families."""
    found = []
    for at in range(count):
        address = bytes([192, 0, 2, 0]) if at % 2 else bytes.fromhex("20010db8") + bytes(12)
        remote = address[:-2] + (at % remotes).to_bytes(2)
        found.append(Term(local_port=10_000 + at * step, remote=remote, transport=transport))
    return found


# --- reading a filter's text ------------------------------------------------------------------------------------------
def parts(text: str, word: str) -> list[str]:
    """`text` cut at `word` where it stands outside all parentheses."""
    found, depth, start, at = [], 0, 0, 0
    while at < len(text):
        depth += (text[at] == "(") - (text[at] == ")")
        if depth == 0 and text.startswith(f" {word} ", at):
            found.append(text[start:at])
            start = at + len(word) + 2
        at += 1
    return [*found, text[start:]]


def counted(text: str) -> tuple[int, int]:
    """Tests, and alternatives of the expression multiplied out; a range counts as one alternative."""
    for word in ("or", "and"):
        if len(found := parts(text, word)) > 1:
            tests, rules = zip(*map(counted, found), strict=True)
            return sum(tests), sum(rules) if word == "or" else prod(rules)
    return counted(text[1:-1]) if text.startswith("(") else (1, 1)


def test_the_count_itself() -> None:
    assert counted("a and (b or (c and d)) and (e or f or g)") == (7, 6)


@cache
def compiles(text: str, layer: int = 0) -> bool:
    import pydivert

    accepted, position, reason = pydivert.Divert.check_filter(text, pydivert.Layer(layer))
    assert accepted, f"{reason} at {position}: {text}"
    windows = windows_compiler()
    assert windows is None or windows.refuses(text, layer) == ""
    return True


@pytest.mark.skipif(windows_compiler() is None, reason="`make wine` sets up the real WinDivert.dll")
def test_what_windows_refuses_is_told() -> None:
    """So every filter above and below that compiles was compiled by WinDivert.dll too."""
    windows = windows_compiler()
    assert windows is not None
    assert windows.refuses("outbound and tcp", 0) == ""
    assert windows.refuses("tcp and", 0)
    assert windows.refuses("tcp.SrcPort == 1", 3)  # packets have it, sockets have not
    assert windows.refuses(" or ".join(f"tcp.SrcPort == {port}" for port in range(300)), 0)


# --- who connects -----------------------------------------------------------------------------------------------------
def test_the_socket_filter() -> None:
    assert socket_filter() == "tcp"
    ports = [Ports(first=443, last=443), Ports(first=8000, last=8999)]
    assert socket_filter(ports) == "tcp and (remotePort == 443 or (remotePort >= 8000 and remotePort <= 8999))"


def test_the_syn_filter_leaves_our_own_connections_out() -> None:
    assert syn_filter(OWN, [Ports(first=443, last=443)]) == (
        "outbound and tcp.Syn and !tcp.Ack and (tcp.SrcPort <= 8079 or (tcp.SrcPort >= 8081 and tcp.SrcPort <= 49999)"
        " or tcp.SrcPort >= 52000) and (tcp.DstPort == 443)"
    )


def test_ports_that_touch_or_overlap_are_one_range() -> None:
    ports = [Ports(first=90, last=95), Ports(first=80, last=84), Ports(first=85, last=92)]
    assert socket_filter(ports) == "tcp and ((remotePort >= 80 and remotePort <= 95))"


def test_too_many_ports_are_joined_where_the_gaps_are_smallest() -> None:
    ports = [Ports(first=port, last=port) for port in (10, 20, 25, 100, 103)]
    few = Limits(tests=TESTS_LEAST, rules=RULES_LEAST, fragments_and_loopback=True)
    assert socket_filter(ports, few).count("remotePort") == 5
    many = [Ports(first=port * 10, last=port * 10) for port in range(300)] + ports
    assert counted(socket_filter(many, few))[1] == 15
    assert counted(syn_filter(OWN, many, few))[1] == 15


# --- flows ------------------------------------------------------------------------------------------------------------
def test_a_few_flows_are_named_by_port_and_address() -> None:
    made_for = data_filter(
        [
            Term(local_port=40_001, remote=V4[1]),
            Term(local_port=40_007, remote=V4[1]),
            Term(local_port=40_002, remote=V6[1]),
        ],
        OWN,
    )
    assert made_for.width is Width.FLOWS
    assert made_for.text == (
        "outbound and (tcp.SrcPort == 8080"
        " or (ipv6.DstAddr == 2001:0db8:0000:0000:0000:0000:0000:0007 and tcp.SrcPort == 40002)"
        " or (ip.DstAddr == 192.0.2.7 and (tcp.SrcPort == 40001 or tcp.SrcPort == 40007))"
        " or (ip.Protocol == 6 and fragment) or ipv6.NextHdr == 44)"
    )


@pytest.mark.parametrize(
    ("count", "step", "limits", "width"),
    [
        (0, 1, WINDIVERT, Width.FLOWS),
        (125, 2, WINDIVERT, Width.FLOWS),
        (126, 2, WINDIVERT, Width.PORTS),
        (61, 2, EBPFDIVERT, Width.FLOWS),
        (62, 1, EBPFDIVERT, Width.PORTS),
        (62, 2, EBPFDIVERT, Width.RANGES),
        (250, 2, WINDIVERT, Width.PORTS),
        (251, 2, WINDIVERT, Width.RANGES),
        (20_000, 2, WINDIVERT, Width.RANGES),
    ],
)
def test_a_filter_is_no_wider_than_it_must_be(count: int, step: int, limits: Limits, width: Width) -> None:
    made_for = data_filter(terms(count, step=step), OWN, limits)
    assert made_for.width is width
    assert all(made_for.covers(term) for term in terms(count, step=step) if term.local_port not in OWN.upstream)


@pytest.mark.parametrize(
    ("count", "transport", "limits", "width"),
    [
        (20, Transport.UDP, EBPFDIVERT, Width.FLOWS),
        (21, Transport.UDP, EBPFDIVERT, Width.RANGES),
        (41, Transport.TCP, WINDIVERT, Width.FLOWS),
        (42, Transport.TCP, WINDIVERT, Width.PORTS),
        (83, Transport.TCP, WINDIVERT, Width.RANGES),
    ],
)
def test_capture_needs_more_for_each_flow(count: int, transport: Transport, limits: Limits, width: Width) -> None:
    found = terms(count, transport=transport)
    made_for = capture_filter(found, OWN, limits)
    assert made_for.width is width
    assert all(made_for.covers(term) for term in found)


def test_capture_of_nothing_matches_nothing() -> None:
    assert capture_filter([], OWN).text == "false"


def test_ranges_fill_the_smallest_gaps_and_never_the_one_with_our_own_ports() -> None:
    few = Limits(tests=TESTS_LEAST, rules=RULES_LEAST, fragments_and_loopback=True)
    own = Own(gate_port=GATE, upstream=Ports(first=50_000, last=50_001))
    ports = [
        *range(1000, 7000, 1000),
        *range(10_000, 10_040, 2),
        20_000,
        20_003,
        *range(30_000, 30_900, 100),
        49_999,
        50_002,
        50_005,
        60_000,
    ]
    made_for = data_filter([Term(local_port=port, remote=V4[1]) for port in ports], own, few)
    assert made_for.width is Width.RANGES
    assert [(ports.first, ports.last) for _, ports in made_for.ports] == [
        *((port, port) for port in range(1000, 7000, 1000)),
        (10_000, 10_038),
        (20_000, 20_003),
        (30_000, 30_800),
        (49_999, 49_999),
        (50_002, 50_005),
        (60_000, 60_000),
    ]


def test_with_the_least_room_capture_still_keeps_off_our_own_ports() -> None:
    """Ports on both sides of our own, TCP and UDP, and room for two ranges of each."""
    few = Limits(tests=TESTS_LEAST, rules=RULES_LEAST, fragments_and_loopback=True)
    sides = [Term(local_port=port, remote=V4[1]) for port in (*range(1, 60, 2), *range(60_000, 60_060, 2))]
    made_for = capture_filter([*sides, *terms(40, transport=Transport.UDP)], OWN, few)
    assert made_for.width is Width.RANGES
    assert made_for.ports[:2] == (
        (Transport.TCP, Ports(first=1, last=59)),
        (Transport.TCP, Ports(first=60_000, last=60_058)),
    )
    assert [transport for transport, _ in made_for.ports[2:]] == [Transport.UDP, Transport.UDP]


def test_everything_is_all_but_our_own() -> None:
    own = [Term(local_port=port, remote=V4[1]) for port in (50_000, 51_999, GATE)]
    for made_for in (everything_filter(OWN), capture_everything_filter(OWN)):
        assert made_for.width is Width.EVERYTHING
        assert not any(made_for.covers(term) for term in own)
        assert all(made_for.covers(term) for term in terms(100))
    assert "udp.SrcPort <= 65535" in capture_everything_filter(OWN).text


def test_the_same_flows_give_the_same_text_in_whatever_order() -> None:
    found = terms(300)
    assert data_filter(found, OWN) == data_filter(reversed(found), OWN)
    assert data_filter(found[:50], OWN) == data_filter(reversed(found[:50]), OWN)


def test_our_own_ports_and_udp_are_left_out_of_what_is_diverted() -> None:
    ours = [Term(local_port=port, remote=V4[1]) for port in (GATE, 50_000, 51_999)]
    udp = Term(local_port=40_001, remote=V4[1], transport=Transport.UDP)
    made_for = data_filter([*ours, udp], OWN)
    assert made_for == data_filter([], OWN)
    assert not any(made_for.covers(term) for term in [*ours, udp])


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError):
        Ports(first=2, last=1)
    with pytest.raises(ValueError):
        Ports(first=0, last=65_536)
    with pytest.raises(ValueError):
        Own(gate_port=50_000, upstream=OWN.upstream)
    for tests, rules in ((TESTS_LEAST - 1, 64), (255, RULES_LEAST - 1)):
        with pytest.raises(ValueError):
            Limits(tests=tests, rules=rules, fragments_and_loopback=True)


def test_few_enough_tests_can_still_be_too_many_tokens() -> None:
    """Two ports at each address: 246 tests, but four tokens of each pair of addresses are parentheses."""
    pairs = [
        Term(local_port=port + at * 3, remote=bytes([192, 0, 2, at])) for at in range(82) for port in (10_000, 10_300)
    ]
    made_for = data_filter(pairs, OWN)
    assert made_for.width is Width.PORTS
    assert data_filter(pairs[:150], OWN).width is Width.FLOWS
    assert capture_filter(pairs[:54], OWN).width is Width.PORTS
    assert capture_filter(pairs[:50], OWN).width is Width.FLOWS


# --- whatever flows ---------------------------------------------------------------------------------------------------
PORTS = st.tuples(made.PORT, made.PORT).map(lambda two: Ports(first=min(two), last=max(two)))
OWNS = st.just(OWN) | st.tuples(made.PORT, PORTS).filter(lambda two: two[0] not in two[1]).map(
    lambda two: Own(gate_port=two[0], upstream=two[1])
)
LIMITS = st.sampled_from([WINDIVERT, EBPFDIVERT]) | st.builds(
    Limits,
    tests=st.integers(TESTS_LEAST, 255),
    rules=st.integers(RULES_LEAST, 255),
    fragments_and_loopback=st.booleans(),
)
TERMS = st.builds(
    Term,
    local_port=made.PORT,
    remote=made.ADDRESS_V4 | made.ADDRESS_V6,
    transport=st.sampled_from(Transport),
)
MANY_TERMS = st.lists(TERMS, max_size=8) | st.builds(
    terms,
    st.integers(0, 400),
    step=st.integers(1, 130),
    remotes=st.integers(1, 300),
    transport=st.sampled_from(Transport),
)


@LIBRARY
@settings(deadline=None)
@given(st.lists(PORTS, max_size=200), OWNS, LIMITS)
def test_every_filter_of_ports_compiles_and_fits(ports: list[Ports], own: Own, limits: Limits) -> None:
    ports = ports or [Ports(first=port * 9, last=port * 9 + 1) for port in range(1000)]
    for text, layer in ((socket_filter(ports, limits), 3), (syn_filter(own, ports, limits), 0)):
        assert compiles(text, layer)
        tests, rules = counted(text)
        assert tests <= limits.tests
        assert rules <= limits.rules


@LIBRARY
@settings(deadline=None)
@given(MANY_TERMS, OWNS, LIMITS)
def test_every_filter_of_flows_compiles_and_fits(found: list[Term], own: Own, limits: Limits) -> None:
    for made_for in (
        data_filter(found, own, limits),
        capture_filter(found, own, limits),
        everything_filter(own),
        capture_everything_filter(own),
    ):
        assert compiles(made_for.text)
        tests, rules = counted(made_for.text)
        assert tests <= limits.tests
        assert rules <= limits.rules


# --- what they mean ---------------------------------------------------------------------------------------------------
def is_fragment_of(limits: Limits, packet: Packet, data: bytes, *protocols: int) -> bool:
    if packet.version == 6:
        return limits.fragments_and_loopback and data[6] == 44
    return limits.fragments_and_loopback and packet.fragment is not None and packet.protocol in protocols


def has_two_fragment_headers(data: bytes) -> bool:
    """No stack sends it. Behind the second one the library does not look; our reader does, while both are atomic."""
    if data[0] >> 4 != 6:
        return False
    kind, at, found = data[6], 40, 0
    while kind in (0, 43, 44, 51, 60) and at + 8 <= len(data):
        found += kind == 44
        size_bytes = {44: 8, 51: 4 * (data[at + 1] + 2)}.get(kind, 8 * (data[at + 1] + 1))
        kind, at = data[at], at + size_bytes
    return found > 1


TWICE_ATOMIC = bytes.fromhex(
    "60000000002c0040fd770000000000000000000000000001fd770000000000000000000000000001"
    "2c000104000000002c000000000000070600000000000007000100010000000100000002500000 09b4e50000".replace(" ", "")
)


@LIBRARY
def test_behind_a_second_fragment_header_the_library_finds_nothing_and_we_do() -> None:
    """Why such packets are left out below."""
    packet = parse(TWICE_ATOMIC)
    assert isinstance(packet, Packet)
    assert has_two_fragment_headers(TWICE_ATOMIC)
    assert packet.protocol == made.TCP
    assert not matches("tcp", TWICE_ATOMIC, outbound=True, loopback=False)


def has(made_for: FlowFilter, transport: Transport, port: int | None, remote: bytes) -> bool:
    return port is not None and made_for.covers(Term(local_port=port, remote=remote, transport=transport))


def data_means(made_for: FlowFilter, own: Own, limits: Limits, packet: Packet, data: bytes, *, outbound: bool) -> bool:
    if not outbound:
        return False
    tcp = packet.protocol == made.TCP
    return is_fragment_of(limits, packet, data, made.TCP) or (
        tcp
        and (
            packet.source_port == own.gate_port or has(made_for, Transport.TCP, packet.source_port, packet.destination)
        )
    )


def capture_means(
    made_for: FlowFilter, limits: Limits, packet: Packet, data: bytes, *, outbound: bool, loopback: bool
) -> bool:
    if made_for.text == "false":
        return False
    if is_fragment_of(limits, packet, data, made.TCP, made.UDP):
        return True
    if packet.protocol not in (made.TCP, made.UDP):
        return False
    transport = Transport.TCP if packet.protocol == made.TCP else Transport.UDP
    sent = has(made_for, transport, packet.source_port, packet.destination)
    received = has(made_for, transport, packet.destination_port, packet.source)
    return (outbound and sent) or (((loopback and limits.fragments_and_loopback) or not outbound) and received)


def matches(text: str, data: bytes, *, outbound: bool, loopback: bool) -> bool:
    import pydivert

    direction = pydivert.Direction.OUTBOUND if outbound else pydivert.Direction.INBOUND
    matched: bool = pydivert.Packet(data, (1, 0), direction, loopback=loopback).matches(text)
    return matched


@LIBRARY
@settings(deadline=None)
@given(MANY_TERMS | st.none(), OWNS, LIMITS, st.lists(made.packets(), max_size=4), st.booleans(), st.booleans())
def test_the_library_matches_what_the_filter_says(
    found: list[Term] | None, own: Own, limits: Limits, packets: list[bytes], outbound: bool, loopback: bool
) -> None:
    """None: everything."""
    diverted = everything_filter(own, limits) if found is None else data_filter(found, own, limits)
    captured = capture_everything_filter(own, limits) if found is None else capture_filter(found, own, limits)
    found = found or []
    for data in [*packets, *towards(found[:3])]:
        packet = parse(data)
        assert isinstance(packet, Packet)
        if has_two_fragment_headers(data):
            continue
        assert matches(diverted.text, data, outbound=outbound, loopback=loopback) == data_means(
            diverted, own, limits, packet, data, outbound=outbound
        )
        assert matches(captured.text, data, outbound=outbound, loopback=loopback) == capture_means(
            captured, limits, packet, data, outbound=outbound, loopback=loopback
        )


def towards(found: list[Term]) -> list[bytes]:
    """A packet of each of these flows, and one back."""
    packets = []
    for term in found:
        here = V4[0] if len(term.remote) == 4 else V6[0]
        protocol, body = (made.TCP, made.segment) if term.transport is Transport.TCP else (made.UDP, made.datagram)
        for ends, ports in (((here, term.remote), (term.local_port, 9)), ((term.remote, here), (9, term.local_port))):
            packets.append(made.ip(*ends, body(*ends, ports), protocol))
    return packets


@LIBRARY
@settings(deadline=None)
@given(st.lists(PORTS, max_size=30), OWNS, LIMITS, made.packets(), st.booleans())
def test_the_library_takes_first_syns_of_all_but_our_own(
    ports: list[Ports], own: Own, limits: Limits, data: bytes, outbound: bool
) -> None:
    packet = parse(data)
    assert isinstance(packet, Packet)
    ours = packet.source_port == own.gate_port or (packet.source_port or 0) in own.upstream
    syn = packet.tcp_flags is not None and packet.tcp_flags & 0x12 == 0x02
    there = not ports or any((packet.destination_port or 0) in each for each in ports)
    matched = matches(syn_filter(own, ports, limits), data, outbound=outbound, loopback=False)
    assert matched <= (outbound and syn and not ours)
    if outbound and syn and not ours and there:
        assert matched
