"""How one flow is carried and ends, told as plays: `>>` what happens, `<<` what must follow."""

from __future__ import annotations

from typing import Any

import pytest
from gate_stage import (
    CLIENT,
    CURL,
    GATE,
    HALF,
    HTTP,
    NEVER,
    ORIGIN,
    OTHER,
    REMOTE,
    TLS,
    Colleagues,
    Stage,
    ended,
)
from hypothesis import given
from hypothesis import strategies as st
from playbook import Playbook

from mitmsec.audit.event import ConnectionSeen, Outcome
from mitmsec.core.messages import FlowEnded, TlsClientFacts, TlsFacts, TlsServerFacts
from mitmsec.core.model import Action, OnFailure, Upstream
from mitmsec.core.policy import Policy, Rule
from mitmsec.gate.flow import Flow, State
from mitmsec.gate.names import Names
from mitmsec.gate.signals import (
    Accepted,
    Ask,
    ClientGone,
    ClientLeft,
    Close,
    Cut,
    Deadline,
    Dial,
    DialFailed,
    DialFailure,
    Dialled,
    Ending,
    Faulted,
    FirstBytes,
    Hand,
    LongLived,
    Mint,
    OwnerKnown,
    Peek,
    Record,
    Relay,
    RelayEnded,
    Report,
    Reset,
    ServerGone,
    ServerSpoke,
    SetDeadline,
    Staff,
    Staffed,
    Unstaffed,
    WatchClient,
    WatchServer,
    WorkerDied,
    WorkerSaid,
)
from mitmsec.gate.terms import Terms


# --- the client goes --------------------------------------------------------------------------------------------------
def test_a_client_that_leaves_before_a_decision_costs_no_origin_a_contact() -> None:
    stage = Stage(Action.BYPASS, host=Action.BLOCK)
    stage.waiting() >> FirstBytes(b"", eof=True)
    ended(stage.play, Close(), Outcome.CLIENT_CLOSED)


def test_a_client_that_only_listens_gets_its_server() -> None:
    stage = Stage(Action.CAPTURE)
    stage.dialling() >> FirstBytes(b"", eof=True) << NEVER
    assert stage.play >> Dialled(REMOTE) << Relay(True)


def test_a_client_that_resets_takes_the_origin_with_it() -> None:
    stage = Stage(Action.BYPASS)
    stage.connected() >> ClientGone()
    ended(stage.play, Reset(), Outcome.CLIENT_CLOSED)


# --- the origin -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("failure", "outcome"),
    [
        (DialFailure.REFUSED, Outcome.ORIGIN_REFUSED),
        (DialFailure.RESET, Outcome.ORIGIN_RESET),
        (DialFailure.TIMEOUT, Outcome.ORIGIN_TIMEOUT),
        (DialFailure.UNREACHABLE, Outcome.ORIGIN_UNREACHABLE),
    ],
)
def test_an_origin_that_cannot_be_reached_resets_the_client_and_the_record_says_why(
    failure: DialFailure, outcome: Outcome
) -> None:
    stage = Stage(Action.BYPASS)
    stage.dialling() >> FirstBytes(TLS) << NEVER
    stage.play >> DialFailed(failure)
    ended(stage.play, Reset(), outcome, host="a.test")


def test_an_origin_that_we_had_no_descriptor_to_dial_is_a_fault_of_ours() -> None:
    stage = Stage(Action.BYPASS)
    stage.dialling() >> FirstBytes(TLS) << NEVER
    stage.play >> DialFailed(DialFailure.FAULT) << Report("not_dialled", OnFailure.CLOSED)
    ended(stage.play, Reset(), Outcome.FAULT, host="a.test", error="not_dialled")


def test_a_refusal_waits_a_moment_for_the_name_and_then_for_nothing() -> None:
    stage = Stage(Action.BYPASS)
    play = stage.dialling() >> DialFailed(DialFailure.REFUSED) << SetDeadline(0.3)
    play >> Deadline()
    ended(play, Reset(), Outcome.ORIGIN_REFUSED, host=None)


def test_a_refusal_during_a_hello_waits_for_its_end() -> None:
    stage = Stage(Action.BYPASS)
    play = stage.dialling() >> FirstBytes(HALF) << SetDeadline(5.0) << Peek
    play >> DialFailed(DialFailure.REFUSED)
    play >> FirstBytes(TLS)
    ended(play, Reset(), Outcome.ORIGIN_REFUSED, host="a.test")


def test_other_addresses_of_the_name_are_tried_when_the_one_asked_for_refuses() -> None:
    stage = Stage(Action.BYPASS)
    stage.names.answered("a.test", OTHER, Action.BYPASS)
    play = stage.dialling() >> DialFailed(DialFailure.REFUSED) << SetDeadline(0.3)
    play >> FirstBytes(TLS) << NEVER << Dial((OTHER,))
    play >> Dialled(OTHER) << Relay(False)
    play >> RelayEnded(Ending.ORDERLY, 1, 1)
    ended(play, Close(), Outcome.COMPLETED, remote=OTHER)


def test_when_all_fail_the_first_failure_is_the_one_on_record() -> None:
    stage = Stage(Action.BYPASS)
    stage.names.answered("a.test", OTHER, Action.BYPASS)
    play = stage.dialling() >> DialFailed(DialFailure.REFUSED) << SetDeadline(0.3)
    play >> FirstBytes(TLS) << NEVER << Dial((OTHER,))
    play >> DialFailed(DialFailure.TIMEOUT)
    ended(play, Reset(), Outcome.ORIGIN_REFUSED)


def test_other_addresses_join_a_dial_that_is_under_way_or_begins() -> None:
    under_way, begins = Stage(Action.BYPASS), Stage(Action.BYPASS, host=Action.CAPTURE)
    under_way.names.answered("a.test", OTHER, Action.BYPASS)
    begins.names.answered("a.test", OTHER, Action.CAPTURE)
    assert under_way.dialling() >> FirstBytes(TLS) << NEVER << Dial((OTHER,))
    assert begins.waiting() >> FirstBytes(TLS) << NEVER << Dial((REMOTE, OTHER))


def test_an_address_of_which_the_policy_says_something_else_is_not_tried() -> None:
    rule = Rule(name="not there", address=("192.0.2.2/32",), action=Action.BLOCK)
    names = Names()
    names.answered("a.test", OTHER, Action.DECRYPT)
    flow = Flow("f", Terms(on_failure=OnFailure.CLOSED), Policy(rules=(rule,)), names, Colleagues())
    play = Playbook(flow.told) >> Accepted(CLIENT, GATE, ORIGIN, 0.0) << SetDeadline(2.0) << Ask(ORIGIN)
    play >> OwnerKnown(CURL) << NEVER << Dial((REMOTE,)) << Peek(1)
    assert play >> FirstBytes(TLS) << NEVER


@pytest.mark.parametrize("action", [Action.BYPASS, Action.CAPTURE])
def test_the_address_that_answered_a_relay_is_remembered_for_those_who_are_relayed_alike(action: Action) -> None:
    stage = Stage(action)
    stage.relayed(action is Action.CAPTURE)
    knows = [known for known in Action if stage.names.others("a.test", OTHER, known)]
    assert knows == [action]


@pytest.mark.parametrize("upstream", Upstream)
@pytest.mark.parametrize("server", [None, TlsServerFacts(verified=False), TlsServerFacts(verified=True)])
def test_an_address_is_remembered_for_those_who_are_decrypted_once_it_has_proved_its_name(
    upstream: Upstream, server: TlsServerFacts | None
) -> None:
    """Under `accept` above all, where whoever answers next would be believed."""
    stage = Stage(upstream=upstream)
    stage.handed()
    assert not len(stage.names)
    stage.play >> said(tls=TlsFacts(server=server)) << NEVER << Close() << Record
    proved = server is not None and server.verified
    assert stage.names.others("a.test", OTHER, Action.DECRYPT) == ((REMOTE,) if proved else ())
    assert len(stage.names) == (1 if proved else 0)


def test_an_origin_that_resets_before_anybody_spoke_takes_the_client_with_it() -> None:
    stage = Stage(Action.BYPASS)
    stage.connected() >> ServerGone()
    ended(stage.play, Reset(), Outcome.ORIGIN_RESET)


# --- workers ----------------------------------------------------------------------------------------------------------
FACTS = TlsFacts(
    client=TlsClientFacts(version="TLSv1.3", cipher="AES", alpn="h2", sni="forged.test", ja4="forged"),
    server=TlsServerFacts(version="TLSv1.3", verified=True),
)


def said(**more: Any) -> WorkerSaid:
    return WorkerSaid(FlowEnded(**{"flow": "f", "bytes_sent": 1, "bytes_received": 2, "outcome": "completed", **more}))


def test_a_worker_ends_a_flow_and_what_the_client_offered_stays_our_own_reading() -> None:
    stage = Stage()
    stage.handed() >> said(tls=FACTS)
    seen = ended(stage.play, Close(), Outcome.COMPLETED, bytes_sent=1, bytes_received=2, action=Action.DECRYPT)
    assert seen.tls is not None
    assert seen.tls.client is not None
    assert (seen.tls.client.sni, seen.tls.client.cipher) == ("a.test", "AES")
    assert seen.tls.client.ja4 != "forged"
    assert seen.tls.server == FACTS.server


def test_a_worker_can_have_the_client_reset_and_cannot_invent_facts_of_plain_http() -> None:
    stage = Stage()
    stage.handed(HTTP) >> said(reset=True, outcome="blocked", tls=FACTS)
    ended(stage.play, Reset(), Outcome.BLOCKED, tls=None)


def test_nonsense_of_a_worker_becomes_a_fault_and_no_negative_count() -> None:
    stage = Stage()
    stage.handed() >> said(outcome="splendid", bytes_sent=-5, error="?")
    ended(stage.play, Close(), Outcome.FAULT, bytes_sent=0, error="?")


@pytest.mark.parametrize("outcome", ["open", "stranger", "cut"])
def test_a_workers_words_are_bounded_and_some_are_not_its_to_say(outcome: str) -> None:
    stage, long = Stage(), "x" * 9999
    facts = TlsFacts(client=TlsClientFacts(version=long), server=TlsServerFacts(error=long, verified=True))
    stage.handed() >> said(outcome=outcome, error=long, bytes_sent=2**64 - 1, tls=facts)
    seen = ended(stage.play, Close(), Outcome.FAULT, error=long[:256], bytes_sent=2**63 - 1)
    assert seen.tls is not None
    assert seen.tls.client is not None
    assert seen.tls.client.version == long[:256]
    assert seen.tls.server == TlsServerFacts(error=long[:256], verified=True)


def test_a_client_that_leaves_its_worker_is_given_up_once_nothing_moves_any_more() -> None:
    stage = Stage()
    play = stage.handed() >> ClientLeft(100) << SetDeadline(60.0)
    play.later(60) >> Deadline() << WatchClient()
    play >> ClientLeft(150) << SetDeadline(60.0)  # it is still being served
    play.later(60) >> Deadline() << WatchClient()
    play >> ClientLeft(150)
    ended(play, Reset(), Outcome.CLIENT_CLOSED, error="the worker did not end it", action=Action.DECRYPT)


def test_a_worker_has_time_to_end_what_its_client_has_left() -> None:
    stage = Stage()
    stage.handed() >> ClientLeft(100) << SetDeadline(60.0)
    stage.play.later(59) >> said()
    ended(stage.play, Close(), Outcome.COMPLETED)


def test_a_worker_that_dies_takes_its_flows_with_it() -> None:
    stage = Stage()
    stage.handed() >> WorkerDied()
    ended(stage.play, Reset(), Outcome.FAULT, error="worker_died")


def test_a_flow_waits_for_a_worker_that_comes_back() -> None:
    stage = Stage()
    play = stage.connected() >> FirstBytes(TLS) << NEVER << Staff()
    play >> Unstaffed() << SetDeadline(1.0)
    assert play >> Staffed(1) << NEVER << Record << Mint("a.test") << Hand << WatchClient()


@pytest.mark.parametrize("lack", ["no_worker", "recorder_gone", "signer_gone"])
def test_what_cannot_be_decrypted_is_reset_where_failures_close(lack: str) -> None:
    stage = Stage()
    play = lacking(stage, lack) << Report(lack, OnFailure.CLOSED)
    ended(play, Reset(), Outcome.FAULT, error=lack, action=Action.DECRYPT)


@pytest.mark.parametrize("lack", ["no_worker", "recorder_gone", "signer_gone"])
def test_what_cannot_be_decrypted_is_relayed_unread_where_failures_open_and_the_record_says_so(lack: str) -> None:
    stage = Stage(on_failure=OnFailure.OPEN)
    play = lacking(stage, lack)
    if lack != "no_worker":
        play << NEVER
    play << Report(lack, OnFailure.OPEN, "relayed undecrypted") << Relay(False)
    play >> RelayEnded(Ending.ORDERLY, 3, 4)
    ended(play, Close(), Outcome.FAULT, error=lack, action=Action.BYPASS, bytes_sent=3, rule="defaults")


def lacking(stage: Stage, lack: str) -> Playbook:
    """Up to the moment where `lack` shows."""
    play = stage.connected()
    play.done()
    stage.health.recording, stage.health.signing = lack != "recorder_gone", lack != "signer_gone"
    play >> FirstBytes(TLS)
    if lack == "no_worker":
        play << NEVER << Staff()
        play >> Unstaffed() << SetDeadline(1.0)
        play >> Deadline()
    return play


def test_plain_http_needs_no_signer() -> None:
    stage = Stage()
    stage.health.signing = False
    assert stage.handed(HTTP)


# --- ends -------------------------------------------------------------------------------------------------------------
def test_a_client_that_resets_a_relay_has_completed_and_the_record_says_how() -> None:
    stage = Stage(Action.BYPASS)
    stage.relayed() >> RelayEnded(Ending.CLIENT_RESET, 5, 6)
    ended(stage.play, Reset(), Outcome.COMPLETED, error="reset by the client")


def test_what_could_not_be_recorded_did_not_pass() -> None:
    stage = Stage(Action.CAPTURE)
    stage.relayed(True) >> RelayEnded(Ending.UNRECORDED, 5, 6)
    ended(stage.play, Reset(), Outcome.FAULT, error="recorder_gone")


def test_a_long_life_is_on_record_before_its_end() -> None:
    stage = Stage(Action.BYPASS)
    play = stage.relayed().later(10) >> LongLived(7, 8) << Record
    assert (play.last.seen.outcome, play.last.seen.bytes_sent, play.last.seen.duration_ms) == (Outcome.OPEN, 7, 10_000)
    play.done()


def test_without_a_decision_there_is_nothing_to_put_on_record_yet() -> None:
    stage = Stage(Action.BYPASS, host=Action.BLOCK)
    assert stage.waiting() >> LongLived(0, 0)


def test_a_cut_ends_a_flow_in_any_state_once() -> None:
    for reach in (Stage.waiting, Stage.relayed, Stage.handed):
        stage = Stage(
            Action.DECRYPT if reach is Stage.handed else Action.BYPASS,
            host=Action.BLOCK if reach is Stage.waiting else None,
        )
        reach(stage) >> Cut("drained")
        ended(stage.play, Reset(), Outcome.CUT, error="drained")
        assert stage.play >> Cut("again") >> Deadline() >> RelayEnded(Ending.ORDERLY, 0, 0)


def test_a_fault_of_ours_gives_the_program_its_connection_where_failures_open() -> None:
    stage = Stage(host=Action.BLOCK, on_failure=OnFailure.OPEN)
    play = stage.waiting() >> Faulted("KeyError") << Report("gate_failed", OnFailure.OPEN, "KeyError")
    play << NEVER << Dial((REMOTE,))
    play >> Dialled(REMOTE) << Relay(False)
    play >> RelayEnded(Ending.ORDERLY, 1, 1)
    ended(play, Close(), Outcome.FAULT, rule="on_failure", reason="KeyError", action=Action.BYPASS)


def test_a_fault_of_ours_is_a_reset_where_failures_close_or_somebody_has_the_bytes() -> None:
    closes, carries = Stage(), Stage(Action.BYPASS, on_failure=OnFailure.OPEN)
    closes.connected() >> Faulted("KeyError") << Report("gate_failed", OnFailure.CLOSED, "KeyError")
    ended(closes.play, Reset(), Outcome.FAULT, error="gate_failed")
    carries.relayed() >> Faulted("KeyError") << Report("gate_failed", OnFailure.OPEN, "KeyError")
    ended(carries.play, Reset(), Outcome.FAULT, error="gate_failed")


def test_a_fault_of_ours_never_opens_what_was_blocked() -> None:
    stage = Stage(Action.BLOCK, on_failure=OnFailure.OPEN)
    stage.waiting() >> Faulted("KeyError") << Report("gate_failed", OnFailure.OPEN, "KeyError")
    ended(stage.play, Reset(), Outcome.BLOCKED, error="gate_failed")


EVENTS = [
    OwnerKnown(CURL), FirstBytes(TLS), FirstBytes(b"", eof=True), ClientGone(), Deadline(), Dialled(REMOTE),
    DialFailed(DialFailure.REFUSED), ServerSpoke(), ServerGone(), Staffed(1), Unstaffed(), said(), WorkerDied(),
    ClientLeft(1), RelayEnded(Ending.ORDERLY, 0, 0), LongLived(0, 0), Faulted("x"),
]  # fmt: skip


@pytest.mark.parametrize("reach", [Stage.relayed, Stage.handed])
def test_a_flow_that_somebody_carries_hears_only_who_carries_it(reach: Any) -> None:
    ends = (
        RelayEnded if reach is Stage.relayed else (WorkerSaid, WorkerDied, ClientLeft, Deadline),
        LongLived,
        Faulted,
    )
    stage = Stage(Action.BYPASS if reach is Stage.relayed else Action.DECRYPT)
    play = reach(stage)
    for event in EVENTS:
        if not isinstance(event, ends):
            play >> event
    play.done()
    assert stage.flow.state is not State.ENDED


@given(st.lists(st.sampled_from(EVENTS), max_size=8), st.sampled_from(Action), st.sampled_from(OnFailure))
def test_in_whatever_order_things_happen_there_is_one_record_and_no_dial_before_a_decision(
    events: list[Any], action: Action, on_failure: OnFailure
) -> None:
    stage = Stage(action, host=Action.BLOCK, on_failure=on_failure)
    commands = list(stage.flow.told(Accepted(CLIENT, GATE, ORIGIN, 0.0), 0.0))
    dialled = False
    for event in events:
        if isinstance(event, Dialled | ServerSpoke | DialFailed) and not dialled:
            continue  # answers to a question that was not asked
        if isinstance(event, ServerSpoke | ServerGone) and not any(isinstance(c, WatchServer) for c in commands):
            continue
        new = stage.flow.told(event, 0.0)
        dialled = dialled or any(isinstance(command, Dial) for command in new)
        assert not (dialled and stage.flow.about.decision is None)
        commands += new
    commands += stage.flow.told(Cut("end"), 0.0)
    records = [c.seen for c in commands if isinstance(c, Record) and isinstance(c.seen, ConnectionSeen)]
    assert len([seen for seen in records if seen.outcome is not Outcome.OPEN]) == 1
    assert stage.flow.state is State.ENDED
