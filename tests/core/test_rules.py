"""Written rules are values: compared by content, unchanged by a trip through JSON."""

from __future__ import annotations

import msgspec
import policies
from hypothesis import given

from mitmsec.core.model import Action
from mitmsec.core.rules import PolicyTest, Rule


@given(policies.rules)
def test_a_rule_goes_through_json_unchanged(rule: Rule) -> None:
    assert msgspec.json.decode(msgspec.json.encode(rule), type=Rule) == rule


def test_a_test_is_about_port_443_unless_it_says_otherwise() -> None:
    assert PolicyTest(application="/x", expect=Action.BLOCK).port == 443
