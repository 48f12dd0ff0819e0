"""What expires is told once, when it does, and again under another policy."""

from __future__ import annotations

from mitmsec.audit.event import FaultSeen
from mitmsec.core.model import Action
from mitmsec.core.policy import Policy, Rule
from mitmsec.service.expiries import Expiries


def rule(name: str, expires_s: int | None) -> Rule:
    return Rule(name=name, action=Action.BYPASS, expires=f"at {expires_s}", expires_s=expires_s)


def test_what_has_expired_is_told_once_when_it_has() -> None:
    told: list[str] = []

    def record(seen: FaultSeen) -> None:
        assert (seen.what, seen.session, seen.failed) == ("rule_expired", "run-1", None)
        told.append(seen.detail)

    expiries = Expiries(record, "run-1")
    policy = Policy(rules=(rule("late", 20), rule("early", 10), rule("too", 10), rule("ever", None)))
    for now_s, count in ((9.0, 0), (10.0, 2), (11.0, 2), (30.0, 3), (40.0, 3)):
        expiries.look(policy, now_s)
        assert len(told) == count
    assert [sentence.split('"')[1] for sentence in told] == ["early", "too", "late"]
    expiries.look(Policy(rules=(rule("early", 10),)), 40.0)
    assert told[3:] == ['rule "early" expired at 10: it matches nothing more']
