"""`mitmsec audit explain`: a decision on record, the policy of that time, and every reason why that cannot be told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from audit_events import connection, log_of, request
from click.testing import CliRunner, Result
from msgspec.structs import replace

from mitmsec.core.model import Action
from mitmsec.core.policy import Policy, Rule
from mitmsec.service import policy_versions
from mitmsec.service.audit_commands import audit
from mitmsec.service.policy_versions import PolicyVersions

POLICY = Policy(
    action=Action.BLOCK,
    rules=(
        Rule(name="banks", action=Action.BYPASS, host=("*.bank.example",)),
        Rule(name="api", action=Action.DECRYPT, host=("api.example.com",), reason="ticket 7"),
    ),
)
SEEN = replace(connection(), rule="api", reason="ticket 7", policy=POLICY.fingerprint)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    for name in ("log", "policies"):
        (tmp_path / name).mkdir()
    PolicyVersions(tmp_path / "policies").keep(POLICY)
    off = replace(SEEN, flow="flow-off", action=Action.BYPASS, reason="mitmsec is switched off; else decrypted")
    other = replace(SEEN, flow="flow-other", rule="banks")
    gone = replace(SEEN, flow="flow-gone", policy="0" * 64)
    log_of(tmp_path / "log", [SEEN, off, other, gone, replace(SEEN, flow="flow-old", policy=""), request()])
    return tmp_path


def explain(state: Path, *words: str) -> Result:
    return CliRunner(env={"COLUMNS": "300"}).invoke(audit, ["explain", *words, "--state", str(state)])


def test_a_recorded_decision_is_reproduced_with_every_rule_that_was_tried(state: Path) -> None:
    told = explain(state, "flow-1")
    assert told.exit_code == 0, told.output
    assert told.stdout.splitlines()[:3] == [
        'recorded: decrypt by "api": ticket 7',
        f"decided again: the same, under policy {POLICY.fingerprint}",
        "",
    ]
    assert "api.example.com is not within *.bank.example" in told.stdout
    rules = [json.loads(line) for line in explain(state, "0", "--json").stdout.splitlines()]
    assert [(one["rule"], one.get("decided")) for one in rules] == [("banks", False), ("api", True), ("api", None)]
    assert (rules[2]["same"], rules[2]["explained"], rules[2]["notes"]) == (True, True, [])
    assert rules[2]["recorded"] == {"action": "decrypt", "rule": "api", "reason": "ticket 7"}


def test_what_else_had_a_word_is_no_difference_and_what_nothing_explains_is(state: Path) -> None:
    off = explain(state, "flow-off")
    assert off.exit_code == 0
    assert "something else had the last word: mitmsec is switched off" in off.stdout
    other = explain(state, "flow-other")
    assert other.exit_code == 1
    assert 'decided again: decrypt by "api"' in other.stdout
    assert "note: nothing on record explains the difference" in other.stdout


@pytest.mark.parametrize(
    ("which", "why"),
    [
        ("flow-gone", "is not kept in"),
        ("flow-old", "does not say which policy decided"),
        ("5", "of kind request, and only connections are decided"),
        ("none-such", "there is no event none-such"),
    ],
)
def test_a_decision_that_cannot_be_made_again_says_why(state: Path, which: str, why: str) -> None:
    told = explain(state, which)
    assert (told.exit_code, told.stdout) == (1, "")
    assert why in told.stderr


def test_who_may_not_read_the_policies_is_told_who_may(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(policy_versions.gzip, "open", denied)
    told = explain(state, "flow-1")
    assert told.exit_code == 3
    assert "not for you to read" in told.stderr
    assert "root may" in told.stderr
