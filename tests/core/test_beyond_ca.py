"""What a policy would decrypt and the CA may not speak for."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from mitmsec.core.beyond_ca import beyond_ca
from mitmsec.core.model import Action, Direction
from mitmsec.core.policy import Policy
from mitmsec.core.rules import Rule
from mitmsec.core.sniff import Protocol
from mitmsec_certs.constraints import written

LIMIT = written(["corp.example"], ["hr.corp.example"])


def told(*rules: Rule, action: Action = Action.BYPASS) -> list[str]:
    return beyond_ca(Policy(action=action, rules=rules), LIMIT.allow, LIMIT.excluded_names)


def decrypting(*host: str, direction: Direction = Direction.OUTBOUND) -> Rule:
    return Rule(name="r", action=Action.DECRYPT, host=host, direction=direction)


@pytest.mark.parametrize("host", ["www.corp.example", "*.it.corp.example", ".it.corp.example", "corp.example"])
def test_what_the_ca_may_speak_for_is_nobodys_news(host: str) -> None:
    assert told(decrypting(host)) == []


@pytest.mark.parametrize(
    "host",
    [
        "www.other.test",
        "*.other.test",
        ".other.test",
        "hr.corp.example",
        "*.corp.example",
        ".corp.example",
        "*.example",
    ],
)
def test_what_is_outside_or_has_something_outside_in_it_is_told(host: str) -> None:
    part = " (some names below it)" if host in {"*.corp.example", ".corp.example"} else ""
    (sentence,) = told(decrypting("www.corp.example", host))
    assert f'rule "r" decrypts {host}{part}, which the CA may not speak for' in sentence


def test_many_names_are_counted() -> None:
    (sentence,) = told(decrypting(*(f"{letter}.test" for letter in "abcde")))
    assert "a.test, b.test, c.test and 2 more" in sentence


def test_a_rule_without_names_and_the_defaults_decrypt_whatever_comes() -> None:
    by_rule, by_default = told(decrypting(), action=Action.DECRYPT)
    assert "whatever name" in by_rule
    assert "what no rule takes" in by_default


def test_rules_that_decrypt_nothing_and_what_comes_in_are_not_about_this_ca() -> None:
    """What comes in is decrypted with the service's own key."""
    bypass = Rule(name="b", action=Action.BYPASS, host=("www.other.test",))
    assert told(bypass, decrypting("www.other.test", direction=Direction.INBOUND)) == []


def test_a_page_takes_a_certificate_too() -> None:
    block = Rule(name="b", action=Action.BLOCK, host=("www.other.test",))
    assert told(block) == []
    (sentence,) = told(replace(block, page=True))
    assert 'rule "b" decrypts www.other.test, which the CA may not speak for' in sentence


def test_a_rule_for_protocols_without_certificates_needs_no_ca() -> None:
    plain = replace(decrypting(), protocol=(Protocol.HTTP,))
    assert told(plain) == []
    assert len(told(replace(plain, protocol=(Protocol.HTTP, Protocol.TLS)))) == 1
    assert len(told(replace(plain, protocol=(Protocol.SMTP,)))) == 1  # it goes on under TLS
