"""Rules that earlier ones together leave nothing to, and rules that overlap: told truly, where it is cheap."""

from __future__ import annotations

import policies
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mitmsec.core import overlap
from mitmsec.core.contradiction import covers
from mitmsec.core.covered_names import CoveredNames
from mitmsec.core.explain import explain
from mitmsec.core.host_lists import HostList, Listed
from mitmsec.core.model import Action, Direction, Endpoint
from mitmsec.core.overlap import overlaps, together
from mitmsec.core.policy import Policy, Rule
from mitmsec.core.sniff import WITH_HELLO, Protocol, Shown

BYPASS, BLOCK = Action.BYPASS, Action.BLOCK


def rule(name: str, action: Action = BYPASS, **conditions: object) -> Rule:
    return Rule(name=name, action=action, **conditions)  # type: ignore[arg-type]


LISTS = (HostList.of("@a", "a.example"), HostList.of("@at", "a.test"))
NAMES = CoveredNames(Listed(LISTS))
LOW, HIGH = rule("low", port=((1, 1023),)), rule("high", port=((1024, 65535),))


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ((LOW, HIGH), rule("r")),
        ((LOW, HIGH), rule("r", port=((443, 8443),), host=("a.example",))),
        ((rule("a", host=("a.example",)), rule("b", host=("*.a.example",))), rule("r", host=("@a",))),
        ((rule("a", host=("@at",)), rule("b", host=("b.test",))), rule("r", host=("b.test", "x.a.test"))),
        (
            (rule("a", address=("10.0.0.0/9",)), rule("b", address=("10.128.0.0/9",))),
            rule("r", address=("10.0.0.0/8",), port=((443, 443),)),
        ),
        ((rule("a", address=("0.0.0.0/0",)), rule("b", address=("::/0",))), rule("r")),
        (
            (rule("a", application=("web",)), rule("b", application=("/usr/*",))),
            rule("r", application=("web", "/usr/x")),
        ),
        ((rule("a", user=("ann",)), rule("b", user=("joe",))), rule("r", user=("joe", "ann"))),
        (
            (rule("a", protocol=tuple(WITH_HELLO)), rule("b", protocol=(Protocol.HTTP, Protocol.HTTP_PROXY))),
            rule("r", host=("a.example",)),
        ),
    ],
)  # fmt: skip
def test_rules_that_share_one_condition_among_them_leave_nothing(earlier: tuple[Rule, ...], later: Rule) -> None:
    assert together(earlier, later, NAMES) == earlier
    assert together(earlier[:1], later, NAMES) == ()
    (told,) = overlaps(Policy(rules=(*earlier, replace(later, action=BLOCK)), lists=LISTS))
    first, second = (f'"{one.name}"' for one in earlier)
    assert told == (
        f'rule "r" can never match: the earlier rules {first} and {second} together take all that it describes'
    )


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ((LOW, replace(HIGH, port=((1025, 65535),))), rule("r")),
        ((LOW, replace(HIGH, host=("a.example",))), rule("r")),
        ((LOW, HIGH), rule("r", direction=Direction.INBOUND)),
        ((rule("a", user=("ann",)), rule("b", user=("joe",))), rule("r")),
        ((rule("a", application=("web",)), rule("b", application=("/usr/*",))), rule("r")),
        ((rule("a", host=("a.example",)), rule("b", host=("b.example",))), rule("r")),
        ((rule("a", address=("0.0.0.0/0",)), rule("b", port=((1, 65535),))), rule("r")),
    ],
)
def test_where_something_is_left_nothing_is_said(earlier: tuple[Rule, ...], later: Rule) -> None:
    assert together(earlier, later, NAMES) == ()


def test_only_rules_that_are_needed_are_named() -> None:
    spare = rule("spare", port=((80, 90),))
    assert together((LOW, spare, HIGH), rule("r"), NAMES) == (LOW, HIGH)


def test_an_exception_before_a_wider_rule_is_how_policies_are_written() -> None:
    banks = rule("banks", host=("*.bank.example",))
    assert overlaps(Policy(rules=(banks, rule("rest", BLOCK)), lists=LISTS)) == []
    assert overlaps(Policy(rules=(banks, rule("web", BLOCK, port=((443, 443),))), lists=LISTS)) == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"host": ("*.a.example",), "port": ((1, 500),)}, {"host": ("x.a.example",), "port": ((443, 600),)}),
        ({"host": ("@a",), "port": ((1, 500),)}, {"host": ("*.a.example",), "port": ((443, 600),)}),
        ({"application": ("/usr/*",), "port": ((1, 9),)}, {"application": ("/usr/bin/x",), "port": ((9, 10),)}),
        ({"address": ("10.0.0.0/8",), "port": ((1, 9),)}, {"address": ("10.1.0.0/16",), "port": ((9, 10),)}),
        ({"user": ("ann", "joe")}, {"user": ("joe", "eve")}),
        ({"alpn": ("h2", "x"), "port": ((1, 9),)}, {"alpn": ("h*",), "port": ((9, 10),)}),
        ({"protocol": (Protocol.TLS, Protocol.SSH)}, {"protocol": (Protocol.SSH, Protocol.HTTP)}),
    ],
)
def test_two_rules_that_overlap_are_told_in_their_order(one: dict[str, object], other: dict[str, object]) -> None:
    first, second = rule("first", BYPASS, **one), rule("second", BLOCK, **other)
    assert overlaps(Policy(rules=(first, second), lists=LISTS)) == [
        'rules "first" and "second" overlap: what both describe is bypass, by the earlier'
    ]
    assert overlaps(Policy(rules=(first, replace(second, action=BYPASS)), lists=LISTS)) == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"host": ("a.example",)}, {"host": ("*.a.example",)}),
        ({"host": ("a.example",)}, {"host": ("b.example",)}),
        ({"port": ((1, 9),)}, {"port": ((10, 20),)}),
        ({"address": ("10.0.0.0/8",)}, {"address": ("11.0.0.0/8",)}),
        ({"application": ("/usr/*",)}, {"application": ("/opt/*",)}),
        ({"user": ("ann",)}, {"user": ("joe",)}),
        ({"protocol": (Protocol.SSH,)}, {"alpn": ("h2",)}),
        ({"alpn": ("h2",)}, {"alpn": ("http/1.1",)}),
        ({"ech": (True,)}, {"ech": (False,)}),
        ({"direction": Direction.INBOUND, "port": ((1, 9),)}, {"port": ((5, 20),)}),
        ({"time": ("Mon 08:00-18:00",), "port": ((1, 9),)}, {"time": ("Sun 08:00-18:00",), "port": ((5, 20),)}),
    ],
)
def test_two_rules_that_no_connection_meets_do_not_overlap(one: dict[str, object], other: dict[str, object]) -> None:
    assert overlaps(Policy(rules=(rule("first", BYPASS, **one), rule("second", BLOCK, **other)), lists=LISTS)) == []


def test_long_lists_and_very_many_rules_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "LIST_LIMIT", 2)
    first = rule("first", BYPASS, host=("a.example", "b.example"), port=((1, 9),))
    assert (
        overlaps(Policy(rules=(first, rule("second", BLOCK, host=("a.example",), port=((9, 10),))), lists=LISTS)) == []
    )
    assert together((rule("a", user=("a", "b")), rule("b", user=("c",))), rule("r", user=("a", "c")), NAMES) == ()
    monkeypatch.setattr(overlap, "RULES_LIMIT", 1)
    assert overlaps(Policy(rules=(LOW, HIGH), lists=LISTS)) == [
        "of more than 1 rules it is not looked whether some overlap"
    ]


def test_of_very_many_overlaps_a_few_are_told_and_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "SHOWN_LIMIT", 2)
    many = [rule(f"r{n}", BYPASS if n % 2 else BLOCK, port=((n + 1, n + 9),)) for n in range(4)]
    told = overlaps(Policy(rules=tuple(many), lists=LISTS))
    assert (len(told), told[-1]) == (3, "and 2 more of this kind")


remotes = st.builds(Endpoint.of, st.sampled_from([a for a in policies.ADDRESSES if a]), st.sampled_from(policies.PORTS))
shown = st.builds(Shown, protocol=st.sampled_from([Protocol.TLS]), name=st.none() | st.sampled_from(policies.NAMES))


@given(policies.policies, st.sampled_from(policies.PROCESSES), remotes, shown)
def test_what_is_said_holds_for_every_connection(
    policy: Policy, process: object, remote: Endpoint, shown: Shown
) -> None:
    """A rule that can never match matches none; and two that both match one are within each other, or overlap."""
    tried = explain(policy, process, remote, policies.NOON_S, shown).tried  # type: ignore[arg-type]
    names = CoveredNames(policy.listed)
    accepting = [number for number, one in enumerate(tried) if one.accepts]
    for place, number in enumerate(accepting):
        later = policy.rules[number]
        assert not (tried[number].decided and together(policy.rules[:number], later, names))
        for earlier in (policy.rules[one] for one in accepting[:place]):
            may_differ = earlier.application and later.application and earlier.application != later.application
            may_differ = may_differ or overlap._asked(earlier) != overlap._asked(later)
            within = covers(earlier, later, names) or covers(later, earlier, names)
            assert overlap._overlap(earlier, later, names) or within or may_differ
