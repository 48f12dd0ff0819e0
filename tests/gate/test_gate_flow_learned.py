"""Flows whose programs pin, told as plays: three refusals, and the fourth flow passes."""

from __future__ import annotations

import pytest
from gate_stage import HTTP, NEVER, REMOTE, TLS, Stage

from mitmsec.audit.event import ConnectionSeen, FaultSeen
from mitmsec.core.messages import FlowEnded, TlsClientFacts, TlsFacts, TlsServerFacts
from mitmsec.core.model import Action, OnFailure, Refusal, UnprovenName
from mitmsec.gate.learned import ASKED, Learned
from mitmsec.gate.signals import Close, Dial, Dialled, FirstBytes, Record, Relay, Reset, Staff, WorkerSaid


def ended(*, refusal: Refusal | None = None, asks: bool | None = None) -> FlowEnded:
    return FlowEnded(
        flow="f",
        bytes_sent=1,
        bytes_received=2,
        outcome="origin_refused" if asks else "client_rejected",
        tls=TlsFacts(client=TlsClientFacts(refusal=refusal), server=TlsServerFacts(asks_certificate=asks)),
        reset=asks is True,
    )


def refused(learned: Learned, count: int = 1, *, later_s: float = 0.0) -> Stage:
    for _ in range(count):
        stage = Stage(on_failure=OnFailure.OPEN, learned=learned)
        stage.play.later(later_s)
        stage.handed() >> WorkerSaid(ended(refusal=Refusal.ALERT))
    return stage


@pytest.mark.checklist("C11")
def test_after_three_refusals_the_program_passes_and_that_is_on_record() -> None:
    learned = Learned()
    for _ in range(2):
        refused(learned).play << NEVER << Close() << Record
    third = refused(learned)
    third.play << Record
    fault = third.play.last.seen
    assert isinstance(fault, FaultSeen)
    assert (fault.what, fault.failed, fault.flow) == ("learned_bypass", "open", "f")
    assert fault.detail.startswith("/usr/bin/curl to a.test, port 443, passes for 12 h")
    third.play << NEVER << Close() << Record
    assert isinstance(third.play.last.seen, ConnectionSeen)
    fourth = Stage(on_failure=OnFailure.OPEN, learned=learned)
    fourth.connected() >> FirstBytes(TLS) << NEVER << Relay(False)
    decision = fourth.flow.about.decision
    assert decision is not None
    assert (decision.action, decision.rule) == (Action.BYPASS, "defaults")
    assert "refused our certificate 3 times" in decision.reason


@pytest.mark.checklist("C11")
def test_twelve_hours_later_it_is_tried_again() -> None:
    learned = Learned()
    for _ in range(2):
        refused(learned).play << NEVER << Close() << Record
    refused(learned).play << Record << NEVER << Close() << Record
    stage = Stage(on_failure=OnFailure.OPEN, learned=learned)
    stage.play.later(12 * 3600)
    assert stage.connected() >> FirstBytes(TLS) << NEVER << Staff()


@pytest.mark.checklist("C11")
def test_where_failures_close_nothing_is_learned() -> None:
    learned = Learned()
    for _ in range(9):
        stage = Stage(on_failure=OnFailure.CLOSED, learned=learned)
        stage.handed() >> WorkerSaid(ended(refusal=Refusal.ALERT)) << NEVER << Close() << Record
    assert len(learned) == 0


@pytest.mark.checklist("C10")
@pytest.mark.parametrize("on_failure", OnFailure)
def test_an_origin_that_asks_for_a_certificate_is_bypassed_from_then_on_or_refused_each_time(
    on_failure: OnFailure,
) -> None:
    learned = Learned()
    stage = Stage(on_failure=on_failure, learned=learned)
    stage.handed() >> WorkerSaid(ended(asks=True))
    if on_failure is OnFailure.OPEN:
        stage.play << Record
        assert stage.play.last.seen.detail.endswith(ASKED)
    stage.play << NEVER << Reset() << Record
    following = Stage(on_failure=on_failure, learned=learned)
    following.connected() >> FirstBytes(TLS) << NEVER
    assert following.play << (Relay(False) if on_failure is OnFailure.OPEN else Staff())


def test_where_names_have_to_be_proven_a_name_that_nothing_confirms_does_not_pass() -> None:
    learned = Learned()
    for _ in range(2):
        refused(learned).play << NEVER << Close() << Record
    refused(learned).play << Record << NEVER << Close() << Record
    for resolved, command in ((("b.test",), Staff()), (("a.test",), Relay(False))):
        stage = Stage(on_failure=OnFailure.OPEN, unproven_name=UnprovenName.DECRYPT, learned=learned)
        stage.flow.about.resolved = resolved
        assert stage.connected() >> FirstBytes(TLS) << NEVER << command


def test_plain_http_neither_teaches_nor_passes() -> None:
    learned = Learned()
    for _ in range(2):
        refused(learned).play << NEVER << Close() << Record
    refused(learned).play << Record << NEVER << Close() << Record
    stage = Stage(on_failure=OnFailure.OPEN, learned=learned)
    stage.handed(HTTP) >> WorkerSaid(ended(refusal=Refusal.ALERT)) << NEVER << Close() << Record


def test_what_is_learned_while_a_flow_is_dialled_does_not_change_it() -> None:
    """It was decided already; the next one passes."""
    learned = Learned()
    stage = Stage(on_failure=OnFailure.OPEN, host=Action.DECRYPT, learned=learned)
    stage.waiting() >> FirstBytes(TLS) << NEVER << Dial((REMOTE,))
    for _ in range(2):
        refused(learned).play << NEVER << Close() << Record
    refused(learned).play << Record << NEVER << Close() << Record
    assert stage.play >> Dialled(REMOTE) << Staff()
