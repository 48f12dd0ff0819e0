"""The arranged rules answer as reading them one after the other does."""

from __future__ import annotations

import random
import re
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from ipaddress import ip_address, ip_network
from itertools import product

import policies
import pytest
from hypothesis import given
from msgspec.structs import replace
from policies import NOON_S

from mitmsec.core import matcher
from mitmsec.core.explain import explain
from mitmsec.core.matcher import Matcher
from mitmsec.core.model import Action, Endpoint, Fact, ParentProcess, Process
from mitmsec.core.policy import Policy
from mitmsec.core.rules import Application, Rule
from mitmsec.core.selector import Program
from mitmsec.core.sniff import GREETED, NOTHING_SHOWN, OVER_TCP, WITH_NAME, Protocol, Shown


def one_by_one(policy: Policy, process: Process, remote: Endpoint, at_s: float, shown: Shown) -> int | None:
    """The rules as they are read, one after the other."""
    for number, rule in enumerate(policy.rules):
        programs = [Program.of(entry, policy.applications) for entry in rule.application]
        if (
            (not programs or any(program.accepts(process) for program in programs))
            and (not rule.user or process.user in rule.user)
            and (not rule.port or any(low <= remote.port <= high for low, high in rule.port))
            and (not rule.address or any(is_within(remote.address, network) for network in rule.address))
            and (not rule.host or any(is_called(policy, shown.name, pattern) for pattern in rule.host))
            and (not rule.category or any(is_called(policy, shown.name, one) for one in rule.categories))
            and (not rule.protocol or shown.protocol in rule.protocol)
            and (not rule.alpn or any(fnmatchcase(one, glob) for glob in rule.alpn for one in shown.alpn))
            and (not rule.ech or shown.ech in rule.ech)
            and (not rule.time or any(is_now(time, at_s) for time in rule.time))
            and (rule.expires_s is None or at_s < rule.expires_s)
            and (not rule.ja4 or any(fnmatchcase(shown.ja4 or "", glob) for glob in rule.ja4))
        ):
            return number
    return None


BERLIN_S = 3600  # before UTC, in winter
OFFSETS_S = {"UTC": 0, "Europe/Berlin": BERLIN_S, "local": 5 * 3600}
DAYS = {"Mon-Fri": "01234", "Sat,Sun": "56", "Sun-Tue": "601", "": "0123456"}


def is_now(time: str, at_s: float) -> bool:
    """Whether a time began today and goes on, or yesterday, and goes on after midnight; for the times of `policies`."""
    written = re.fullmatch(r"([A-Z][A-Za-z,-]*)? ?(?:(\S+)-(\S+))? ?(\S+)?", time)
    assert written is not None
    day, begin, end, zone = (part or "" for part in written.groups())
    now = datetime.fromtimestamp(at_s + OFFSETS_S[zone or "local"], UTC)
    today, yesterday, clock = str(now.weekday()), str((now.weekday() - 1) % 7), f"{now:%H:%M}"
    begin, end = begin or "00:00", end or "24:00"
    if begin < end:
        return today in DAYS[day] and begin <= clock < end
    return (today in DAYS[day] and begin <= clock) or (yesterday in DAYS[day] and clock < end)


def is_within(address: str, network: str) -> bool:
    return address != "" and ip_address(address) in ip_network(network)


def is_called(policy: Policy, name: str | None, pattern: str) -> bool:
    if name is None:
        return False
    for one in policy.lists:
        if one.name == pattern:
            return any(name == listed or name.endswith(f".{listed}") for listed in one.text.split("\n"))
    return name.endswith(pattern[1:]) if pattern.startswith("*.") else name == pattern


@given(policies.policies, policies.processes, policies.endpoints, policies.shows, policies.moments)
def test_the_first_rule_is_the_first_that_reading_finds(
    policy: Policy, process: Process, remote: Endpoint, shown: Shown, at_s: float
) -> None:
    found = Matcher(policy.applications, policy.rules, zones=policy.zones, lists=policy.listed).first(
        process, remote, at_s, shown
    )
    assert found == one_by_one(policy, process, remote, at_s, shown)


def test_thousands_of_random_flows_are_decided_as_reading_decides_them() -> None:
    draw = random.Random(20261130)
    flows = 0
    for _ in range(400):
        policy = policies.drawn(draw)
        arranged = Matcher(policy.applications, policy.rules, zones=policy.zones, lists=policy.listed)
        for process, remote, at_s, shown in (policies.drawn_flow(draw) for _ in range(50)):
            assert arranged.first(process, remote, at_s, shown) == one_by_one(policy, process, remote, at_s, shown)
            flows += 1
    assert flows == 20_000


def shown_at_most(policy: Policy) -> list[Shown]:
    """Together they stand for all first bytes that the rules can tell apart: names below each pattern's suffix, too."""
    suffixes = {host.lstrip("*.") for rule in policy.rules for host in rule.host}
    suffixes |= {name for one in policy.lists for name in one.names()}
    names = [None, "nowhere.test", *suffixes, *(f"x.{suffix}" for suffix in suffixes)]
    offers: list[tuple[str, ...]] = [(), ("h2",), ("http/1.1",), ("h2", "http/1.1")]
    ja4 = ("t13d_x", "t12d_x", "t13d_y", "_x", "-")
    every = product(names, offers, ja4, (True, False))
    hellos = [Shown(protocol=Protocol.TLS, name=n, alpn=a, ja4=j, ech=e) for n, a, j, e in every]
    named = [
        Shown(protocol=protocol, name=name) for protocol in WITH_NAME & OVER_TCP - {Protocol.TLS} for name in names
    ]
    return [*hellos, *named, *(Shown(protocol=protocol) for protocol in OVER_TCP - WITH_NAME)]


@given(policies.policies, policies.processes, policies.endpoints, policies.moments)
def test_an_answer_is_settled_only_if_no_first_bytes_change_it(
    policy: Policy, process: Process, remote: Endpoint, at_s: float
) -> None:
    found, settled = Matcher(
        policy.applications, policy.rules, zones=policy.zones, lists=policy.listed
    ).first_whatever_is_shown(process, remote, at_s)
    assert found == one_by_one(policy, process, remote, at_s, NOTHING_SHOWN)
    if settled:
        assert {one_by_one(policy, process, remote, at_s, shown) for shown in shown_at_most(policy)} == {found}


@given(policies.policies, policies.processes, policies.endpoints, policies.moments)
def test_what_a_greeting_can_bring_is_known_beforehand(
    policy: Policy, process: Process, remote: Endpoint, at_s: float
) -> None:
    possible = Matcher(policy.applications, policy.rules, zones=policy.zones, lists=policy.listed).while_silent(
        process, remote, at_s
    )
    greeted = [Shown(protocol=protocol) for protocol in (*GREETED, Protocol.TCP)]
    assert {one_by_one(policy, process, remote, at_s, shown) for shown in greeted} <= set(possible)
    assert possible[-1] == one_by_one(policy, process, remote, at_s, NOTHING_SHOWN)


def test_a_greeting_decides_between_the_rules_that_ask_for_a_protocol_a_server_shows() -> None:
    rules = [
        Rule(name="tls", action=Action.BLOCK, protocol=(Protocol.TLS,)),
        Rule(name="mail", action=Action.BLOCK, protocol=(Protocol.SMTP,)),
        Rule(name="name", action=Action.BLOCK, host=("a.test",)),
        Rule(name="named mail", action=Action.BLOCK, protocol=(Protocol.SMTP,), ja4=("*",)),
        Rule(name="else", action=Action.BLOCK, protocol=(Protocol.TCP,), port=((25, 25),)),
    ]
    arranged = Matcher((), rules)
    assert arranged.while_silent(policies.CURL, Endpoint(address="192.0.2.1", port=25), NOON_S) == (1, 4, None)
    assert Matcher((), rules[:1]).while_silent(policies.CURL, Endpoint(address="192.0.2.1", port=25), NOON_S) == (None,)
    assert Matcher((), [replace(rules[0], protocol=())]).while_silent(
        policies.CURL, Endpoint(address="", port=1), NOON_S
    ) == (0,)


def test_programs_are_remembered_within_a_bound() -> None:
    rules = (Rule(name="x", action=Action.BLOCK, application=("*/curl",)),)
    arranged = Matcher((), rules)
    remote = Endpoint(address="192.0.2.1", port=443)
    for number in range(matcher.REMEMBERED_PROGRAMS + 2):
        assert arranged.first(Process(pid=1, exe=f"/{number}/curl"), remote, NOON_S, NOTHING_SHOWN) == 0
    assert len(arranged._remembered) == 2


def test_programs_that_differ_in_what_rules_ask_for_are_not_taken_for_each_other() -> None:
    rules = [
        Rule(name=entry, action=Action.BLOCK, application=(entry,)) for entry in ("web", "boxes", "those", "browsers")
    ]
    arranged = Matcher(policies.APPLICATIONS, rules)
    remote = Endpoint(address="192.0.2.1", port=443)
    one = policies.CURL
    others = [
        (replace(one, unit="nginx.service"), 0),
        (replace(one, unit="ssh.service"), None),
        (replace(one, container=f"docker:{'cd' * 32}"), 1),
        (replace(one, container=f"docker:{'ef' * 32}"), None),
        (replace(one, pid=13), 2),
        (replace(one, parent=ParentProcess(pid=90, parent=ParentProcess(pid=13))), 2),
        (replace(one, parent=ParentProcess(pid=90, parent=ParentProcess(pid=14))), None),
        (replace(one, unread=(Fact.SERVICES,)), None),
        (replace(one, services=("w3svc",)), 0),
        (one, None),
    ]
    assert [arranged.first(process, remote, NOON_S, NOTHING_SHOWN) for process, _ in others] == [
        number for _, number in others
    ]


def test_pids_that_no_rule_asks_for_are_not_remembered() -> None:
    arranged = Matcher(policies.APPLICATIONS, (Rule(name="x", action=Action.BLOCK, application=("web",)),))
    for pid in range(1, 9):
        arranged.first(Process(pid=pid, exe="/x"), Endpoint(address="192.0.2.1", port=443), NOON_S, NOTHING_SHOWN)
    assert len(arranged._remembered) == 1


def test_a_thousand_rules_are_asked_by_pattern() -> None:
    rules = tuple(Rule(name=str(n), action=Action.BLOCK, host=(f"*.h{n}.example",)) for n in range(1000))
    arranged = Matcher((), rules)
    remote = Endpoint(address="192.0.2.1", port=443)
    assert arranged.first(policies.CURL, remote, NOON_S, Shown.of("a.b.h777.example")) == 777
    assert arranged.first(policies.CURL, remote, NOON_S, Shown.of("h777.example")) is None
    assert arranged.first_whatever_is_shown(policies.CURL, remote, NOON_S) == (None, False)


@pytest.mark.parametrize("text", ["1001", "late"])
def test_a_user_goes_by_number_and_by_name_whenever_the_account_was_made(text: str) -> None:
    """Of a policy that was read before there was one, too."""
    asks = Rule(name="x", action=Action.BLOCK, user=(text,))
    of = Application(name="of", user=(text,))
    arranged, remote = Matcher((), (asks,)), Endpoint(address="192.0.2.1", port=443)
    late = replace(policies.CURL, user="late", uid=1001)
    other = replace(policies.CURL, user="late2", uid=1002)
    assert [arranged.first(who, remote, NOON_S, NOTHING_SHOWN) for who in (late, other, late)] == [0, None, 0]
    assert [Program.of("of", (of,)).accepts(who) for who in (late, other)] == [True, False]
    story = [explain(Policy(rules=(asks,)), who, remote, NOON_S, NOTHING_SHOWN).tried[0] for who in (late, other)]
    assert [(one.accepts, one.conditions[0].why) for one in story] == [
        (True, f"it is {text}"),
        (False, f"late2 is not {text}"),
    ]


def test_a_user_who_is_not_known_leaves_a_rule_undecided_only_where_it_is_for_the_program() -> None:
    asks = Rule(name="x", action=Action.BLOCK, application=("*/curl",), user=("joe",))
    arranged = Matcher((), (asks,))
    remote = Endpoint(address="192.0.2.1", port=443)
    of_nobody = replace(policies.CURL, user=None)
    assert arranged.first(replace(policies.CURL, user="joe"), remote, NOON_S, NOTHING_SHOWN) == 0
    assert (arranged.first(of_nobody, remote, NOON_S, NOTHING_SHOWN), arranged.can_judge(of_nobody)) == (None, False)
    assert arranged.can_judge(replace(of_nobody, exe="/bin/wget"))
    assert Matcher((), (replace(asks, user=()),)).can_judge(of_nobody)


def test_what_one_flow_was_answered_is_no_answer_to_another() -> None:
    """Whatever of the two is the same object."""
    rules = (
        Rule(name="ended", action=Action.BLOCK, application=("/a",), port=((443, 443),), expires_s=int(NOON_S)),
        Rule(name="standing", action=Action.BLOCK, application=("/a",), port=((443, 443),)),
        Rule(name="rest", action=Action.BLOCK, port=((443, 443),)),
    )
    arranged = Matcher((), rules)
    mine, others = Process(pid=1, exe="/a"), Process(pid=1, exe="/b")
    secure, plain = Endpoint(address="192.0.2.1", port=443), Endpoint(address="192.0.2.1", port=80)
    asked = [(mine, secure, -1), (mine, secure, 0), (others, secure, 0), (others, plain, 0), (mine, secure, -1)]
    answers = [arranged.first(who, to, NOON_S + late_s, NOTHING_SHOWN) for who, to, late_s in asked]
    assert answers == [0, 1, 2, None, 0]
