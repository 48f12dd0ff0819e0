"""What a policy allows to be learned: as it is written, and where nothing is written."""

from __future__ import annotations

import pytest
from policies import NOON_S

from mitmsec.config import PolicyErrors, parse_policy
from mitmsec.core.learning_section import HOURS_MAX, REFUSALS_MAX
from mitmsec.core.model import NOTHING_LEARNED, Action, Endpoint, Learning, Process
from mitmsec.core.policy import Policy
from mitmsec.core.sniff import Shown

SOMEBODY, WEB = Process(pid=1, exe="/usr/bin/app"), Endpoint(address="192.0.2.1", port=443)
RULE = '[[rule]]\nname = "r"\naction = "decrypt"\n'


def policy(text: str) -> Policy:
    return parse_policy("version = 1\n" + text, file="p", read_list=lambda name: "")


def learned(text: str) -> Learning:
    return policy(text).at_hello(SOMEBODY, WEB, NOON_S, shown=Shown.of("a.test")).learning


@pytest.mark.parametrize(
    ("text", "after", "on_request"),
    [
        ("", 3, True),
        ('[defaults]\non_failure = "closed"\n', 0, False),
        ("[defaults]\nlearned_bypass = 5\n", 5, True),
        ("[defaults]\nlearned_bypass = 0\n", 0, True),
        ("[defaults]\nlearned_bypass = false\n", 0, True),
        ('[defaults]\non_failure = "closed"\nlearned_bypass = 2\n', 2, False),
        ('[defaults]\non_certificate_request = "block"\n', 3, False),
        ('[defaults]\non_failure = "closed"\non_certificate_request = "bypass"\n', 0, True),
        (RULE, 3, True),
        (RULE + "learned_bypass = 1\n", 1, True),
        ("[defaults]\nlearned_bypass = 7\n" + RULE + "learned_bypass = false\n", 0, True),
        ("[defaults]\nlearned_bypass = 7\n" + RULE + 'on_certificate_request = "block"\n', 7, False),
        ('[inspector.keywords]\nwords = ["x"]\n' + RULE + 'inspect = ["keywords"]\non_finding = "block"\n', 0, False),
    ],
)
@pytest.mark.checklist("C10", "C11")
def test_what_holds(text: str, after: int, on_request: bool) -> None:
    """A rule stands before the defaults; where neither says anything, what is to be closed stays closed."""
    found = learned(text)
    assert (found.after, found.on_request) == (after, on_request)


def test_it_lasts_twelve_hours_or_what_the_defaults_say() -> None:
    assert learned("").hours == 12
    assert learned("[defaults]\nlearned_bypass_hours = 1\n").hours == 1


@pytest.mark.parametrize("word", ["allow", "decrypt", "block"])
def test_where_a_name_has_to_be_proven_for_a_bypass_it_has_to_for_a_learned_one(word: str) -> None:
    assert learned(f'[defaults]\nunproven_name = "{word}"\n').needs_proof is (word != "allow")


@pytest.mark.parametrize("action", [action for action in Action if action is not Action.DECRYPT])
def test_of_what_is_not_decrypted_nothing_is_learned(action: Action) -> None:
    assert learned(f'[defaults]\naction = "{action}"\n') == NOTHING_LEARNED


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[defaults]\nlearned_bypass = -1\n", f"-1 is not within 0-{REFUSALS_MAX}"),
        ("[defaults]\nlearned_bypass = true\n", "a number is wanted"),
        ('[defaults]\nlearned_bypass = "3"\n', "a number is wanted"),
        ("[defaults]\nlearned_bypass_hours = 0\n", f"0 is not within 1-{HOURS_MAX}"),
        ("[defaults]\nlearned_bypass_hours = 1.5\n", "a number is wanted"),
        ('[defaults]\non_certificate_request = "ignore"\n', '"ignore" is not one of block, bypass'),
        (RULE.replace("decrypt", "bypass") + "learned_bypass = 1\n", 'rules with action "decrypt"'),
        (RULE + 'direction = "inbound"\non_certificate_request = "block"\n', "connections that go out"),
    ],
)
def test_what_cannot_be_is_an_error_with_its_line(text: str, says: str) -> None:
    with pytest.raises(PolicyErrors) as caught:
        policy(text)
    errors = [error for error in caught.value.errors if says in error.message]
    assert errors, str(caught.value)
    assert errors[0].line == len(f"version = 1\n{text}".splitlines())
