"""What `policy check` says of rules that UDP does not keep to, and of which it says nothing."""

from __future__ import annotations

import pytest

from mitmsec.core.model import Action, Quic
from mitmsec.core.policy import Policy
from mitmsec.core.rules import Rule
from mitmsec.core.sniff import Protocol
from mitmsec.core.udp_limits import udp_limits


def rule(name: str = "r", action: Action = Action.BLOCK, **conditions: tuple[object, ...]) -> Rule:
    return Rule(name=name, action=action, **conditions)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "conditions",
    [
        {},
        {"address": ("10.0.0.0/8",)},
        {"port": ((53, 53),)},
        {"port": ((25, 25), (1, 1000))},
        {"application": ("/x",)},
    ],
    ids=str,
)
def test_a_block_of_whatever_goes_somewhere_is_one_of_tcp_only(conditions: dict[str, tuple[object, ...]]) -> None:
    said = ['rule "r": block holds for TCP only; UDP to there passes, and is recorded']
    assert udp_limits(Policy(rules=(rule(**conditions),))) == said


@pytest.mark.parametrize("conditions", [{"host": ("a.test",)}, {"port": ((25, 25),)}, {"port": ((443, 443),)}], ids=str)
def test_a_block_by_name_or_of_ports_of_tcp_promises_nothing_of_udp(
    conditions: dict[str, tuple[object, ...]],
) -> None:
    assert udp_limits(Policy(rules=(rule(**conditions),))) == []


@pytest.mark.parametrize("action", [Action.BYPASS, Action.CAPTURE, Action.DECRYPT])
def test_only_block_is_missed(action: Action) -> None:
    assert udp_limits(Policy(action=action, rules=(rule(action=action),))) == []


def test_defaults_that_block_are_told() -> None:
    assert udp_limits(Policy(action=Action.BLOCK)) == [
        "[defaults]: block holds for TCP only; UDP passes, and is recorded"
    ]


def test_bypassed_quic_is_not_read_and_refused_by_the_connect_hook_only() -> None:
    names = tuple(rule(f"r{number}", action, host=("a.test",)) for number, action in enumerate(Action))
    policy = Policy(quic=Quic.BYPASS, rules=(rule("port", port=((443, 443),)), *names))
    assert udp_limits(policy) == [
        'rules "r2", "r3": quic = "bypass" lets programs reach these hosts by QUIC, unread',
        'rule "r0": of QUIC it holds by the connect hook, and by no other backend',
    ]


def test_a_rule_about_quic_needs_the_connect_hook_and_quic_that_is_not_refused_anyway() -> None:
    alone, both = (Protocol.QUIC,), (Protocol.TLS, Protocol.QUIC)
    rules = (
        rule("quic", protocol=alone),
        rule("both", protocol=both),
        rule("tls", host=("a",), protocol=(Protocol.TLS,)),
    )
    by_hook = 'rules "quic", "both": of QUIC it holds by the connect hook, and by no other backend'
    assert udp_limits(Policy(quic=Quic.BYPASS, rules=rules)) == [by_hook]
    refused = 'rule "quic": quic = "refuse" refuses all QUIC, and no rule is asked'
    assert udp_limits(Policy(quic=Quic.REFUSE, rules=rules)) == [refused]
    read = rule("read", Action.DECRYPT, protocol=both)
    unread = 'rule "read": quic = "bypass" lets programs reach these hosts by QUIC, unread'
    assert udp_limits(Policy(quic=Quic.BYPASS, rules=(read,))) == [unread]


def test_many_rules_are_counted() -> None:
    (said,) = udp_limits(Policy(rules=tuple(rule(f"r{number}") for number in range(9))))
    assert said.startswith('rules "r0", "r1", "r2" and 6 more: ')


def test_quic_that_is_decrypted_is_read_and_not_captured() -> None:
    names = (rule("r1", Action.CAPTURE, host=("a.test",)), rule("r2", Action.DECRYPT, host=("b.test",)))
    said = ['rule "r1": quic = "decrypt" lets programs reach these hosts by QUIC, unread']
    assert udp_limits(Policy(quic=Quic.DECRYPT, rules=names)) == said
