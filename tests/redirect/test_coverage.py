"""Which packets the data handle takes: no more than it has to, as long as a filter can say that."""

from __future__ import annotations

from collections import Counter

import pytest
from divert_packets import tcp
from hypothesis import given
from hypothesis import strategies as st
from pydivert import Direction, Divert
from pydivert import Packet as Dissected

from mitmsec.core.model import Endpoint, Transport
from mitmsec_redirect import filters
from mitmsec_redirect.coverage import IN_DEMAND, RULES_A_REMOTE, RULES_LIMIT, SLACK, WINDOW_S, Coverage, filter_of, plan
from mitmsec_redirect.divert_signals import Flow, Terms
from mitmsec_redirect.filters import Own, Ports

OWN = Own(gate_port=8085, upstream=Ports(first=50000, last=51999))
REMOTE_V4, REMOTE_V6 = Endpoint.of("203.0.113.9", 443), Endpoint.of("2001:db8::9", 443)

REMOTES = [Endpoint.of(f"203.0.113.{n}", 443) for n in range(200)]


def flow(port: int, remote: int = 0) -> Flow:
    return Flow(transport=Transport.TCP, local=Endpoint.of("192.0.2.1", port), remote=REMOTES[remote])


flows = st.builds(flow, st.integers(40000, 40200), st.integers(0, 199))


@given(st.frozensets(flows, max_size=120), st.dictionaries(st.sampled_from(REMOTES), st.integers(1, 6), max_size=20))
def test_terms_cover_every_flow_and_stay_within_the_limit(there: frozenset[Flow], begun: dict[Endpoint, int]) -> None:
    terms = plan(there, Counter(begun))
    assert all(terms.cover(one) for one in there)
    assert len(terms.flows) + RULES_A_REMOTE * len(terms.remotes) <= RULES_LIMIT


@given(st.frozensets(flows, max_size=RULES_LIMIT))
def test_as_long_as_they_fit_the_terms_are_exactly_the_flows(there: frozenset[Flow]) -> None:
    assert plan(there, Counter()) == Terms(flows=there)


@given(st.frozensets(flows, max_size=120), st.dictionaries(st.sampled_from(REMOTES), st.integers(1, 6), max_size=40))
def test_a_filter_can_be_made_of_any_terms_and_the_kernel_takes_it_whole(
    there: frozenset[Flow], begun: dict[Endpoint, int]
) -> None:
    terms = plan(there, Counter(begun))
    text = filter_of(terms, OWN, filters.EBPFDIVERT)
    ok, position, why = Divert.check_filter(text)
    assert ok, (position, why, text)
    width = len(terms.flows) + RULES_A_REMOTE * len(terms.remotes) + 3
    assert width <= filters.EBPFDIVERT.rules


@pytest.mark.parametrize(
    ("port", "remote", "from_port", "is_taken"),
    [
        (40000, REMOTE_V4, 40000, True),
        (40000, REMOTE_V4, 40001, False),
        (40000, REMOTE_V6, 40000, True),
        (None, REMOTE_V4, 40001, True),
        (None, REMOTE_V6, 40001, True),
        (None, REMOTE_V4, 50500, False),
        (None, Endpoint.of("203.0.113.9", 80), 40001, False),
        (None, Endpoint.of("203.0.113.8", 443), 40001, False),
    ],
)
def test_the_filter_takes_what_the_terms_cover_but_never_our_own(
    port: int | None, remote: Endpoint, from_port: int, is_taken: bool
) -> None:
    """Judged by the library: a packet to the remote on port 443, from some port."""
    terms = Terms(remotes=frozenset([remote]))
    if port is not None:
        local = Endpoint.of("2001:db8::1" if remote.is_v6 else "192.0.2.1", port)
        terms = Terms(flows=frozenset([Flow(transport=Transport.TCP, local=local, remote=remote)]))
    packet = Dissected(bytearray(tcp(from_port, 443, v6=remote.is_v6)), direction=Direction.OUTBOUND)
    assert packet.matches(filter_of(terms, OWN, filters.EBPFDIVERT)) is is_taken
    everything = filter_of(Terms(everything=True), OWN, filters.EBPFDIVERT)
    assert packet.matches(everything) is (from_port != 50500)
    answer = Dissected(bytearray(tcp(OWN.gate_port, 40000)), direction=Direction.OUTBOUND)
    assert answer.matches(filter_of(terms, OWN, filters.EBPFDIVERT))


def test_the_remote_with_most_flows_is_widened_first() -> None:
    crowd = [flow(port, 1) for port in range(40000, 40050)]
    few = [flow(port, 2) for port in range(41000, 41020)]
    assert plan([*crowd, *few], Counter()) == Terms(flows=frozenset(few), remotes=frozenset([REMOTES[1]]))


def test_room_that_is_left_goes_to_the_remotes_most_in_demand() -> None:
    there = [flow(40000, n) for n in range(50)]
    begun = Counter({REMOTES[n]: IN_DEMAND + n for n in range(100, 150)})
    terms = plan(there, begun)
    assert terms == Terms(flows=frozenset(there), remotes=frozenset(REMOTES[n] for n in range(145, 150)))


def test_beyond_what_a_filter_can_say_all_of_tcp_is_taken() -> None:
    terms = plan([flow(40000, n) for n in range(RULES_LIMIT + 1)], Counter())
    assert terms == Terms(everything=True)
    assert terms.cover(flow(1))


def test_a_remote_is_in_demand_for_one_to_two_windows() -> None:
    coverage = Coverage()
    for port in range(IN_DEMAND):
        coverage.add(flow(port), 0.0)
        coverage.remove(flow(port))
    assert coverage.ask(WINDOW_S + 1) == Terms(remotes=frozenset(REMOTES[:1]))
    coverage.settle(in_force=True)
    assert not coverage.is_wasteful(WINDOW_S + 2)
    assert coverage.is_wasteful(3 * WINDOW_S)
    assert coverage.ask(3 * WINDOW_S) == Terms()


def test_after_long_silence_nothing_is_in_demand() -> None:
    coverage = Coverage()
    for port in range(IN_DEMAND):
        coverage.add(flow(port), 0.0)
    assert coverage.ask(100 * WINDOW_S) == Terms(flows=frozenset(flow(port) for port in range(IN_DEMAND)))


def test_terms_are_in_force_when_the_handle_has_them_and_not_before() -> None:
    coverage = Coverage()
    coverage.add(flow(1), 0.0)
    assert not coverage.is_changing
    coverage.ask(0.0)
    assert coverage.is_changing
    assert not coverage.covers(flow(1))
    coverage.settle(in_force=False)
    assert not coverage.covers(flow(1))
    assert not coverage.is_changing
    coverage.ask(0.0)
    coverage.settle(in_force=True)
    assert coverage.covers(flow(1))
    coverage.settle(in_force=True)  # nothing was asked for
    assert coverage.covers(flow(1))


def test_a_few_needless_terms_are_kept_and_more_are_not() -> None:
    coverage = Coverage()
    ports = range(IN_DEMAND, IN_DEMAND + SLACK + 1)
    for port in ports:
        coverage.add(flow(port, port), 0.0)
    coverage.ask(0.0)
    coverage.settle(in_force=True)
    for port in ports[:-1]:
        coverage.remove(flow(port, port))
        assert not coverage.is_wasteful(0.0)
    coverage.remove(flow(ports[-1], ports[-1]))
    assert coverage.is_wasteful(0.0)


def test_removing_what_is_not_there_does_nothing() -> None:
    coverage = Coverage()
    coverage.remove(flow(1))
    assert coverage.ask(0.0) == Terms()


def test_a_flow_that_the_next_terms_leave_out_is_not_covered() -> None:
    coverage = Coverage()
    coverage.add(flow(1), 0.0)
    coverage.ask(0.0)
    coverage.settle(in_force=True)
    assert coverage.covers(flow(1))
    coverage.remove(flow(1))
    coverage.ask(0.0)
    assert not coverage.covers(flow(1))
    coverage.settle(in_force=False)
    assert coverage.covers(flow(1)), "what is in force stays"
