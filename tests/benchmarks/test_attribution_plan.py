"""Which flows a corpus has, and how a flow is known again by its far end's address."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.attribution.plan import FLOWS_LIMIT, KINDS, Course, Family, Flow, Pattern, number_of, plan


def test_the_same_seed_gives_the_same_plan_and_another_seed_another():
    assert plan(500, seed=7) == plan(500, seed=7)
    assert plan(500, seed=7) != plan(500, seed=8)


@settings(deadline=None)
@given(count=st.integers(1, 300), patterns=st.sets(st.sampled_from(Pattern), min_size=1), seed=st.integers())
def test_a_plan_has_as_many_flows_as_asked_for_and_every_pattern(count, patterns, seed):
    units = plan(count, seed, patterns)
    flows = [flow for unit in units for flow in unit]
    assert [flow.number for flow in flows] == list(range(1, len(flows) + 1))
    assert {flow.pattern for flow in flows} == patterns
    fewest = sum(KINDS[pattern].flows for pattern in patterns)
    assert count <= len(flows) < max(count, fewest) + 20
    assert all(
        len(unit) == KINDS[unit[0].pattern].flows and len({flow.pattern for flow in unit}) == 1 for unit in units
    )


def test_twenty_thousand_flows_go_both_ways_over_both_transports_and_in_every_family():
    flows = [flow for unit in plan(20_000, seed=1) for flow in unit]
    assert {flow.course for flow in flows} == set(Course)
    outbound = {flow.family for flow in flows if flow.course is Course.OUTBOUND_TCP}
    assert outbound == set(Family)
    assert {flow.family for flow in flows if flow.course is Course.INBOUND_TCP} == {Family.V4, Family.V6}
    fewest = min(sum(flow.pattern is pattern for flow in flows) for pattern in Pattern)
    assert fewest > 100


@given(number=st.integers(1, FLOWS_LIMIT - 1), family=st.sampled_from(Family))
def test_a_flow_is_known_by_its_address_however_it_is_written(number, family):
    flow = Flow(number, Pattern.BRIEF, family)
    assert number_of(flow.far_end) == number


@pytest.mark.parametrize(
    "address", ["", "origin.test", "198.17.255.255", "198.20.0.0", "2001:db8:a76::1", "2001:db8:a77:0:1::", "::1"]
)
def test_any_other_address_is_no_flows(address):
    assert number_of(address) is None


@given(st.text())
def test_any_text_is_a_flows_address_or_no_flows(text):
    number = number_of(text)
    assert number is None or 0 <= number < FLOWS_LIMIT


@pytest.mark.parametrize(("count", "patterns"), [(0, list(Pattern)), (10, []), (FLOWS_LIMIT, list(Pattern))])
def test_a_plan_that_cannot_be_is_refused(count, patterns):
    with pytest.raises(ValueError):
        plan(count, 1, patterns)
