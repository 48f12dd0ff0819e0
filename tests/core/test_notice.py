"""What a policy means for whoever uses the machine: in words, complete, for any policy."""

from __future__ import annotations

import policies
from hypothesis import given

from mitmsec.core.model import Action, Direction, OnFailure, OnFinding
from mitmsec.core.notice import NO_NOTICE, Notice, notice
from mitmsec.core.policy import Application, Policy
from mitmsec.core.quarantine import Recipient
from mitmsec.core.rules import Rule


def lines(made: Notice, title: str) -> str:
    return "\n".join(next(section.lines for section in made.sections if section.title == title))


def test_rules_are_told_in_their_order_with_their_reasons() -> None:
    rules = (
        Rule(name="a", action=Action.BYPASS, category=("finance",), reason="money is nobody's business."),
        Rule(
            name="b", action=Action.BLOCK, host=("paste.example",), port=((80, 80), (8000, 8999)), expires="2027-01-01"
        ),
        Rule(name="c", action=Action.CAPTURE, ja4=("t13*",)),
        Rule(name="d", action=Action.DECRYPT, inspect=("iban", "own"), on_finding=OnFinding.BLOCK),
        Rule(name="e", action=Action.DECRYPT, on_finding=OnFinding.REDACT, direction=Direction.INBOUND),
    )
    told = lines(
        notice(Policy(rules=rules, action=Action.BYPASS, inbound=Action.BLOCK)), "What happens to their connections"
    )
    assert told.splitlines() == [
        "The first of these that fits a connection decides:",
        "Connections to sites in the list finance are passed on unread. Why: money is nobody's business.",
        "Connections to paste.example, port 80, 8000-8999 are blocked until 2027-01-01.",
        "Connections that meet further technical conditions are copied as they are, still encrypted.",
        "Connections are opened and inspected.",
        "Incoming connections are opened and inspected.",
        "All other connections that these programs make are passed on unread.",
        "Connections that come in to these programs are blocked.",
    ]


def test_what_is_looked_for_is_what_inspectors_of_opened_connections_look_for() -> None:
    opened = Rule(name="d", action=Action.DECRYPT, inspect=("iban", "own"), on_finding=OnFinding.QUARANTINE)
    redacted = Rule(name="e", action=Action.DECRYPT, on_finding=OnFinding.REDACT)
    told = lines(
        notice(Policy(rules=(opened, redacted), action=Action.BYPASS, inspect=("secrets",))), "What is looked for"
    )
    for part in (
        "bank account numbers", "what the inspector own looks for", "passwords, keys and access tokens",
        "stops the transfer", "blackened out",
    ):  # fmt: skip
        assert part in told
    assert lines(notice(Policy(action=Action.BYPASS)), "What is looked for") == "Nothing: no connection is opened."
    assert "malware" in lines(notice(Policy(inspect=("malware",))), "What is looked for")
    assert "nothing in particular" in lines(notice(Policy()), "What is looked for")


def test_programs_are_named_by_what_selects_them() -> None:
    one = Application(
        name="browsers", path=("/opt/*",), user=("mila",), signer=("CN=x",), pid=(7,), children=True,
        process_name=tuple(f"n{number}" for number in range(14)),
    )  # fmt: skip
    told = lines(notice(Policy(applications=(one,))), "Which programs")
    assert "Those of all other programs are not touched." in told
    assert "browsers: /opt/*; called n0, " in told
    assert "n11 and 2 more; run by mila; signed by CN=x; process 7, and programs that they start" in told
    assert "that are started under mitmsec" in lines(notice(Policy()), "Which programs")


def test_what_is_kept_and_what_happens_when_something_fails() -> None:
    sealed = Policy(recipients=(Recipient(name="alice", public="x"), Recipient(name="bob", public="y")))
    assert "any two of these people together can open it: alice, bob" in lines(notice(sealed), "What is kept")
    assert "sealed" not in lines(notice(Policy()), "What is kept")
    assert "pass unread" in lines(notice(Policy(on_failure=OnFailure.OPEN)), "If something fails")
    assert "have no connection" in lines(notice(Policy(on_failure=OnFailure.CLOSED)), "If something fails")


@given(policies.policies)
def test_every_rule_of_any_policy_has_its_sentence(policy: Policy) -> None:
    made = notice(policy)
    told = lines(made, "What happens to their connections").splitlines()
    assert len(told) == len(policy.rules) + bool(policy.rules) + 1 + (policy.inbound is not Action.BYPASS)
    assert all(line.endswith((".", "…", ":")) for line in told)
    assert made.policy == policy.fingerprint
    assert all(section.lines for section in made.sections)


def test_without_a_policy_it_says_that() -> None:
    assert "no policy has been in force" in NO_NOTICE.sections[0].lines[0]
