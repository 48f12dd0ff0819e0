"""What the gate learns from flows that could not be decrypted, and how it forgets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mitmsec.core.messages import FlowEnded, TlsClientFacts, TlsFacts, TlsServerFacts
from mitmsec.core.model import Action, Confidence, Decision, Learning, Process, Refusal
from mitmsec.gate import learned
from mitmsec.gate.learned import ASKED, Bypass, Kind, Learned

APP = Process(pid=8, exe="/opt/pinned/app", sha256="ab" * 32, user="joe", started="2026", confidence=Confidence.KERNEL)
KIND = Kind.of(APP, "api.test", 443)
LEARNING = Learning(after=3, on_request=True)
DECRYPT = Decision(action=Action.DECRYPT, rule="r", reason="a test", inspect=("keywords",), learning=LEARNING)
HOUR_S = 3600.0


def ended(refusal: Refusal | None = None, *, was_heard: bool = False, asks: bool | None = None) -> FlowEnded:
    facts = TlsFacts(client=TlsClientFacts(refusal=refusal), server=TlsServerFacts(asks_certificate=asks))
    return FlowEnded(flow="f", bytes_sent=1, bytes_received=1, outcome="?", tls=facts, was_heard=was_heard)


def heard(memory: Learned, *ends: FlowEnded, learning: Learning = LEARNING, now_s: float = 0.0) -> list[Bypass]:
    found = [memory.heard(KIND, end, learning, now_s) for end in ends]
    return [bypass for bypass in found if bypass is not None]


ALERT, CLOSED, RESET = map(ended, Refusal)


@pytest.mark.checklist("C11")
def test_three_alerts_make_a_bypass_and_two_do_not() -> None:
    memory = Learned()
    assert heard(memory, ALERT, ALERT) == []
    assert memory.find(KIND, 0.0) is None
    (bypass,) = heard(memory, ALERT)
    assert bypass.why == "it refused our certificate 3 times"
    assert str(bypass) == "/opt/pinned/app to api.test, port 443, passes for 12 h: it refused our certificate 3 times"
    assert memory.find(KIND, 0.0) is bypass


@given(st.lists(st.sampled_from([Refusal.ALERT, Refusal.CLOSED, Refusal.RESET])), st.integers(1, 5))
def test_silent_ends_count_half(refusals: list[Refusal], after: int) -> None:
    memory, learning = Learned(), Learning(after=after)
    heard(memory, *map(ended, refusals), learning=learning)
    weight = sum(2 if refusal is Refusal.ALERT else 1 for refusal in refusals)
    assert (memory.find(KIND, 0.0) is not None) == (weight >= 2 * after)


def test_what_it_says_tells_them_apart() -> None:
    (bypass,) = heard(Learned(), CLOSED, RESET, ALERT, ALERT)
    assert bypass.why == "it refused our certificate 4 times, 2 of them with an alert"


@pytest.mark.checklist("C11")
def test_a_program_that_took_our_certificate_begins_anew() -> None:
    memory = Learned()
    assert heard(memory, ALERT, ALERT, ended(was_heard=True), ALERT, ALERT) == []
    assert len(heard(memory, ALERT)) == 1


@pytest.mark.checklist("C11")
def test_who_has_ever_taken_our_certificate_refuses_it_by_alerts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A load generator that ends has dozens of connections that it never used."""
    monkeypatch.setattr(learned, "TAKEN_LIMIT", 1)
    memory = Learned()
    assert heard(memory, ended(was_heard=True), *[RESET, CLOSED] * 50) == []
    assert len(heard(memory, ALERT, ALERT, ALERT)) == 1
    memory.forget()
    heard(memory, ended(was_heard=True))
    memory.heard(Kind.of(APP, "other.test", 443), ended(was_heard=True), LEARNING, 0.0)
    assert len(heard(memory, *[CLOSED] * 6)) == 1, "of very many, those that were heard last are remembered"


def test_who_has_not_left_another_connection_drops_one_that_it_did_not_use() -> None:
    """A browser opens six ahead of need; who pins leaves all of them."""
    memory = Learned()
    memory.handed(None)
    for _ in range(7):
        memory.handed(KIND)
    for _ in range(6):
        assert heard(memory, CLOSED) == []
        memory.over(KIND)
    memory.over(None)
    assert heard(memory, ALERT, ALERT, CLOSED) == []
    memory.over(KIND)
    assert len(heard(memory, CLOSED)) == 1, "nothing lives any more, and what was counted adds up"


def test_an_end_that_says_nothing_changes_nothing() -> None:
    memory = Learned()
    assert len(heard(memory, ALERT, ended(), ALERT, replace(ALERT, tls=None), ALERT)) == 1


def test_refusals_that_lie_too_far_apart_do_not_add_up() -> None:
    memory = Learned()
    heard(memory, ALERT, ALERT, now_s=0.0)
    assert heard(memory, ALERT, now_s=learned.COUNTED_S) == []
    assert len(heard(memory, ALERT, ALERT, now_s=2 * learned.COUNTED_S - 1)) == 1


@pytest.mark.checklist("C11")
@pytest.mark.parametrize("hours", [1, 12])
def test_it_ends_after_its_hours_and_everything_begins_anew(hours: int) -> None:
    memory, learning = Learned(), Learning(after=3, hours=hours)
    heard(memory, ALERT, ALERT, ALERT, learning=learning)
    assert memory.find(KIND, hours * HOUR_S - 1) is not None
    assert memory.find(KIND, hours * HOUR_S) is None
    assert len(memory) == 0
    assert heard(memory, ALERT, ALERT, learning=learning, now_s=hours * HOUR_S) == []


@pytest.mark.checklist("C10")
def test_an_origin_that_asks_for_a_certificate_is_learned_at_once() -> None:
    memory = Learned()
    (bypass,) = heard(memory, ended(asks=True))
    assert (bypass.why, bypass.is_asked) == (ASKED, True)
    assert heard(memory, ended(asks=True)) == [], "one that was under way already"


@pytest.mark.checklist("C10", "C11")
@pytest.mark.parametrize("end", [ALERT, CLOSED, RESET, ended(asks=True)])
def test_where_the_policy_forbids_it_nothing_is_learned(end: FlowEnded) -> None:
    memory = Learned()
    assert heard(memory, *([end] * 50), learning=Learning(after=0, on_request=False)) == []
    assert len(memory) == 0


@pytest.mark.checklist("C11")
@pytest.mark.parametrize(
    "other",
    [
        Kind.of(replace(APP, exe="/opt/other"), "api.test", 443),
        Kind.of(replace(APP, exe=None, claimed_exe="/opt/pinned/app"), "api.test", 443),
        Kind.of(replace(APP, user="root"), "api.test", 443),
        Kind.of(replace(APP, container="docker:1"), "api.test", 443),
        Kind.of(APP, "www.test", 443),
        Kind.of(APP, "api.test", 8443),
        None,
    ],
)
def test_it_is_about_this_program_host_and_port_and_nothing_else(other: Kind | None) -> None:
    memory = Learned()
    heard(memory, ALERT, ALERT, ALERT)
    assert memory.decided(DECRYPT, other, 0.0, is_proven=True) is DECRYPT
    assert memory.decided(DECRYPT, KIND, 0.0, is_proven=True).action is Action.BYPASS


def test_another_process_of_the_program_is_the_same_program() -> None:
    """Who pins is started again and again."""
    assert Kind.of(replace(APP, pid=9, started="2027", sha256=None), "api.test", 443) == KIND


@pytest.mark.parametrize(
    "process",
    [
        replace(APP, exe=None),
        replace(APP, confidence=Confidence.INFERRED),
        replace(APP, confidence=Confidence.UNKNOWN),
    ],
)
def test_of_a_program_that_is_not_certain_nothing_is_learned(process: Process) -> None:
    kind, memory = Kind.of(process, "api.test", 443), Learned()
    assert kind is None
    assert all(memory.heard(kind, ALERT, LEARNING, 0.0) is None for _ in range(9))


def test_the_decision_says_why_and_keeps_its_rule() -> None:
    memory = Learned()
    heard(memory, ALERT, ALERT, ALERT)
    decided = memory.decided(DECRYPT, KIND, 0.0, is_proven=True)
    assert (decided.action, decided.rule, decided.inspect) == (Action.BYPASS, "r", ())
    assert decided.reason == "a test; but that was learned not to work: it refused our certificate 3 times"


@pytest.mark.parametrize("action", [Action.BLOCK, Action.BYPASS, Action.CAPTURE])
def test_only_decrypting_is_given_up(action: Action) -> None:
    memory = Learned()
    heard(memory, ALERT, ALERT, ALERT)
    decision = replace(DECRYPT, action=action)
    assert memory.decided(decision, KIND, 0.0, is_proven=True) is decision


@pytest.mark.checklist("C11")
@pytest.mark.parametrize(
    ("end", "strict"),
    [
        (ALERT, Learning(after=0, on_request=True)),
        (ended(asks=True), Learning(after=3, on_request=False)),
        (ALERT, Learning(after=3, needs_proof=True)),
    ],
)
def test_a_flow_under_a_rule_that_forbids_it_is_not_let_pass_by_what_another_rule_learned(
    end: FlowEnded, strict: Learning
) -> None:
    memory = Learned()
    heard(memory, end, end, end)
    decision = replace(DECRYPT, learning=strict)
    assert memory.decided(DECRYPT, KIND, 0.0, is_proven=False).action is Action.BYPASS
    assert memory.decided(decision, KIND, 0.0, is_proven=False) is decision


@pytest.mark.checklist("C11")
def test_it_can_be_seen_and_forgotten() -> None:
    memory = Learned()
    heard(memory, ALERT, ALERT, ALERT, now_s=100.0)
    (told,) = memory.told(160.0)
    assert (told.program, told.user, told.host, told.port) == ("/opt/pinned/app", "joe", "api.test", 443)
    assert (told.left_s, told.why) == (12 * 3600 - 60, "it refused our certificate 3 times")
    assert memory.told(100.0 + 12 * HOUR_S) == ()
    memory.forget()
    assert (len(memory), memory.told(160.0)) == (0, ())
    assert heard(memory, ALERT, ALERT) == []


def test_what_is_learned_and_counted_is_bounded_and_the_oldest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned, "LEARNED_LIMIT", 3)
    monkeypatch.setattr(learned, "COUNTED_LIMIT", 3)
    monkeypatch.setattr(learned, "TOLD_LIMIT", 2)
    memory = Learned()
    kinds = [Kind.of(APP, f"{number}.test", 443) for number in range(5)]
    for kind in kinds:
        memory.heard(kind, ALERT, LEARNING, 0.0)
        memory.heard(kind, ended(asks=True), LEARNING, 0.0)
    assert [memory.find(kind, 1.0) is not None for kind in kinds] == [False, False, True, True, True]
    assert [told.host for told in memory.told(1.0)] == ["4.test", "3.test"]
    assert len(memory._counts) == 3
