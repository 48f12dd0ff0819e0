"""How much a policy may hold."""

from __future__ import annotations

import pytest

from mitmsec import config
from mitmsec.config import PolicyErrors, parse_policy


def test_too_many_rules_are_one_error_at_the_first_that_is_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "RULES_LIMIT", 2)
    rules = "".join(f'[[rule]]\nname = "{number}"\nport = [{number + 1}]\naction = "block"\n' for number in range(4))
    half = rules[: len(rules) // 2]
    assert len(parse_policy("version = 1\n" + half, file="f", read_list=str).rules) == 2
    with pytest.raises(PolicyErrors) as caught:
        parse_policy("version = 1\n" + rules, file="f", read_list=str)
    (error,) = caught.value.errors
    assert error.line == 10
    assert error.message == "a policy has 2 rules at most; names and suffixes by the thousand belong in @lists"
