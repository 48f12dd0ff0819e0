"""A policy on its way between processes, with the names of its lists or without."""

from __future__ import annotations

import policies
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mitmsec.core.host_lists import HostList
from mitmsec.core.model import Action, Endpoint
from mitmsec.core.policy import DEFAULT_POLICY, Policy
from mitmsec.core.policy_packing import packed, prepared_in, taking_in_s, unpacked, without_names
from mitmsec.core.rules import Rule
from mitmsec.core.sniff import Shown

LISTS = (HostList.of("@a", "bank.example\nother.test"), HostList.of("@empty", ""), HostList.of("@c", "evil.test"))
POLICY = Policy(rules=(Rule(name="banks", action=Action.BLOCK, host=("@a", "@c")),), lists=LISTS)
TO = Endpoint(address="192.0.2.1", port=443)


def test_a_policy_comes_out_as_it_went_in() -> None:
    again = unpacked(packed(POLICY))
    assert again == POLICY
    assert again.at_hello(policies.CURL, TO, policies.NOON_S, shown=Shown.of("evil.test")).rule == "banks"
    assert unpacked(packed(DEFAULT_POLICY)) == DEFAULT_POLICY


def test_long_lists_are_given_the_time_that_they_take_and_references_as_much() -> None:
    policy = Policy(lists=(HostList.of("@a", "x" * 4_000_000), HostList.of("@b", "x" * 1_000_000)))
    assert taking_in_s(policy) == taking_in_s(policy.without_names) == 2.5
    assert taking_in_s(DEFAULT_POLICY) == 0


def test_who_needs_no_names_is_spared_them_and_cannot_ask() -> None:
    bare = without_names(packed(POLICY))
    assert (bare.fingerprint, bare.rules) == (POLICY.fingerprint, POLICY.rules)
    assert [one.text for one in bare.lists] == ["", "", ""]
    with pytest.raises(LookupError):
        bare.at_hello(policies.CURL, TO, policies.NOON_S, shown=Shown.of("evil.test"))
    with pytest.raises(LookupError):
        packed(bare)


@given(st.integers(0, len(packed(POLICY)) - 1))
@example(packed(POLICY).index(b"\n"))
def test_what_was_cut_off_is_no_policy(size_bytes: int) -> None:
    with pytest.raises(ValueError):
        unpacked(packed(POLICY)[:size_bytes])


@given(prepared=st.dictionaries(st.text("abc", min_size=1), st.binary(max_size=40), max_size=3))
def test_what_was_prepared_for_inspectors_stands_behind_it_and_is_no_part_of_it(prepared: dict[str, bytes]) -> None:
    content = packed(POLICY, prepared)
    assert prepared_in(content, without_names(content)) == prepared
    assert unpacked(content) == POLICY
    assert without_names(content).fingerprint == POLICY.fingerprint


def test_what_is_missing_of_it_is_an_error() -> None:
    content = packed(DEFAULT_POLICY, {"secrets": b"compiled"})
    for cut in (content[:-1], content + b"."):
        with pytest.raises(ValueError, match="bytes were prepared"):
            prepared_in(cut, DEFAULT_POLICY)
