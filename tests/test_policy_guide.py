"""The worked examples of docs/policy.md: each policy in it is valid, and its own tests pass."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mitmsec.config import parse_policy
from mitmsec.core.policytest import run_tests

GUIDE = (Path(__file__).parents[1] / "docs" / "policy.md").read_text()
POLICIES = re.findall(r"^```toml\n(version = 1\n.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)
LISTS = {"lists/finance.txt": "# local\nbank.example\n", "lists/bad.txt": "evil.example\n"}


@pytest.mark.parametrize("text", POLICIES, ids=range(len(POLICIES)))
def test_a_policy_of_the_guide_does_what_it_says(text: str) -> None:
    policy = parse_policy(text, file="docs/policy.md", read_list=LISTS.__getitem__)
    outcomes = run_tests(policy, now_s=0.0)
    assert outcomes
    assert [(outcome.test.line, outcome.got) for outcome in outcomes if not outcome.passed] == []


def test_the_guide_has_worked_examples() -> None:
    assert len(POLICIES) >= 4
