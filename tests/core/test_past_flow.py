"""What becomes of a flow that is on record under a policy, and what cannot be said for want of facts."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from policies import NOON_S

from mitmsec.core.known_service import KnownService
from mitmsec.core.model import Action, Direction, Endpoint, OnFailure, Process, Quic, Transport, UnprovenName
from mitmsec.core.past_flow import PastFlow, decision, story, unsettled, verdict
from mitmsec.core.policy import Application, Policy, Rule
from mitmsec.core.sniff import Protocol

CURL = Process(pid=8, exe="/usr/bin/curl")
WEB = PastFlow(
    process=CURL,
    local=Endpoint.of("10.0.0.1", 40000),
    remote=Endpoint.of("192.0.2.1", 443),
    at_s=NOON_S,
    protocol=Protocol.TLS,
    is_tls=True,
    name="a.example",
    proven=True,
)
QUIC = replace(WEB, transport=Transport.UDP, protocol=None, name=None)
CALLED = replace(
    WEB, direction=Direction.INBOUND, local=Endpoint.of("10.0.0.1", 8443), remote=Endpoint.of("192.0.2.1", 50000)
)
BY_NAME = Rule(name="named", action=Action.BYPASS, host=("a.example",))
NO_NAME = Rule(name="refused", action=Action.BLOCK, host=("a.example",))
DOUBTS = Policy(quic=Quic.BYPASS, rules=(BY_NAME,), unproven_name=UnprovenName.DECRYPT)
ROOTS = (Application(name="root's", user=("root",)),)


@pytest.mark.parametrize(
    ("policy", "flow", "action", "rule"),
    [
        (Policy(), WEB, Action.DECRYPT, "defaults"),
        (Policy(rules=(BY_NAME,)), WEB, Action.BYPASS, "named"),
        (Policy(rules=(BY_NAME,)), replace(WEB, name=None), Action.DECRYPT, "defaults"),
        (Policy(), replace(WEB, protocol=Protocol.SSH, is_tls=False), Action.CAPTURE, "defaults"),
        (Policy(), replace(WEB, protocol=Protocol.SMTP), Action.DECRYPT, "defaults"),
        (Policy(), replace(WEB, protocol=Protocol.SMTP, is_tls=False), Action.CAPTURE, "defaults"),
        (Policy(), replace(WEB, protocol=None), Action.DECRYPT, "defaults"),
        (Policy(), QUIC, Action.BLOCK, "defaults"),
        (Policy(quic=Quic.BYPASS), QUIC, Action.BYPASS, "defaults"),
        (Policy(action=Action.BLOCK), replace(QUIC, remote=Endpoint.of("192.0.2.1", 53)), Action.BYPASS, "defaults"),
        (Policy(quic=Quic.BYPASS, action=Action.BLOCK), QUIC, Action.BLOCK, "defaults"),
        (Policy(quic=Quic.BYPASS, rules=(NO_NAME,)), replace(QUIC, name="a.example"), Action.BLOCK, "refused"),
        (Policy(quic=Quic.BYPASS, rules=(NO_NAME,)), QUIC, Action.BYPASS, "defaults"),
        (Policy(quic=Quic.DECRYPT), replace(QUIC, name="a.example", alpn=("h3",)), Action.DECRYPT, "defaults"),
        (Policy(quic=Quic.DECRYPT), replace(QUIC, name="a.example", alpn=("doq",)), Action.BLOCK, "defaults"),
        (Policy(quic=Quic.DECRYPT), replace(QUIC, alpn=("h3",)), Action.BLOCK, "defaults"),
        (Policy(quic=Quic.DECRYPT, action=Action.CAPTURE), QUIC, Action.BYPASS, "defaults"),
        (DOUBTS, replace(QUIC, name="a.example", proven=False), Action.BLOCK, "named"),
        (DOUBTS, replace(QUIC, name="a.example", proven=True), Action.BYPASS, "named"),
        (DOUBTS, replace(QUIC, name="b.example", proven=False), Action.BYPASS, "defaults"),
        (Policy(), replace(QUIC, direction=Direction.INBOUND), Action.BYPASS, "defaults"),
        (Policy(), replace(WEB, is_malformed=True), Action.BLOCK, "defaults"),
        (Policy(rules=(BY_NAME,)), replace(WEB, is_malformed=True, name=None), Action.BLOCK, "defaults"),
        (Policy(action=Action.CAPTURE), replace(WEB, is_malformed=True), Action.CAPTURE, "defaults"),
        (Policy(rules=(BY_NAME,), unproven_name=UnprovenName.BLOCK), WEB, Action.BYPASS, "named"),
        (Policy(rules=(BY_NAME,), unproven_name=UnprovenName.BLOCK), replace(WEB, proven=False), Action.BLOCK, "named"),
        (Policy(rules=(BY_NAME,), unproven_name=UnprovenName.BLOCK), replace(WEB, proven=None), Action.BYPASS, "named"),
    ],
)
def test_a_verdict_is_what_can_be_done_of_what_the_rules_say(
    policy: Policy, flow: PastFlow, action: Action, rule: str
) -> None:
    assert (verdict(policy, flow).action, verdict(policy, flow).rule) == (action, rule)


@pytest.mark.parametrize(
    ("on_failure", "flow", "action"),
    [
        (OnFailure.OPEN, WEB, Action.BYPASS),
        (OnFailure.CLOSED, WEB, Action.BLOCK),
        (OnFailure.CLOSED, replace(QUIC, remote=Endpoint.of("192.0.2.1", 53)), Action.BYPASS),
    ],
)
def test_of_a_program_that_is_not_known_on_failure_decides_where_a_rule_asks_for_it(
    on_failure: OnFailure, flow: PastFlow, action: Action
) -> None:
    rule = Rule(name="root's", action=Action.BLOCK, application=("root's",))
    found = verdict(Policy(applications=ROOTS, rules=(rule,), on_failure=on_failure), flow)
    assert (found.action, found.rule) == (action, "on_failure")


def test_one_that_came_in_is_asked_about_by_its_peer_and_the_port_that_was_called() -> None:
    assert CALLED.asked == Endpoint.of("192.0.2.1", 8443)
    rule = Rule(name="partners", action=Action.BYPASS, port=((8443, 8443),), direction=Direction.INBOUND)
    policy = Policy(rules=(rule,), inbound=Action.BLOCK)
    assert verdict(policy, CALLED).rule == "partners"
    assert verdict(policy, replace(CALLED, local=Endpoint.of("10.0.0.1", 443))).action is Action.BLOCK


def test_what_came_in_over_tls_is_decrypted_only_with_a_key_for_it() -> None:
    policy = Policy(inbound=Action.DECRYPT, services=(KnownService(name="shop", host=("a.example",)),))
    assert decision(policy, CALLED).service == "shop"
    assert decision(policy, replace(CALLED, protocol=Protocol.HTTP, is_tls=False)).service == ""
    assert verdict(policy, replace(CALLED, name="other.example")).action is Action.BYPASS
    upgraded = replace(CALLED, protocol=Protocol.SMTP, is_tls=True)
    assert decision(policy, upgraded).service == "shop"
    assert verdict(policy, replace(upgraded, name="other.example")).action is Action.BYPASS


def test_a_rule_that_might_have_come_first_is_told_with_what_it_asks_for() -> None:
    first = Rule(name="first", action=Action.BLOCK, host=("b.example",), port=((443, 443),))
    elsewhere = Rule(name="elsewhere", action=Action.BLOCK, host=("b.example",), port=((1, 1),))
    every = Rule(name="every", action=Action.BYPASS)
    late = Rule(name="late", action=Action.BLOCK, host=("b.example",))
    policy = Policy(rules=(first, elsewhere, every, late))
    flow = replace(WEB, name=None, protocol=None, unknown=frozenset({"host", "protocol"}))
    told = story(policy, flow)
    assert list(unsettled(told, flow)) == [("first", "host")]
    assert [condition.why for condition in told.tried[0].conditions] == ["it is not on record", "it is 443"]
    assert list(unsettled(story(policy, WEB), WEB)) == []
    assert list(unsettled(story(Policy(rules=(first,)), flow), flow)) == [("first", "host")]


def test_a_flow_is_judged_as_of_its_own_time() -> None:
    rule = Rule(name="old", action=Action.BLOCK, expires_s=int(NOON_S) + 1)
    assert verdict(Policy(rules=(rule,)), WEB).rule == "old"
    assert verdict(Policy(rules=(rule,)), replace(WEB, at_s=NOON_S + 1)).rule == "defaults"
    assert story(Policy(rules=(rule,)), WEB).decision.rule == "old"
