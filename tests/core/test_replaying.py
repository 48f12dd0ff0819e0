"""What another policy would change: counted, bounded, and nothing where it is the same one."""

from __future__ import annotations

import policies
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mitmsec.core import replaying
from mitmsec.core.model import Action, Direction, Endpoint, Process, Transport
from mitmsec.core.past_flow import PastFlow, Verdict, verdict
from mitmsec.core.policy import Policy, Rule
from mitmsec.core.replaying import REST, UNKNOWN, Answer, Replay, Replayed, Tally
from mitmsec.core.sniff import Protocol

FLOW = PastFlow(
    process=policies.CURL,
    local=Endpoint.of("10.0.0.1", 40000),
    remote=Endpoint.of("192.0.2.1", 443),
    protocol=Protocol.TLS,
    is_tls=True,
    name="a.example",
)
BYPASSED = Verdict(action=Action.BYPASS, rule="old", reason="then")

flows = st.builds(
    PastFlow,
    process=st.sampled_from(policies.PROCESSES),
    local=st.just(Endpoint.of("10.0.0.1", 8443)),
    remote=st.builds(
        Endpoint.of, st.sampled_from([one for one in policies.ADDRESSES if one]), st.sampled_from(policies.PORTS)
    ),
    transport=st.sampled_from(Transport),
    direction=st.sampled_from(Direction),
    protocol=st.none() | st.sampled_from([Protocol.TLS, Protocol.HTTP, Protocol.SSH, Protocol.TCP]),
    name=st.none() | st.sampled_from(policies.NAMES),
    is_malformed=st.booleans(),
    proven=st.none() | st.booleans(),
    unknown=st.frozensets(st.sampled_from(["host", "application"])),
)


@given(policies.policies, flows)
def test_a_policy_changes_nothing_of_what_it_decided_itself(policy: Policy, flow: PastFlow) -> None:
    one = Replay(policy).of(flow, verdict(policy, flow))
    assert not one.changes


def test_another_rule_is_a_change_though_the_same_is_done() -> None:
    one = Replay(Policy(action=Action.BYPASS)).of(FLOW, BYPASSED)
    assert (one.after.action, one.changes) == (Action.BYPASS, True)
    same = Verdict(action=Action.BYPASS, rule="defaults", reason="in other words")
    assert not Replay(Policy(action=Action.BYPASS)).of(FLOW, same).changes


def test_where_nothing_is_known_of_before_it_counts_as_a_change() -> None:
    one = Replay(Policy()).of(FLOW, None)
    assert one.changes
    assert Answer.of(one.before) == UNKNOWN


def test_what_is_not_on_record_unsettles_only_where_a_rule_asks_for_it() -> None:
    hidden = replace(FLOW, name=None, unknown=frozenset({"host"}))
    named = Policy(rules=(Rule(name="named", action=Action.BLOCK, host=("a.example",)),))
    assert Replay(named).of(hidden, None).unsettled == (("named", "host"),)
    assert Replay(Policy()).of(hidden, None).unsettled == ()
    elsewhere = Policy(rules=(replace(named.rules[0], port=((1, 1),)),))
    assert Replay(elsewhere).of(hidden, None).unsettled == ()


def test_the_tally_counts_by_what_was_and_what_will_be(monkeypatch: pytest.MonkeyPatch) -> None:
    tally, replay = Tally(), Replay(Policy())
    for number in range(3):
        tally.add(replay.of(FLOW, BYPASSED), f"flow {number}")
    tally.add(replay.of(FLOW, verdict(Policy(), FLOW)), "flow 3")
    tally.add(Replayed(before=None, after=BYPASSED, unsettled=(("r", "host"),)), "flow 4")
    assert (tally.flows, tally.changed, tally.unsettled) == (5, 4, 1)
    first, second = tally.rows(changes=True)
    assert (first.before, first.after, first.count, first.example) == (
        Answer(action="bypass", rule="old"), Answer(action="decrypt", rule="defaults"), 3, "flow 0",
    )  # fmt: skip
    assert (second.before, second.count) == (UNKNOWN, 1)
    (stays,) = tally.rows(changes=False)
    assert (stays.count, stays.example) == (1, "flow 3")
    monkeypatch.setattr(replaying, "ROWS_LIMIT", 3)
    for number in range(5):
        tally.add(Replayed(before=replace(BYPASSED, rule=f"r{number}"), after=BYPASSED), "beyond")
    assert tally.flows == 10
    assert [row.count for row in tally.rows(changes=True) if row.before == REST] == [5]


def test_of_a_program_that_nobody_knows_the_replay_says_what_the_gate_would() -> None:
    rule = Rule(name="web", action=Action.BLOCK, application=("web",))
    policy = Policy(applications=policies.APPLICATIONS, rules=(rule,))
    after = Replay(policy).of(replace(FLOW, process=Process(pid=0)), None).after
    assert (after.action, after.rule) == (Action.BYPASS, "on_failure")
