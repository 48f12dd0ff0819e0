"""The policy to start from is true in each of its words: `init` is tested in test_policy_commands, the text here."""

from __future__ import annotations

import re

from mitmsec.config import parse_policy
from mitmsec.core.model import Action, OnFinding
from mitmsec.core.policytest import run_tests
from mitmsec.service.policy_starter import STARTER


def test_it_is_valid_says_what_the_defaults_are_and_its_tests_pass() -> None:
    policy = parse_policy(STARTER, file="p.toml", read_list=lambda name: "")
    assert (policy.action, policy.inspect) == (Action.DECRYPT, ("keywords",))
    assert [rule.on_finding for rule in policy.rules] == [OnFinding.ALERT, OnFinding.ALERT, OnFinding.BLOCK]
    outcomes = run_tests(policy, 0.0)
    assert len(outcomes) == 3
    assert all(outcome.passed for outcome in outcomes)


def test_every_setting_of_it_is_explained_and_fits_a_screen() -> None:
    settings = [line for line in STARTER.splitlines() if re.match(r"(action|on_failure|quic|inspect|host) =", line)]
    assert [line for line in settings[:4] if "#" not in line] == []
    assert max(map(len, STARTER.splitlines())) <= 120
