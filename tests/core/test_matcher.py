"""The arranged rules answer as reading them one after the other does."""

from __future__ import annotations

import policies
from hypothesis import given
from msgspec.structs import replace

from mitmsec.core import matcher
from mitmsec.core.matcher import Destination, Matcher
from mitmsec.core.model import Action, Endpoint, Fact, ParentProcess, Process
from mitmsec.core.policy import Policy
from mitmsec.core.rules import Rule
from mitmsec.core.selector import Program, host_patterns, parse_address


def one_by_one(policy: Policy, process: Process, remote: Endpoint, name: str | None) -> int | None:
    patterns = set() if name is None else set(host_patterns(name))
    for number, rule in enumerate(policy.rules):
        programs = [Program.of(entry, policy.applications) for entry in rule.application]
        if (
            (not programs or any(program.accepts(process) for program in programs))
            and (not rule.host or not patterns.isdisjoint(rule.host))
            and Destination.of(rule).accepts(remote.port, parse_address(remote.address))
        ):
            return number
    return None


@given(policies.policies, policies.processes, policies.endpoints, policies.names)
def test_the_first_rule_is_the_first_that_reading_finds(
    policy: Policy, process: Process, remote: Endpoint, name: str | None
) -> None:
    found = Matcher(policy.applications, policy.rules).first(process, remote, name)
    assert found == one_by_one(policy, process, remote, name)


@given(policies.policies, policies.processes, policies.endpoints)
def test_an_answer_is_settled_exactly_if_no_name_changes_it(policy: Policy, process: Process, remote: Endpoint) -> None:
    found, settled = Matcher(policy.applications, policy.rules).first_whatever_name(process, remote)
    # Names below each pattern's suffix, too: together they stand for every name that the rules can tell apart.
    probes = {
        name for rule in policy.rules for host in rule.host for name in (host.lstrip("*."), f"x.{host.lstrip('*.')}")
    }
    answers = {one_by_one(policy, process, remote, name) for name in (None, "nowhere.test", *probes)}
    assert found == one_by_one(policy, process, remote, None)
    assert settled is (answers == {found})


def test_programs_are_remembered_within_a_bound() -> None:
    rules = (Rule(name="x", action=Action.BLOCK, application=("*/curl",)),)
    arranged = Matcher((), rules)
    remote = Endpoint(address="192.0.2.1", port=443)
    for number in range(matcher.REMEMBERED_PROGRAMS + 2):
        assert arranged.first(Process(pid=1, exe=f"/{number}/curl"), remote, None) == 0
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
    assert [arranged.first(process, remote, None) for process, _ in others] == [number for _, number in others]


def test_pids_that_no_rule_asks_for_are_not_remembered() -> None:
    arranged = Matcher(policies.APPLICATIONS, (Rule(name="x", action=Action.BLOCK, application=("web",)),))
    for pid in range(1, 9):
        arranged.first(Process(pid=pid, exe="/x"), Endpoint(address="192.0.2.1", port=443), None)
    assert len(arranged._remembered) == 1


def test_a_thousand_rules_are_asked_by_pattern() -> None:
    rules = tuple(Rule(name=str(n), action=Action.BLOCK, host=(f"*.h{n}.example",)) for n in range(1000))
    arranged = Matcher((), rules)
    remote = Endpoint(address="192.0.2.1", port=443)
    assert arranged.first(policies.CURL, remote, "a.b.h777.example") == 777
    assert arranged.first(policies.CURL, remote, "h777.example") is None
    assert arranged.first_whatever_name(policies.CURL, remote) == (None, False)
