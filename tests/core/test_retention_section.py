"""What a policy keeps outside the log, and for how long: as it is written, and what that comes to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policies import NOON_S

from mitmsec.config import PolicyErrors, parse_policy
from mitmsec.core.model import Action, Endpoint, Process
from mitmsec.core.policy import Policy
from mitmsec.core.retention_section import LONGEST_S, UNITS_S, span_s
from mitmsec.core.sniff import Shown

SOMEBODY, WEB = Process(pid=1, exe="/usr/bin/app"), Endpoint(address="192.0.2.1", port=443)
DEFAULTS = '[defaults]\ninspect = ["secrets"]\n'
KEPT = DEFAULTS + "keep_evidence = true\n"
RULE = '[[rule]]\nname = "r"\naction = "decrypt"\n'
DAY_S = 86_400


def policy(text: str) -> Policy:
    return parse_policy("version = 1\n" + text, file="p", read_list=lambda name: "")


def errors(text: str) -> list[str]:
    with pytest.raises(PolicyErrors) as caught:
        policy(text)
    return [str(error) for error in caught.value.errors]


@pytest.mark.parametrize(
    ("text", "kept_s"),
    [
        (DEFAULTS, None),
        (KEPT, 0),
        (KEPT + '[retention]\nevidence = "30d"\n', 30 * DAY_S),
        (DEFAULTS + '[retention]\nevidence = "30d"\n', None),
        (DEFAULTS + RULE + "keep_evidence = true\n", 0),
        (KEPT + RULE + "keep_evidence = false\n", None),
        (KEPT + RULE, 0),
        (RULE + 'inspect = ["secrets"]\nkeep_evidence = true\n[retention]\nevidence = "12h"\n', DAY_S // 2),
        (KEPT + '[[rule]]\nname = "r"\naction = "bypass"\nport = [443]\n', None),
    ],
)
def test_a_rule_stands_before_the_defaults_and_nothing_is_kept_unasked(text: str, kept_s: int | None) -> None:
    decided = policy(text).at_hello(SOMEBODY, WEB, NOON_S, shown=Shown.of("a.test"))
    assert decided.keep_evidence_s == kept_s


def test_what_becomes_a_decryption_for_want_of_a_proof_keeps_what_the_defaults_keep() -> None:
    text = '[[rule]]\nname = "r"\naction = "bypass"\nhost = ["a.test"]\n'
    doubting = policy(KEPT + 'unproven_name = "decrypt"\n' + text)
    decided = doubting.at_hello(SOMEBODY, WEB, NOON_S, shown=Shown.of("a.test"), proven=False)
    assert (decided.action, decided.keep_evidence_s) == (Action.DECRYPT, 0)


def test_another_time_is_another_policy() -> None:
    texts = (DEFAULTS, KEPT, KEPT + '[retention]\nevidence = "30d"\n', KEPT + '[retention]\nevidence = "31d"\n')
    assert len({policy(text).fingerprint for text in texts}) == len(texts)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (RULE + "keep_evidence = true\n", 'p:5: rule "r": keep_evidence: without any inspector nothing can be found'),
        (
            '[[rule]]\nname = "r"\naction = "bypass"\nkeep_evidence = true\n',
            'p:5: rule "r": keep_evidence: action "bypass" shows no content; it needs "decrypt"',
        ),
        (RULE + 'inspect = ["secrets"]\nkeep_evidence = "yes"\n', "p:6: rule"),
        ("[defaults]\nkeep_evidence = true\n", "p:3: defaults.keep_evidence: nothing is inspected of which this"),
        ("[defaults]\nkeep_evidence = 1\n", "p:3: defaults.keep_evidence: true or false is wanted"),
        ('[retention]\nevidence = "soon"\n', 'p:3: retention.evidence: "soon" is no span of time'),
        ('[retention]\nevidence = "0d"\n', 'p:3: retention.evidence: "0d" is not within 1h and 36500d'),
        ("[retention]\nevidence = 30\n", "p:3: retention.evidence: a text is wanted, not the number 30"),
        ('[retention]\nevidense = "30d"\n', 'p:3: retention.evidense: unknown key; did you mean "evidence"?'),
    ],
)
def test_what_cannot_be_is_told_with_its_line(text: str, said: str) -> None:
    (error,) = errors(text)
    assert error.startswith(said)


@given(st.integers(0, 10**10), st.sampled_from([*UNITS_S, "", "m", "y"]))
def test_a_span_is_its_number_of_units_or_none(number: int, unit: str) -> None:
    try:
        found_s = span_s(f"{number}{unit}")
    except ValueError:
        assert unit not in UNITS_S or not 0 < number * UNITS_S[unit] <= LONGEST_S
    else:
        assert found_s == number * UNITS_S[unit]
        assert 0 < found_s <= LONGEST_S


@given(st.text(max_size=12))
def test_any_text_is_a_span_or_refused(text: str) -> None:
    try:
        found_s = span_s(text)
    except ValueError:
        return
    assert 0 < found_s <= LONGEST_S
