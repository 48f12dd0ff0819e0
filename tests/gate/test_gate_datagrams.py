"""UDP flows on record: the rule that decides, what became of its word, and the protocol that the port stands for."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from mitmsec.audit.event import NamedBy, Outcome
from mitmsec.core.messages import UdpFlowTold
from mitmsec.core.model import Action, Confidence, Direction, Endpoint, Process
from mitmsec.core.policy import Policy
from mitmsec.core.rules import Application, Rule
from mitmsec.gate.datagrams import protocol_of, seen

DIG = Process(pid=42, exe="/usr/bin/dig", confidence=Confidence.KERNEL)
TOLD = UdpFlowTold(
    flow="f",
    process=DIG,
    local=Endpoint.of("10.0.0.1", 4000),
    remote=Endpoint.of("203.0.113.9", 5),
    direction=Direction.OUTBOUND,
    duration_ms=12,
    ended=True,
    sent=3,
    received=2,
)


def test_an_ended_flow_is_on_record_with_all_that_was_told() -> None:
    event = seen(TOLD, Policy(), fingerprint="ab")
    assert event.policy == "ab"
    assert (event.flow, event.process, event.local, event.remote) == ("f", DIG, TOLD.local, TOLD.remote)
    assert (event.datagrams_sent, event.datagrams_received, event.duration_ms) == (3, 2, 12)
    assert (event.bytes_sent, event.bytes_received) == (None, None)
    assert (event.outcome, event.direction, event.host, event.tls) == (
        Outcome.COMPLETED,
        Direction.OUTBOUND,
        None,
        None,
    )
    assert seen(replace(TOLD, ended=False), Policy()).outcome is Outcome.OPEN


def test_where_only_the_connect_was_seen_nothing_is_said_to_be_completed() -> None:
    """getaddrinfo() connects a socket to each address of a name, to sort them, and sends nothing."""
    connected = replace(TOLD, sent=None, received=None, seen=False)
    assert seen(connected, Policy()).outcome is Outcome.UNSEEN
    assert seen(replace(connected, ended=False), Policy()).outcome is Outcome.OPEN


def test_the_name_that_dns_gave_the_remote_names_the_flow_and_decides_nothing() -> None:
    policy = Policy(rules=(Rule(name="by name", action=Action.BLOCK, host=("a.test",)),))
    event = seen(TOLD, policy, ("a.test", "b.test"))
    assert (event.host, event.named_by, event.rule) == ("a.test", NamedBy.DNS, "defaults")
    assert seen(TOLD, policy, ()).host is None


def test_a_flow_that_comes_in_is_the_business_of_rules_for_those() -> None:
    outward = Rule(name="outward", action=Action.BLOCK, address=("203.0.113.0/24",))
    inward = Rule(name="inward", action=Action.BYPASS, direction=Direction.INBOUND, reason="they may ask")
    policy = Policy(rules=(outward, inward))
    event = seen(replace(TOLD, direction=Direction.INBOUND), policy)
    assert (event.rule, event.reason, event.direction) == (
        "inward",
        "they may ask; UDP passes unread",
        Direction.INBOUND,
    )
    assert seen(TOLD, policy).rule == "outward"
    assert seen(replace(TOLD, direction=Direction.INBOUND), Policy(action=Action.BLOCK)).rule == "defaults"


@pytest.mark.parametrize("action", Action)
def test_whatever_a_rule_says_the_flow_has_passed_and_the_reason_says_both(action: Action) -> None:
    rule = Rule(name="theirs", action=action, address=("203.0.113.0/24",), reason="as agreed")
    event = seen(TOLD, Policy(rules=(rule,)))
    assert (event.action, event.rule) == (Action.BYPASS, "theirs")
    assert event.reason.startswith("as agreed; UDP passes")
    assert ("cannot block it" in event.reason) == (action is Action.BLOCK)
    assert ("not captured" in event.reason) == (action is Action.CAPTURE)


def test_a_rule_by_host_is_not_about_it_for_no_datagram_shows_a_name() -> None:
    rule = Rule(name="by name", action=Action.BLOCK, host=("a.example",))
    assert seen(TOLD, Policy(rules=(rule,))).rule == "defaults"


def test_where_the_policy_asks_what_is_not_known_nothing_is_claimed_to_have_decided() -> None:
    policy = Policy(
        applications=(Application(name="hashed", sha256=("0" * 64,)),),
        rules=(Rule(name="of the hashed", action=Action.BLOCK, application=("hashed",)),),
    )
    event = seen(TOLD, policy)
    assert (event.action, event.rule) == (Action.BYPASS, "on_failure")
    assert "could not be read" in event.reason


@pytest.mark.parametrize(("port", "protocol"), [(53, "dns"), (5353, "dns"), (443, "quic"), (5, "udp")])
def test_the_protocol_is_that_of_the_port_that_was_spoken_to(port: int, protocol: str) -> None:
    assert protocol_of(replace(TOLD, remote=Endpoint.of("203.0.113.9", port))) == protocol
    served = replace(TOLD, direction=Direction.INBOUND, local=Endpoint.of("10.0.0.1", port))
    assert protocol_of(served) == protocol
    assert protocol_of(replace(TOLD, direction=Direction.INBOUND, remote=Endpoint.of("203.0.113.9", port))) == "udp"
