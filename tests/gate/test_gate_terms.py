"""Terms hold together, and the real parts fit the shapes that flows ask for."""

from __future__ import annotations

import inspect

from mitmsec.core.messages import GateSettings
from mitmsec.core.model import OnFailure
from mitmsec.core.policy import DEFAULT_POLICY
from mitmsec.gate.terms import Decides, Terms


def test_the_policy_answers_what_flows_ask_in_the_words_in_which_they_ask() -> None:
    for question in ("at_connect", "at_hello"):
        asked, answered = (inspect.signature(getattr(side, question)) for side in (Decides, type(DEFAULT_POLICY)))
        assert asked == answered
    assert DEFAULT_POLICY.rules == ()


def test_failures_open_or_close_within_a_second_and_a_hello_gets_more_than_its_first_byte() -> None:
    terms = Terms(on_failure=OnFailure.OPEN)
    assert terms.staff_deadline_s <= 1.0
    assert terms.hello_deadline_s < terms.hello_end_deadline_s


def test_the_supervisors_settings_and_the_terms_begin_with_the_same_deadline() -> None:
    settings = GateSettings(session="s", on_failure=OnFailure.OPEN, has_v6=False, capture=False)
    assert settings.hello_deadline_s == Terms(on_failure=OnFailure.OPEN).hello_deadline_s
