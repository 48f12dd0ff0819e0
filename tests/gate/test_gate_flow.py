"""How one flow is decided, told as plays: `>>` what happens, `<<` what must follow."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from dns_writer import query
from gate_stage import (
    CLIENT,
    CURL,
    FLAWED,
    GATE,
    HALF,
    HTTP,
    NEVER,
    ORIGIN,
    REMOTE,
    SSH,
    TLS,
    UNREAD,
    Stage,
    ended,
)
from hellos import REAL, alpn, hello, server_name
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.audit.event import FlowHanded, Outcome
from mitmsec.core.dns_offers import Offers
from mitmsec.core.messages import Plaintext
from mitmsec.core.model import Action, Confidence, OnFailure, UnprovenName
from mitmsec.core.policy import Rule
from mitmsec.core.sniff import FIRST_BYTES_LIMIT, Protocol
from mitmsec.gate.flow import State
from mitmsec.gate.signals import (
    Accepted,
    Ask,
    Close,
    Deadline,
    Dial,
    DialFailed,
    DialFailure,
    Dialled,
    Ending,
    Faulted,
    FirstBytes,
    Hand,
    Mint,
    OwnerKnown,
    Page,
    Peek,
    Prove,
    Proved,
    Record,
    Relay,
    RelayEnded,
    Report,
    Reset,
    ServerSpoke,
    SetDeadline,
    Staff,
    Staffed,
    WatchClient,
    WatchServer,
)

# --- names that DNS confirms, or does not -----------------------------------------------------------------------------
RESOLVED = [(("a.test", "b.test"), True), (("b.test",), False), ((), False), (None, False)]


@pytest.mark.parametrize("data", [TLS, HTTP])
@pytest.mark.parametrize(("resolved", "proven"), RESOLVED)
def test_a_bypass_by_name_is_blocked_unless_dns_gave_the_name_this_address(
    resolved: tuple[str, ...] | None, proven: bool, data: bytes
) -> None:
    stage = Stage(host=Action.BYPASS, unproven_name=UnprovenName.BLOCK)
    stage.flow.about.resolved = resolved
    stage.waiting() >> FirstBytes(data)
    if proven:
        stage.play << NEVER << Dial((REMOTE,))
        assert stage.flow.about.decision is not None
        assert stage.flow.about.decision.action is Action.BYPASS
    else:
        answer = Reset() if data is TLS else Page
        stage.play << NEVER << answer << Record
        seen = stage.play.last.seen
        assert (seen.action, seen.rule, seen.outcome) == (Action.BLOCK, "host", Outcome.BLOCKED)
        assert 'unproven_name = "block"' in seen.reason


def test_a_bypass_by_name_that_nothing_confirms_is_decrypted_where_the_policy_says_so() -> None:
    stage = Stage(host=Action.BYPASS, unproven_name=UnprovenName.DECRYPT, inspect=("keywords",))
    stage.flow.about.resolved = ("b.test",)
    stage.waiting() >> FirstBytes(TLS) << NEVER << Dial((REMOTE,))
    stage.play >> Dialled(REMOTE) << Staff()
    stage.play >> Staffed(3) << NEVER << Record << Mint("a.test") << Hand
    decision = stage.play.last.order.decision
    stage.play << WatchClient()
    assert (decision.action, decision.rule, decision.inspect) == (Action.DECRYPT, "host", ("keywords",))


DOUBTS = {"host": Action.BYPASS, "unproven_name": UnprovenName.BLOCK, "probes": True}


@pytest.mark.parametrize("holds", [True, False])
def test_an_origin_is_asked_to_prove_a_name_that_no_answer_gave_its_address(holds: bool) -> None:
    stage = Stage(**DOUBTS)
    play = stage.waiting() >> FirstBytes(TLS) << NEVER << Prove("a.test", REMOTE)
    play >> Proved(holds) << NEVER
    if holds:
        play << Dial((REMOTE,))
        play >> Dialled(REMOTE) << Relay(False)
        assert stage.flow.about.decision is not None
        assert stage.flow.about.decision.reason == "its name; the origin's certificate confirms the name"
    else:
        play << Reset() << Record
        assert (play.last.seen.action, play.last.seen.tls.client.name_certified) == (Action.BLOCK, False)
    play >> Proved(not holds)  # nobody waits for that any more


def test_who_is_connected_before_the_answer_waits_for_it_and_who_cannot_be_reached_does_not() -> None:
    stage = Stage(Action.DECRYPT, host=Action.BYPASS, unproven_name=UnprovenName.DECRYPT, probes=True)
    stage.waiting() >> Deadline() << Dial((REMOTE,))
    stage.play >> Dialled(REMOTE) << WatchServer()
    stage.play >> FirstBytes(TLS) << NEVER << Prove("a.test", REMOTE)
    stage.play >> Proved(True) << NEVER << Relay(False)
    stage = Stage(Action.DECRYPT, host=Action.BYPASS, unproven_name=UnprovenName.DECRYPT, probes=True)
    stage.waiting() >> Deadline() << Dial((REMOTE,))
    stage.play >> FirstBytes(TLS) << NEVER << Prove("a.test", REMOTE)
    stage.play >> Dialled(REMOTE)  # nothing yet
    stage.play >> Proved(False) << NEVER << Staff()
    stage = Stage(Action.DECRYPT, host=Action.BYPASS, unproven_name=UnprovenName.DECRYPT, probes=True)
    stage.waiting() >> Deadline() << Dial((REMOTE,))
    stage.play >> FirstBytes(TLS) << NEVER << Prove("a.test", REMOTE)
    ended(stage.play >> DialFailed(DialFailure.REFUSED), Reset(), Outcome.ORIGIN_REFUSED)


def test_a_failure_of_ours_meanwhile_is_followed_at_once() -> None:
    stage = Stage(Action.DECRYPT, **{**DOUBTS, "unproven_name": UnprovenName.DECRYPT}, on_failure=OnFailure.OPEN)
    stage.waiting() >> FirstBytes(TLS) << NEVER << Prove("a.test", REMOTE)
    stage.play >> Faulted("KeyError") << Report("gate_failed", OnFailure.OPEN, "KeyError") << NEVER << Dial((REMOTE,))
    stage.play >> Proved(False)
    stage.play >> Dialled(REMOTE) << Relay(False)


@pytest.mark.parametrize("data", [HTTP, TLS])
def test_nobody_is_asked_for_proof_where_it_could_change_nothing(data: bytes) -> None:
    stage = Stage(**DOUBTS)
    stage.flow.about.resolved = ("a.test",) if data is TLS else ()
    stage.waiting() >> FirstBytes(data) << NEVER
    stage.play << (Dial((REMOTE,)) if data is TLS else Page)
    if data is HTTP:
        stage.play << Record
    other = Stage(Action.BLOCK, unproven_name=UnprovenName.BLOCK, probes=True)
    ended(other.waiting() >> FirstBytes(TLS), Reset(), Outcome.BLOCKED)


@pytest.mark.parametrize("unproven", UnprovenName)
def test_a_bypass_that_is_not_owed_to_a_name_needs_no_proof(unproven: UnprovenName) -> None:
    stage = Stage(Action.BYPASS, unproven_name=unproven)
    stage.flow.about.resolved = ("b.test",)
    stage.relayed()


# --- whose ------------------------------------------------------------------------------------------------------------
def test_a_stranger_is_reset_recorded_and_reported() -> None:
    stage = Stage(Action.BYPASS)
    stage.play >> Accepted(CLIENT, GATE, None, 0.0) << Report("stranger", detail="from 127.0.0.1:40000")
    ended(stage.play, Reset(), Outcome.STRANGER, remote=GATE, local=CLIENT, action=Action.BLOCK, rule="gate")


def test_an_owner_who_stays_unknown_is_reset_where_failures_close() -> None:
    stage = Stage()
    stage.play >> Accepted(CLIENT, GATE, ORIGIN, 0.0) << SetDeadline(2.0) << Ask(ORIGIN)
    stage.play >> Deadline() << Report("owner_unknown", OnFailure.CLOSED)
    seen = ended(stage.play, Reset(), Outcome.FAULT, error="owner_unknown", action=Action.BLOCK, rule="on_failure")
    assert (seen.process.pid, seen.process.name, seen.process.confidence) == (8, "curl", Confidence.INFERRED)


def test_an_owner_who_stays_unknown_is_decided_by_the_kernels_word_where_failures_open() -> None:
    stage = Stage(Action.BYPASS, on_failure=OnFailure.OPEN)
    stage.play >> Accepted(CLIENT, GATE, ORIGIN, 0.0) << SetDeadline(2.0) << Ask(ORIGIN)
    stage.play >> Deadline() << Report("owner_unknown", OnFailure.OPEN) << NEVER << Dial((REMOTE,)) << Peek(1)
    assert stage.play >> OwnerKnown(CURL)  # too late to matter


def test_an_unknown_owner_is_bypassed_with_a_fault_where_applications_are_asked_for_and_failures_open() -> None:
    stage = Stage(on_failure=OnFailure.OPEN, application=True)
    stage.play >> Accepted(CLIENT, GATE, ORIGIN, 0.0) << SetDeadline(2.0) << Ask(ORIGIN)
    report = Report("owner_unknown", OnFailure.OPEN, "whose it is stayed unknown")
    stage.play >> Deadline() << report << NEVER << Dial((REMOTE,))
    stage.play >> Dialled(REMOTE) << Relay(False)
    stage.play >> RelayEnded(Ending.ORDERLY, 1, 1)
    ended(stage.play, Close(), Outcome.FAULT, error="owner_unknown", action=Action.BYPASS)


def test_a_program_that_could_not_be_read_is_not_judged_by_rules_that_ask_for_it_where_failures_close() -> None:
    stage = Stage(application=True)
    stage.owned(UNREAD) << Report("owner_unread", OnFailure.CLOSED)
    ended(
        stage.play, Reset(), Outcome.FAULT, process=UNREAD, error="owner_unread", action=Action.BLOCK, rule="on_failure"
    )


def test_a_program_that_could_not_be_read_is_never_decrypted_for_it_where_failures_open() -> None:
    stage = Stage(on_failure=OnFailure.OPEN, application=True)
    why = "what the policy asks about its program could not be read"
    stage.owned(UNREAD) << Report("owner_unread", OnFailure.OPEN, why) << NEVER << Dial((REMOTE,))
    stage.play >> Dialled(REMOTE) << Relay(False)
    stage.play >> RelayEnded(Ending.ORDERLY, 1, 1)
    ended(stage.play, Close(), Outcome.FAULT, error="owner_unread", action=Action.BYPASS, rule="on_failure")


def test_a_program_that_could_not_be_read_is_judged_by_rules_that_do_not_ask_for_it() -> None:
    stage = Stage(Action.BYPASS)
    stage.owned(UNREAD) << NEVER << Dial((REMOTE,)) << Peek(1)


def test_nothing_is_let_through_unrecorded_where_failures_close() -> None:
    stage = Stage(Action.BYPASS)
    stage.health.recording = False
    stage.owned() << Report("recorder_gone", OnFailure.CLOSED)
    ended(stage.play, Reset(), Outcome.FAULT, error="recorder_gone")


def test_a_flow_goes_on_unrecorded_where_failures_open() -> None:
    stage = Stage(Action.BYPASS, on_failure=OnFailure.OPEN)
    stage.health.recording = False
    assert stage.dialling()


# --- the four actions -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("action", "capture", "tee"),
    [(Action.BYPASS, True, False), (Action.CAPTURE, True, True), (Action.CAPTURE, False, False)],
)
def test_bypass_is_relayed_unread_and_capture_with_a_tee_if_anybody_keeps_it(
    action: Action, capture: bool, tee: bool
) -> None:
    stage = Stage(action, capture=capture)
    stage.relayed(tee).later(1.5) >> RelayEnded(Ending.ORDERLY, 10, 20)
    seen = ended(stage.play, Close(), Outcome.COMPLETED, bytes_sent=10, bytes_received=20, duration_ms=1500, error="")
    assert (seen.action, seen.protocol, seen.host, seen.process, seen.remote) == (action, "tls", "a.test", CURL, REMOTE)
    assert seen.tls is not None
    assert seen.tls.client is not None
    assert seen.tls.client.sni == "a.test"
    assert seen.tls.client.ja4 is not None
    assert seen.tls.server is None


def test_decrypt_hands_both_sockets_of_tls_to_a_worker_under_exactly_the_name() -> None:
    stage = Stage()
    play = stage.connected() >> FirstBytes(TLS) << NEVER << Staff()
    (
        play
        >> Staffed(3)
        << NEVER
        << Record(FlowHanded(flow="f", process=CURL, worker=3, host="a.test", local=CLIENT, remote=REMOTE))
    )
    play << Mint("a.test") << Hand
    assert play.last.worker == 3
    order = play.last.order
    assert (order.flow, order.kind, order.name) == ("f", Plaintext.TLS, "a.test")
    assert (order.origin, order.client) == (REMOTE, CLIENT)
    assert play << WatchClient()
    assert order.decision.action is Action.DECRYPT
    assert stage.flow.worker == 3


@pytest.mark.parametrize("http3", [True, False])
def test_a_worker_hears_whether_programs_may_use_http3(*, http3: bool) -> None:
    stage = Stage(offers=Offers(h3=http3))
    stage.handed(HTTP)
    assert stage.order.http3 is http3
    assert not stage.order.http3_led


def test_a_worker_hears_whether_http3_is_read_where_it_is_led_to_the_gate() -> None:
    stage = Stage(decrypts_quic=True)
    stage.handed(HTTP)
    assert (stage.order.http3, stage.order.http3_led) == (True, True)


def test_without_a_name_the_address_is_what_a_certificate_is_for() -> None:
    stage = Stage()
    play = stage.connected() >> FirstBytes(hello()) << NEVER << Staff()
    assert play >> Staffed(0) << NEVER << Record << Mint("192.0.2.1") << Hand << WatchClient()


def test_plain_http_is_handed_over_without_a_certificate() -> None:
    stage = Stage()
    stage.handed(HTTP)
    assert stage.order.kind is Plaintext.HTTP


def test_decrypt_of_what_no_worker_reads_is_captured_and_recorded_so() -> None:
    stage = Stage()
    play = stage.connected() >> FirstBytes(SSH) << NEVER << Relay(True)
    play >> RelayEnded(Ending.ORDERLY, 1, 2)
    ended(play, Close(), Outcome.COMPLETED, action=Action.CAPTURE, protocol="ssh", rule="defaults")


def test_a_request_in_absolute_form_is_handed_over_as_http() -> None:
    stage = Stage()
    stage.handed(b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n")
    assert (stage.order.kind, stage.order.name) == (Plaintext.HTTP, "a.test")


@pytest.mark.parametrize("on_failure", OnFailure)
def test_http_that_no_worker_reads_and_was_to_be_inspected_follows_on_failure(on_failure: OnFailure) -> None:
    stage = Stage(on_failure=on_failure, inspect=("secrets",))
    play = stage.connected() >> FirstBytes(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    if on_failure is OnFailure.CLOSED:
        play << Report("not_inspected", OnFailure.CLOSED)
        ended(play, Reset(), Outcome.FAULT, error="not_inspected")
    else:
        play << NEVER << Report << Relay(True)
        play >> RelayEnded(Ending.ORDERLY, 1, 1)
        ended(play, Close(), Outcome.COMPLETED, action=Action.CAPTURE)


def test_block_resets_tls_and_contacts_nobody() -> None:
    stage = Stage(Action.BLOCK)
    stage.waiting() >> FirstBytes(TLS)
    ended(stage.play, Reset(), Outcome.BLOCKED, host="a.test", protocol="tls", action=Action.BLOCK)


def test_block_answers_plain_http_with_a_page_that_names_the_rule() -> None:
    stage = Stage(host=Action.BLOCK)
    stage.waiting() >> FirstBytes(HTTP)
    ended(stage.play, Page("host", "its name"), Outcome.BLOCKED, host="a.test", protocol="http")


def test_block_does_not_wait_for_a_client_that_says_nothing() -> None:
    stage = Stage(Action.BLOCK)
    stage.waiting().later(0.3) >> Deadline()
    ended(stage.play, Reset(), Outcome.BLOCKED, protocol="tcp")


# --- names ------------------------------------------------------------------------------------------------------------
def test_no_origin_is_dialled_before_the_name_has_decided() -> None:
    stage = Stage(Action.BYPASS, host=Action.CAPTURE)
    play = stage.waiting() >> FirstBytes(TLS) << NEVER << Dial((REMOTE,))
    assert play >> Dialled(REMOTE) << Relay(True)


def test_without_a_hello_in_time_the_decision_is_made_without_a_name_and_whoever_speaks_first_settles_it() -> None:
    stage = Stage(Action.CAPTURE, host=Action.BLOCK)
    play = stage.waiting() >> Deadline() << Dial((REMOTE,))
    play >> Dialled(REMOTE) << WatchServer()
    play >> ServerSpoke(b"220 mail.test ESMTP\r\n") << NEVER << Relay(True)
    play >> RelayEnded(Ending.ORDERLY, 0, 9)
    ended(play, Close(), Outcome.COMPLETED, protocol="smtp", host=None)


def test_a_name_that_comes_late_still_decides() -> None:
    stage = Stage(Action.BYPASS, host=Action.BLOCK)
    play = stage.waiting() >> Deadline() << Dial((REMOTE,))
    play >> Dialled(REMOTE) << WatchServer()
    play >> FirstBytes(TLS)
    ended(play, Reset(), Outcome.BLOCKED, rule="host")


def test_a_decision_without_a_name_can_block_too() -> None:
    stage = Stage(Action.BLOCK, host=Action.BYPASS)
    stage.waiting() >> Deadline()
    ended(stage.play, Reset(), Outcome.BLOCKED, rule="defaults")


def test_the_hello_may_come_before_the_origin_answers() -> None:
    stage = Stage(Action.BYPASS)
    stage.dialling() >> FirstBytes(TLS) << NEVER
    assert stage.play >> Dialled(REMOTE) << Relay(False)


@pytest.mark.parametrize("greeting", [b"", b"RFB 003.008\n"])
def test_a_server_that_says_nothing_we_know_is_tcp(greeting: bytes) -> None:
    stage = Stage()
    stage.connected() >> ServerSpoke(greeting) << NEVER << Relay(True)
    stage.play >> FirstBytes(TLS)  # peeked in the same moment: settled is settled
    stage.play >> RelayEnded(Ending.ORIGIN_RESET, 0, 0)
    ended(stage.play, Reset(), Outcome.ORIGIN_RESET, protocol="tcp", action=Action.CAPTURE)


# --- pieces, and what is malformed ------------------------------------------------------------------------------------
def test_a_hello_in_pieces_gets_a_second_deadline_once() -> None:
    stage = Stage(Action.BYPASS, host=Action.CAPTURE)
    play = stage.waiting() >> FirstBytes(TLS[:3]) << SetDeadline(5.0) << Peek
    assert 3 < play.last.at_least_bytes <= len(TLS)
    play >> FirstBytes(HALF) << Peek
    assert play >> FirstBytes(TLS) << NEVER << Dial((REMOTE,))


@given(st.sampled_from(sorted(REAL)), st.lists(st.integers(1, 600), max_size=6))
def test_any_split_of_a_real_hello_leads_to_the_same_hand_over(which: str, cuts: list[int]) -> None:
    data, stage = REAL[which], Stage(Action.BYPASS)
    stage.connected().done()
    for end in [*sorted({cut for cut in cuts if cut < len(data)}), len(data)]:
        commands = stage.flow.told(FirstBytes(data[:end]), 0.0)
        if stage.flow.state is State.RELAYED:
            break
        assert any(isinstance(command, Peek) and command.at_least_bytes > end for command in commands)
    assert stage.flow.state is State.RELAYED
    assert stage.flow.about.protocol == "tls"


@given(st.binary(max_size=300), st.booleans())
def test_whatever_the_first_bytes_are_a_flow_goes_on_or_ends(data: bytes, eof: bool) -> None:
    stage = Stage(Action.DECRYPT)
    stage.connected().done()
    stage.flow.told(FirstBytes(data, eof), 0.0)
    assert not (eof and stage.flow.state is State.FIRST)


@pytest.mark.parametrize(("action", "tee"), [(Action.BYPASS, False), (Action.CAPTURE, True)])
def test_malformed_bytes_are_relayed_where_no_name_could_have_changed_that(action: Action, tee: bool) -> None:
    stage = Stage(action)
    play = stage.connected() >> FirstBytes(FLAWED) << NEVER << Relay(tee)
    play >> RelayEnded(Ending.ORDERLY, 9, 0)
    assert ended(play, Close(), Outcome.MALFORMED, action=action, protocol="tcp", host=None).error


@pytest.mark.parametrize("on_failure", OnFailure)
@pytest.mark.parametrize("end", [FirstBytes(FLAWED), FirstBytes(HALF, eof=True), Deadline()])
def test_who_garbles_or_stalls_its_name_evades_no_host_rule(on_failure: OnFailure, end: Any) -> None:
    stage = Stage(Action.BYPASS, host=Action.BLOCK, on_failure=on_failure)
    play = stage.waiting() >> FirstBytes(HALF[:-1]) << SetDeadline(5.0) << Peek
    play >> end
    ended(play, Reset(), Outcome.MALFORMED, action=Action.BLOCK)


def test_a_stalled_request_evades_no_host_rule_either_nor_does_a_server_that_speaks_into_it() -> None:
    for nameless in (False, True):
        stage = Stage(Action.BYPASS, host=Action.BLOCK)
        play = stage.waiting()
        if nameless:
            play >> Deadline() << Dial((REMOTE,))
            play >> Dialled(REMOTE) << WatchServer()
        play >> FirstBytes(b"GE") << SetDeadline(5.0) << Peek
        play >> (ServerSpoke(b"hello\r\n") if nameless else Deadline())
        ended(play, Reset(), Outcome.MALFORMED)


def test_malformed_bytes_are_reset_under_block() -> None:
    stage = Stage(Action.BLOCK)
    stage.waiting() >> FirstBytes(FLAWED)
    assert ended(stage.play, Reset(), Outcome.BLOCKED).error


@pytest.mark.parametrize("end", [Deadline(), FirstBytes(HALF, eof=True)])
def test_half_a_hello_is_malformed_when_no_more_comes(end: Any) -> None:
    stage = Stage(Action.DECRYPT)
    play = stage.connected() >> FirstBytes(HALF[:-1]) << SetDeadline(5.0) << Peek
    play >> end
    ended(play, Reset(), Outcome.MALFORMED, error="incomplete")


@pytest.mark.checklist("C9")
def test_a_hello_that_comes_byte_by_byte_gets_no_more_time_than_one_that_does_not() -> None:
    stage = Stage(Action.DECRYPT)
    play = stage.connected() >> FirstBytes(TLS[:1]) << SetDeadline(5.0) << Peek
    for size in range(2, len(TLS)):
        play >> FirstBytes(TLS[:size]) << Peek
    play >> Deadline()
    ended(play, Reset(), Outcome.MALFORMED, error="incomplete")


def test_a_hello_whose_end_and_beginning_come_at_once_is_malformed_too() -> None:
    stage = Stage(Action.DECRYPT)
    stage.connected() >> FirstBytes(HALF, eof=True)
    ended(stage.play, Reset(), Outcome.MALFORMED, error="incomplete")


def test_a_hello_beyond_the_limit_is_not_waited_for() -> None:
    stage = Stage(Action.DECRYPT)
    request = b"GET / HTTP/1.1\r\nHost: a.test\r\nX: " + b"x" * FIRST_BYTES_LIMIT
    stage.connected() >> FirstBytes(request[:FIRST_BYTES_LIMIT])
    ended(stage.play, Reset(), Outcome.MALFORMED)


def test_a_word_without_an_end_is_not_waited_for_long_and_is_just_tcp() -> None:
    stage = Stage(Action.DECRYPT)
    play = stage.connected() >> FirstBytes(b"pi") << SetDeadline(0.3) << Peek(3)
    play >> FirstBytes(b"pin") << Peek(4)
    play >> Deadline() << NEVER << Relay(True)
    play >> RelayEnded(Ending.ORDERLY, 4, 4)
    ended(play, Close(), Outcome.COMPLETED, protocol="tcp")


STALLED = {  # what the policy says of unknown protocols → what follows from it
    Action.BYPASS: Relay(False),
    Action.CAPTURE: Relay(True),
    Action.DECRYPT: Relay(True),  # of what nobody can read, a copy
}


@pytest.mark.parametrize("action", STALLED)
@pytest.mark.parametrize("word", [b"FROB", b"FROB ", b"pi"])
@pytest.mark.parametrize("nameless", [False, True], ids=["at once", "after silence"])
def test_a_word_of_no_known_method_that_stalls_is_an_unknown_protocol_by_the_deadline_and_no_worker_sees_it(
    action: Action, word: bytes, nameless: bool
) -> None:
    stage = Stage(action, host=Action.BLOCK, on_failure=OnFailure.OPEN)
    play = stage.waiting()
    if nameless:
        play >> Deadline() << Dial((REMOTE,))
    play >> FirstBytes(word) << SetDeadline(0.3) << Peek
    if nameless:
        play >> Deadline() << NEVER
    else:
        play >> Deadline() << NEVER << Dial((REMOTE,))
    play >> Dialled(REMOTE) << STALLED[action]
    play >> FirstBytes(word + b" / HTTP/1.1\r\nHost: a.test\r\n\r\n") >> FirstBytes(TLS)  # settled is settled
    play >> RelayEnded(Ending.ORDERLY, 4, 4)
    done = Action.CAPTURE if action is Action.DECRYPT else action
    ended(play, Close(), Outcome.COMPLETED, protocol="tcp", host=None, rule="defaults", action=done)


def test_a_word_of_no_known_method_that_stalls_is_blocked_where_unknown_protocols_are() -> None:
    stage = Stage(Action.BLOCK, host=Action.DECRYPT)
    stage.waiting() >> FirstBytes(b"FROB") << SetDeadline(0.3) << Peek
    stage.play >> FirstBytes(b"FROBNICATE") << Peek  # no more time for more of it
    stage.play >> Deadline()
    ended(stage.play, Reset(), Outcome.BLOCKED, rule="defaults", protocol="tcp")


def test_a_word_that_turns_into_a_request_gets_the_time_of_a_request() -> None:
    stage = Stage(Action.DECRYPT)
    request = HTTP.replace(b"GET", b"FROB")
    play = stage.connected() >> FirstBytes(b"FROB") << SetDeadline(0.3) << Peek
    play >> FirstBytes(request[:20]) << SetDeadline(5.0) << Peek
    assert play >> FirstBytes(request) << NEVER << Staff()


PLAIN = {
    "http": HTTP,
    "http-proxy": b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n",
    "http2-cleartext": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "ssh": SSH,
    "dns": bytes.fromhex("001d123401000001000000000000037777770765786 16d706c650000010001".replace(" ", "")),
}


@pytest.mark.parametrize("action", [Action.BYPASS, Action.CAPTURE])
@pytest.mark.parametrize("protocol", PLAIN)
def test_plaintext_that_is_not_to_be_decrypted_is_relayed_and_copied_where_the_policy_says_so(
    protocol: str, action: Action
) -> None:
    stage = Stage(action)
    stage.connected() >> FirstBytes(PLAIN[protocol]) << NEVER << Relay(action is Action.CAPTURE)
    stage.play >> RelayEnded(Ending.ORDERLY, 1, 2)
    ended(stage.play, Close(), Outcome.COMPLETED, protocol=protocol, action=action)


@pytest.mark.parametrize("protocol", PLAIN)
def test_plaintext_that_the_policy_blocks_is_refused_before_its_origin_is_contacted(protocol: str) -> None:
    stage = Stage(Action.BLOCK)
    stage.waiting() >> FirstBytes(PLAIN[protocol])
    answer = Page if protocol in ("http", "http-proxy") else Reset()
    ended(stage.play, answer, Outcome.BLOCKED, protocol=protocol, action=Action.BLOCK)


@pytest.mark.parametrize("protocol", ["http2-cleartext", "ssh", "dns"])
def test_plaintext_that_no_worker_reads_is_captured_instead_of_decrypted(protocol: str) -> None:
    stage = Stage()
    stage.connected() >> FirstBytes(PLAIN[protocol]) << NEVER << Relay(True)
    stage.play >> RelayEnded(Ending.ORDERLY, 1, 2)
    ended(stage.play, Close(), Outcome.COMPLETED, protocol=protocol, action=Action.CAPTURE)


# --- DNS, DNS over TLS, encrypted hellos: named and refused -----------------------------------------------------------
ECH = hello(server_name(b"public.test"), (0xFE0D, bytes(80)))
QUESTION = query("a.test")
REFUSED = [
    (Rule(name="dns", protocol=(Protocol.DNS,), action=Action.BLOCK), struct.pack("!H", len(QUESTION)) + QUESTION),
    (Rule(name="dot", alpn=("dot",), action=Action.BLOCK), hello(server_name(b"dns.test"), alpn(b"dot"))),
    (Rule(name="doh", host=("dns.test",), action=Action.BLOCK), hello(server_name(b"dns.test"), alpn(b"h2"))),
    (Rule(name="ech", host=("public.test",), action=Action.BLOCK), ECH),
]


@pytest.mark.parametrize(("rule", "data"), REFUSED)
def test_questions_over_tcp_or_tls_and_encrypted_hellos_can_be_refused(rule: Rule, data: bytes) -> None:
    stage = Stage(Action.BYPASS, more=(rule,))
    seen = ended(stage.waiting() >> FirstBytes(data), Reset(), Outcome.BLOCKED, action=Action.BLOCK, rule=rule.name)
    assert seen.protocol is (Protocol.DNS if rule.name == "dns" else Protocol.TLS)


@pytest.mark.parametrize("data", [data for _, data in REFUSED])
def test_without_such_a_rule_they_are_relayed_under_their_name(data: bytes) -> None:
    stage = Stage(Action.BYPASS)
    stage.connected() >> FirstBytes(data) << NEVER << Relay(False)
    seen = ended(stage.play >> RelayEnded(Ending.ORDERLY, 1, 2), Close(), Outcome.COMPLETED, action=Action.BYPASS)
    assert seen.protocol is (Protocol.DNS if seen.tls is None else Protocol.TLS)
    if data is ECH:
        assert (seen.tls.client.sni, seen.tls.client.ech) == ("public.test", True)
    elif seen.tls is not None:
        assert (seen.tls.client.sni, seen.tls.client.ech) == ("dns.test", None)
