"""What rules say of QUIC is carried out as far as the policy's defaults let it, and asked questions are told so."""

from __future__ import annotations

import pytest

from mitmsec.core.explain import explain
from mitmsec.core.model import Action, Decision, Endpoint, Process, Quic
from mitmsec.core.policy import Policy, PolicyTest
from mitmsec.core.policytest import run_tests
from mitmsec.core.quic_outcome import quic_outcome
from mitmsec.core.rules import Rule
from mitmsec.core.sniff import Protocol, Shown

HTTP3 = Shown(protocol=Protocol.QUIC, name="a.test", alpn=("h3",), ja4=None, ech=False)
OTHER = Shown(protocol=Protocol.QUIC, name="a.test", alpn=("doq",), ja4=None, ech=False)
NAMELESS = Shown(protocol=Protocol.QUIC, name=None, alpn=("h3",), ja4=None, ech=False)


@pytest.mark.parametrize(
    ("quic", "shown", "becomes"),
    [
        (Quic.REFUSE, HTTP3, dict.fromkeys(Action, Action.BLOCK)),
        (Quic.BYPASS, HTTP3, {**dict.fromkeys(Action, Action.BYPASS), Action.BLOCK: Action.BLOCK}),
        (Quic.DECRYPT, HTTP3, {**{action: action for action in Action}, Action.CAPTURE: Action.BYPASS}),
        (Quic.DECRYPT, OTHER, {**dict.fromkeys(Action, Action.BYPASS), Action.DECRYPT: Action.BLOCK,
                               Action.BLOCK: Action.BLOCK}),
        (Quic.DECRYPT, NAMELESS, {**dict.fromkeys(Action, Action.BYPASS), Action.DECRYPT: Action.BLOCK,
                                  Action.BLOCK: Action.BLOCK}),
    ],
)  # fmt: skip
def test_what_becomes_of_each_word(quic: Quic, shown: Shown, becomes: dict[Action, Action]) -> None:
    for said, done in becomes.items():
        decision = Decision(action=said, rule="r", reason="because", inspect=("keywords",))
        outcome = quic_outcome(Policy(quic=quic), decision, shown)
        assert outcome.action is done, said
        if quic is Quic.REFUSE:
            assert (outcome.rule, outcome.reason) == ("defaults", 'quic = "refuse": programs are to use TCP')
        elif done is said:
            assert outcome == decision
        else:
            assert outcome.rule == "r"
            assert outcome.reason.endswith(f"else {said}: because")
            assert outcome.inspect == ()


@pytest.mark.parametrize(
    ("quic", "done", "rule"),
    [
        (Quic.REFUSE, Action.BLOCK, "defaults"),
        (Quic.BYPASS, Action.BYPASS, "read"),
        (Quic.DECRYPT, Action.DECRYPT, "read"),
    ],
)
def test_explain_and_tests_say_what_is_done_and_not_what_was_wished(quic: Quic, done: Action, rule: str) -> None:
    rules = (Rule(name="read", action=Action.DECRYPT, host=("a.test",)),)
    asked = PolicyTest(
        application="/bin/x", expect=done, host="a.test", protocol=Protocol.QUIC, alpn=("h3",), rule=rule
    )
    policy = Policy(quic=quic, rules=rules, tests=(asked,))
    told = explain(policy, Process(pid=1), Endpoint("192.0.2.1", 443), 0.0, HTTP3)
    assert (told.decision.action, told.decision.rule) == (done, rule)
    assert [one.decided for one in told.tried] == [True]
    assert told.needs_name is (quic is not Quic.REFUSE)
    assert [one.passed for one in run_tests(policy, 0.0)] == [True]
