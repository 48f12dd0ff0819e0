"""The shipped example policies: each is valid, all of its rules are tried by its own tests, and the tests pass."""

from __future__ import annotations

import pytest

from mitmsec import examples
from mitmsec.config import parse_policy
from mitmsec.core.policytest import run_tests


@pytest.mark.parametrize("name", examples.names())
def test_an_example_is_valid_and_its_tests_pass(name: str) -> None:
    policy = parse_policy(examples.text(name), file=name, read_list=lambda file: f"{file} is not shipped")
    outcomes = run_tests(policy, now_s=0.0)
    assert [(outcome.test.line, outcome.got) for outcome in outcomes if not outcome.passed] == []
    assert {outcome.test.rule for outcome in outcomes} == {"defaults", *(rule.name for rule in policy.rules)}
    assert max(map(len, examples.text(name).splitlines())) <= 120


def test_there_is_one_for_each_kind_of_work() -> None:
    assert examples.names() == ["developer", "malware-analyst", "security-team"]
