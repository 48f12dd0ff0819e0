"""Rules that can never match are found, and no rule that can is called one."""

from __future__ import annotations

import msgspec
import policies
import pytest
from hypothesis import given

from mitmsec.core.contradiction import (
    escapes,
    expired,
    impossible_defaults,
    impossible_pairs,
    never_matching,
    without_key,
)
from mitmsec.core.known_service import KnownService
from mitmsec.core.model import Action, Delivery, Direction, Endpoint, OnFailure, OnFinding, Process, Quic
from mitmsec.core.policy import Policy, Rule
from mitmsec.core.sniff import WITH_HELLO, WITH_NAME, Protocol, Shown


def rule(name: str, **conditions: object) -> Rule:
    return Rule(name=name, action=Action.BLOCK, **conditions)  # type: ignore[arg-type]


def shadowed(*rules: Rule) -> list[int | None]:
    return [found.rule for found in never_matching(Policy(rules=rules), range(len(rules)))]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {"host": ("a.example",)}),
        ({"host": ("*.example",)}, {"host": ("a.example", "*.b.example")}),
        ({"host": ("x.test", "*.example")}, {"host": ("*.a.example",), "port": ((443, 443),)}),
        ({"application": ("/usr/*",)}, {"application": ("/usr/bin/*",)}),
        ({"application": ("a", "b")}, {"application": ("b",)}),
        ({"port": ((1, 50), (51, 100))}, {"port": ((20, 80),)}),
        ({"address": ("10.0.0.0/8",)}, {"address": ("10.1.0.0/16",)}),
        ({"user": ("joe", "root")}, {"user": ("joe",)}),
        ({"protocol": (Protocol.TLS, Protocol.SSH)}, {"protocol": (Protocol.SSH,)}),
        ({"protocol": tuple(WITH_HELLO)}, {"alpn": ("h2",)}),
        ({"protocol": tuple(WITH_HELLO)}, {"host": ("a.example",), "ja4": ("t13*",)}),
        ({"protocol": tuple(WITH_NAME)}, {"host": ("a.example",)}),
        ({"alpn": ("h?", "x")}, {"alpn": ("h2",)}),
        ({"ech": (True,)}, {"ech": (True,), "ja4": ("x",)}),
        ({"protocol": tuple(WITH_HELLO)}, {"ech": (False,)}),
        ({"ja4": ("t13*",)}, {"ja4": ("t13d*", "t13i?"), "user": ("joe",)}),
        ({"time": ("Mon-Fri",)}, {"time": ("Tue 08:00-12:00",)}),
        ({"expires_s": 9}, {"expires_s": 8}),
        ({}, {"expires_s": 8, "time": ("Mon",)}),
    ],
)
def test_a_rule_behind_a_wider_one_never_matches(first: dict[str, object], second: dict[str, object]) -> None:
    assert shadowed(rule("1", **first), rule("2", **second)) == [1]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"host": ("a.example",)}, {}),
        ({"host": ("*.example",)}, {"host": ("*.example", "example")}),
        ({"host": ("*.example",)}, {"host": ("a.example", "a.test")}),
        ({"application": ("a",)}, {}),
        ({"application": ("a",)}, {"application": ("b",)}),
        ({"application": ("a",)}, {"application": ("/a",)}),
        ({"port": ((443, 443),)}, {}),
        ({"port": ((443, 443),)}, {"port": ((443, 444),)}),
        ({"address": ("10.0.0.0/8",)}, {}),
        ({"address": ("10.1.0.0/16",)}, {"address": ("10.0.0.0/8",)}),
        ({"user": ("joe",)}, {}),
        ({"user": ("joe",)}, {"user": ("joe", "root")}),
        ({"protocol": (Protocol.TLS,)}, {}),
        ({"protocol": (Protocol.TLS,)}, {"host": ("a.example",)}),
        ({"protocol": (Protocol.SSH,)}, {"protocol": (Protocol.SSH, Protocol.SMTP)}),
        ({"alpn": ("h2",)}, {"protocol": (Protocol.TLS,)}),
        ({"ech": (True,)}, {"ech": (False,)}),
        ({"ech": (True,)}, {"protocol": (Protocol.TLS,)}),
        ({"ja4": ("t13d*",)}, {"ja4": ("t13*",)}),
        ({"time": ("Mon-Fri",)}, {}),
        ({"time": ("Mon-Fri",)}, {"time": ("Fri 22:00-06:00",)}),
        ({"expires_s": 9}, {}),
        ({"expires_s": 8}, {"expires_s": 9}),
    ],
)
def test_a_rule_that_still_can_match_is_left_alone(first: dict[str, object], second: dict[str, object]) -> None:
    assert shadowed(rule("1", **first), rule("2", **second)) == []


def test_the_message_names_the_first_rule_that_shadows_and_only_sound_rules_count() -> None:
    rules = (rule("a", port=((1, 9),)), rule("all"), rule("late", host=("a",)))
    (found,) = never_matching(Policy(rules=rules), {0, 1, 2})
    assert (found.rule, found.key) == (2, "")
    assert '"all"' in found.message
    assert not list(never_matching(Policy(rules=rules), {0, 2}))


@given(policies.policies, policies.processes, policies.endpoints, policies.shows, policies.moments)
def test_no_flow_ever_reaches_a_rule_called_unreachable(
    policy: Policy, process: Process, remote: Endpoint, shown: Shown, at_s: float
) -> None:
    unreachable = {policy.rules[found.rule or 0].name for found in never_matching(policy, range(len(policy.rules)))}
    assert policy.at_hello(process, remote, at_s, shown=shown).rule not in unreachable


@pytest.mark.parametrize(
    ("action", "inspect", "on_finding", "keys"),
    [
        (Action.BYPASS, ("keywords",), OnFinding.BLOCK, ["inspect", "on_finding"]),
        (Action.CAPTURE, None, OnFinding.ALERT, []),
        (Action.BLOCK, (), OnFinding.BLOCK, ["on_finding"]),
        (Action.DECRYPT, ("keywords",), OnFinding.BLOCK, []),
        (Action.DECRYPT, None, OnFinding.BLOCK, ["on_finding"]),
        (Action.DECRYPT, None, OnFinding.ALERT, []),
    ],
)
def test_pairs_that_cannot_be(
    action: Action, inspect: tuple[str, ...] | None, on_finding: OnFinding, keys: list[str]
) -> None:
    policy = Policy(rules=(Rule(name="r", action=action, inspect=inspect, on_finding=on_finding),))
    assert [found.key for found in impossible_pairs(policy)] == keys


@pytest.mark.parametrize(("inspect", "keys"), [(("keywords",), []), (None, ["delivery"])])
def test_nothing_waits_for_nobody(inspect: tuple[str, ...] | None, keys: list[str]) -> None:
    policy = Policy(rules=(Rule(name="r", action=Action.DECRYPT, inspect=inspect, delivery=Delivery.TAIL),))
    assert [found.key for found in impossible_pairs(policy)] == keys


@pytest.mark.parametrize(
    ("action", "direction", "keys"),
    [
        (Action.BLOCK, Direction.OUTBOUND, []),
        (Action.BLOCK, Direction.INBOUND, ["page"]),
        (Action.BYPASS, Direction.OUTBOUND, ["page"]),
        (Action.DECRYPT, Direction.OUTBOUND, ["page"]),
    ],
)
def test_a_page_is_for_what_is_blocked_on_its_way_out(action: Action, direction: Direction, keys: list[str]) -> None:
    policy = Policy(rules=(Rule(name="r", action=action, page=True, direction=direction),))
    assert [found.key for found in impossible_pairs(policy)] == keys
    assert policy.decided_by(policy.rules[0], direction).page is (keys == [])


def test_inspection_by_default_needs_something_that_is_decrypted_and_inherits_it() -> None:
    own = Rule(name="r", action=Action.DECRYPT, inspect=())
    inherits = Rule(name="r", action=Action.DECRYPT)

    def found(**settings: object) -> list[str]:
        policy = Policy(inspect=("keywords",), **settings)  # type: ignore[arg-type]
        return [one.key for one in impossible_defaults(policy)]

    assert found(action=Action.BYPASS) == found(action=Action.BYPASS, rules=(own,)) == ["inspect"]
    assert found(action=Action.BYPASS, rules=(inherits,)) == found() == []


def test_a_rule_for_one_direction_hides_none_for_the_other() -> None:
    inward = {"direction": Direction.INBOUND}
    assert shadowed(rule("1"), rule("2", **inward)) == []
    assert shadowed(rule("1", **inward), rule("2")) == []
    assert shadowed(rule("1", **inward), rule("2", port=((443, 443),), **inward)) == [1]


WEB = KnownService(name="web", names=("a.test",), port=((443, 443),))


@pytest.mark.parametrize(
    ("services", "port", "says"),
    [
        ((), (), ["action"]),
        ((WEB,), (), []),
        ((WEB,), ((443, 443),), []),
        ((WEB,), ((80, 80), (8443, 8443)), ["port"]),
        ((WEB, KnownService(name="any")), ((80, 80),), []),
    ],
)
def test_what_comes_in_is_decrypted_with_some_key_or_not_at_all(
    services: tuple[KnownService, ...], port: tuple[tuple[int, int], ...], says: list[str]
) -> None:
    decrypts = Rule(name="in", action=Action.DECRYPT, direction=Direction.INBOUND, port=port)
    others = (rule("blocks", direction=Direction.INBOUND), Rule(name="out", action=Action.DECRYPT))
    found = list(without_key(Policy(rules=(*others, decrypts), services=services)))
    assert [(one.rule, one.key) for one in found] == [(2, key) for key in says]


def test_defaults_for_what_comes_in_need_a_key_too_and_take_inspectors() -> None:
    policy = Policy(action=Action.BYPASS, inbound=Action.DECRYPT, inspect=("keywords",))
    (found,) = without_key(policy)
    assert (found.rule, found.key) == (None, "inbound")
    assert list(impossible_defaults(policy)) == []
    assert list(without_key(Policy(inbound=Action.DECRYPT, services=(WEB,)))) == []


@pytest.mark.parametrize(
    ("differs", "on_failure", "told"),
    [
        ({}, OnFailure.OPEN, ["in"]),
        ({}, OnFailure.CLOSED, []),
        ({"on_finding": OnFinding.ALERT}, OnFailure.OPEN, []),
        ({"direction": Direction.OUTBOUND}, OnFailure.OPEN, []),
        ({"action": Action.BLOCK}, OnFailure.OPEN, []),
    ],
)
def test_a_peer_that_can_pass_by_what_blocks_is_told_of(
    differs: dict[str, object], on_failure: OnFailure, told: list[str]
) -> None:
    blocks = Rule(name="in", action=Action.DECRYPT, direction=Direction.INBOUND, on_finding=OnFinding.BLOCK)
    policy = Policy(rules=(msgspec.structs.replace(blocks, **differs),), on_failure=on_failure)
    assert [sentence.split('"')[1] for sentence in escapes(policy)] == told


@pytest.mark.parametrize(
    ("protocol", "conditions", "says"),
    [
        ((Protocol.SSH,), {"alpn": ("h2",)}, "alpn, ja4 and ech are TLS's"),
        ((Protocol.HTTP,), {"ja4": ("t13*",)}, "alpn, ja4 and ech are TLS's"),
        ((Protocol.SSH, Protocol.HTTP2), {"host": ("a.example",)}, "none of these shows a name"),
        ((Protocol.SSH, Protocol.HTTP), {"host": ("a.example",)}, ""),
        ((Protocol.SSH, Protocol.TLS), {"host": ("a.example",), "ja4": ("*",)}, ""),
        ((Protocol.SSH,), {}, ""),
    ],
)
def test_a_protocol_that_cannot_show_what_the_rule_asks_for_is_told(
    protocol: tuple[Protocol, ...], conditions: dict[str, object], says: str
) -> None:
    found = list(impossible_pairs(Policy(rules=(rule("r", protocol=protocol, **conditions),))))
    assert [(one.key, one.message.startswith(says)) for one in found] == ([("protocol", True)] if says else [])


@pytest.mark.parametrize(
    ("action", "more", "says"),
    [
        (Action.BLOCK, {}, ""),
        (Action.BYPASS, {"host": ("a.example",), "alpn": ("h3",), "ja4": ("q13*",)}, ""),
        (Action.DECRYPT, {}, '[defaults] has quic = "refuse", so it is not read'),
        (Action.CAPTURE, {}, "QUIC is never captured"),
        (Action.BLOCK, {"direction": Direction.INBOUND}, "of connections that come in, QUIC is none"),
    ],
)
def test_quic_can_pass_or_be_refused_on_its_way_out(action: Action, more: dict[str, object], says: str) -> None:
    alone = Rule(name="r", action=action, protocol=(Protocol.QUIC,), **more)  # type: ignore[arg-type]
    found = list(impossible_pairs(Policy(rules=(alone,))))
    assert [(one.key, one.message.startswith(says)) for one in found] == ([("protocol", True)] if says else [])


def test_what_is_to_be_read_of_quic_is_said_in_the_defaults() -> None:
    alone = Rule(name="r", action=Action.DECRYPT, protocol=(Protocol.QUIC,))
    assert list(impossible_pairs(Policy(quic=Quic.DECRYPT, rules=(alone,)))) == []


def test_rules_that_have_expired_are_told_with_whom_to_ask() -> None:
    rules = (rule("a", expires="2026-01-05", expires_s=9, owner="joe"), rule("b", expires="x", expires_s=10), rule("c"))
    assert expired(rules, 8) == []
    assert expired(rules, 9) == ['rule "a" of joe expired 2026-01-05: it matches nothing more']
    assert expired(rules, 10)[1:] == ['rule "b" expired x: it matches nothing more']
