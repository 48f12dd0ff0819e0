"""One flow's decisions, told as plays: `>>` what happens, `<<` what must follow."""

from __future__ import annotations

from typing import Any

import pytest
from hellos import REAL, alpn, hello, server_name
from hypothesis import given
from hypothesis import strategies as st
from playbook import Playbook

from mitmsec.audit.event import ConnectionSeen, FlowHanded, Outcome
from mitmsec.core.messages import FlowEnded, Plaintext, TlsClientFacts, TlsFacts, TlsServerFacts
from mitmsec.core.model import Action, Confidence, Endpoint, OnFailure, Process
from mitmsec.core.policy import Application, Policy, Rule
from mitmsec.core.sniff import FIRST_BYTES_LIMIT
from mitmsec.gate.flow import Flow, State
from mitmsec.gate.names import Names
from mitmsec.gate.signals import (
    Accepted,
    Ask,
    ClientGone,
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
    HandOver,
    LongLived,
    Mint,
    Origin,
    OwnerKnown,
    Page,
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
    WatchServer,
    WorkerDied,
    WorkerSaid,
)
from mitmsec.gate.terms import Terms

CLIENT, GATE = Endpoint(address="127.0.0.1", port=40000), Endpoint(address="127.0.0.1", port=8000)
REMOTE, OTHER = Endpoint(address="192.0.2.1", port=443), Endpoint(address="192.0.2.2", port=443)
ORIGIN = Origin(remote=REMOTE, pid=8, uid=1000, comm="curl")
CURL = Process(pid=8, exe="/usr/bin/curl", name="curl", confidence=Confidence.KERNEL)
NEVER = SetDeadline(None)
TLS = hello(server_name(b"a.test"), alpn(b"h2"))
HTTP = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
SSH = b"SSH-2.0-x\r\n"
FLAWED = b"\x16\x03\x01\x00\x05\x01\xff\xff\xff\xff"  # a hello of 16 MiB
HALF = TLS[:50]


class Colleagues:
    """Health, as the test wants it."""

    recording = True
    signing = True


class Stage:
    """A flow on which a play is played, under a policy whose one rule is about the host a.test, or none."""

    def __init__(
        self,
        action: Action = Action.DECRYPT,
        *,
        host: Action | None = None,
        on_failure: OnFailure = OnFailure.CLOSED,
        capture: bool = True,
        inspect: tuple[str, ...] = (),
        application: bool = False,
    ) -> None:
        rules = (Rule(name="host", host=("a.test",), action=host, reason="its name"),) if host else ()
        applications = (Application(name="curl", path=("/usr/bin/curl",)),) if application else ()
        if application:
            rules = (*rules, Rule(name="app", application=("curl",), action=Action.BLOCK))
        self.names, self.health = Names(), Colleagues()
        self.terms = Terms(on_failure=on_failure, capture=capture)
        self.flow = Flow(
            "f",
            self.terms,
            Policy(action=action, rules=rules, inspect=inspect, applications=applications),
            self.names,
            self.health,
        )
        self.play = Playbook(self.flow.told)

    def owned(self) -> Playbook:
        """Up to the moment where the owner is known; what follows from that is due."""
        self.play >> Accepted(CLIENT, GATE, ORIGIN) << SetDeadline(self.terms.owner_deadline_s) << Ask(ORIGIN)
        return self.play >> OwnerKnown(CURL)

    def waiting(self) -> Playbook:
        """Nothing decided yet: the first bytes are awaited."""
        return self.owned() << SetDeadline(0.3) << Peek(1)

    def dialling(self) -> Playbook:
        """Decided without a name: dialled, and the first bytes are awaited."""
        return self.owned() << NEVER << Dial((REMOTE,)) << Peek(1)

    def connected(self) -> Playbook:
        return self.dialling() >> Dialled(REMOTE) << WatchServer()

    def relayed(self, tee: bool = False) -> Playbook:
        return self.connected() >> FirstBytes(TLS) << NEVER << Relay(tee)

    def handed(self, data: bytes = TLS) -> Playbook:
        self.connected() >> FirstBytes(data) << NEVER << Staff()
        self.play >> Staffed(3) << NEVER << Record
        if data is TLS:
            self.play << Mint("a.test")
        return self.play << HandOver


def ended(play: Playbook, answer: Any, outcome: Outcome, **facts: Any) -> ConnectionSeen:
    """The play ends with `answer` and this record."""
    play << NEVER << answer << Record
    play.done()
    seen = play.last.seen
    assert isinstance(seen, ConnectionSeen)
    assert seen.outcome is outcome
    for name, value in facts.items():
        assert getattr(seen, name) == value, name
    return seen


# --- whose ------------------------------------------------------------------------------------------------------------
def test_a_stranger_is_reset_recorded_and_reported() -> None:
    stage = Stage(Action.BYPASS)
    stage.play >> Accepted(CLIENT, GATE, None) << Report("stranger", detail="from 127.0.0.1:40000")
    ended(stage.play, Reset(), Outcome.STRANGER, remote=GATE, local=CLIENT, action=Action.BLOCK, rule="gate")


def test_an_owner_who_stays_unknown_is_reset_where_failures_close() -> None:
    stage = Stage()
    stage.play >> Accepted(CLIENT, GATE, ORIGIN) << SetDeadline(2.0) << Ask(ORIGIN)
    stage.play >> Deadline() << Report("owner_unknown", OnFailure.CLOSED)
    seen = ended(stage.play, Reset(), Outcome.FAULT, error="owner_unknown")
    assert (seen.process.pid, seen.process.name, seen.process.confidence) == (8, "curl", Confidence.INFERRED)


def test_an_owner_who_stays_unknown_is_decided_by_the_kernels_word_where_failures_open() -> None:
    stage = Stage(Action.BYPASS, on_failure=OnFailure.OPEN)
    stage.play >> Accepted(CLIENT, GATE, ORIGIN) << SetDeadline(2.0) << Ask(ORIGIN)
    stage.play >> Deadline() << Report("owner_unknown", OnFailure.OPEN) << NEVER << Dial((REMOTE,)) << Peek(1)
    stage.play >> OwnerKnown(CURL)  # too late to matter
    stage.play.done()


def test_an_unknown_owner_is_bypassed_with_a_fault_where_applications_are_asked_for_and_failures_open() -> None:
    stage = Stage(on_failure=OnFailure.OPEN, application=True)
    stage.play >> Accepted(CLIENT, GATE, ORIGIN) << SetDeadline(2.0) << Ask(ORIGIN)
    stage.play >> Deadline() << Report("owner_unknown", OnFailure.OPEN) << NEVER << Dial((REMOTE,))
    stage.play >> Dialled(REMOTE) << Relay(False)
    stage.play >> RelayEnded(Ending.ORDERLY, 1, 1)
    ended(stage.play, Close(), Outcome.FAULT, error="owner_unknown", action=Action.BYPASS)


def test_nothing_is_let_through_unrecorded_where_failures_close() -> None:
    stage = Stage(Action.BYPASS)
    stage.health.recording = False
    stage.owned() << Report("recorder_gone", OnFailure.CLOSED)
    ended(stage.play, Reset(), Outcome.FAULT, error="recorder_gone")


def test_a_flow_goes_on_unrecorded_where_failures_open() -> None:
    stage = Stage(Action.BYPASS, on_failure=OnFailure.OPEN)
    stage.health.recording = False
    stage.dialling().done()


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
    play << Mint("a.test") << HandOver
    order = play.last
    assert (order.worker, order.kind, order.name, order.remote, order.client) == (
        3,
        Plaintext.TLS,
        "a.test",
        REMOTE,
        CLIENT,
    )
    assert order.decision.action is Action.DECRYPT
    assert stage.flow.worker == 3


def test_without_a_name_the_address_is_what_a_certificate_is_for() -> None:
    stage = Stage()
    play = stage.connected() >> FirstBytes(hello()) << NEVER << Staff()
    play >> Staffed(0) << NEVER << Record << Mint("192.0.2.1") << HandOver


def test_plain_http_is_handed_over_without_a_certificate() -> None:
    stage = Stage()
    stage.handed(HTTP)
    assert stage.play.last.kind is Plaintext.HTTP


def test_decrypt_of_what_no_worker_reads_is_captured_and_recorded_so() -> None:
    stage = Stage()
    play = stage.connected() >> FirstBytes(SSH) << NEVER << Relay(True)
    play >> RelayEnded(Ending.ORDERLY, 1, 2)
    ended(play, Close(), Outcome.COMPLETED, action=Action.CAPTURE, protocol="ssh", rule="defaults")


def test_a_request_in_absolute_form_is_handed_over_as_http() -> None:
    stage = Stage()
    stage.handed(b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n")
    assert (stage.play.last.kind, stage.play.last.name) == (Plaintext.HTTP, "a.test")


@pytest.mark.parametrize("on_failure", OnFailure)
@pytest.mark.parametrize(
    "data", [b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
)
def test_http_that_no_worker_reads_and_was_to_be_inspected_follows_on_failure(
    data: bytes, on_failure: OnFailure
) -> None:
    stage = Stage(on_failure=on_failure, inspect=("secrets",))
    play = stage.connected() >> FirstBytes(data)
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
    play >> Dialled(REMOTE) << Relay(True)


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
    stage.play >> Dialled(REMOTE) << Relay(False)


@pytest.mark.parametrize("greeting", [b"", b"\xff\xfd", b"220"])
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
    play >> FirstBytes(TLS) << NEVER << Dial((REMOTE,))


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


def test_a_word_that_turns_into_a_request_gets_the_time_of_a_request() -> None:
    stage = Stage(Action.DECRYPT)
    request = HTTP.replace(b"GET", b"FROB")
    play = stage.connected() >> FirstBytes(b"FROB") << SetDeadline(0.3) << Peek
    play >> FirstBytes(request[:20]) << SetDeadline(5.0) << Peek
    play >> FirstBytes(request) << NEVER << Staff()


# --- the client goes --------------------------------------------------------------------------------------------------
def test_a_client_that_leaves_before_a_decision_costs_no_origin_a_contact() -> None:
    stage = Stage(Action.BYPASS, host=Action.BLOCK)
    stage.waiting() >> FirstBytes(b"", eof=True)
    ended(stage.play, Close(), Outcome.CLIENT_CLOSED)


def test_a_client_that_only_listens_gets_its_server() -> None:
    stage = Stage(Action.CAPTURE)
    stage.dialling() >> FirstBytes(b"", eof=True) << NEVER
    stage.play >> Dialled(REMOTE) << Relay(True)


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
        (DialFailure.FAULT, Outcome.FAULT),
    ],
)
def test_an_origin_that_cannot_be_reached_resets_the_client_and_the_record_says_why(
    failure: DialFailure, outcome: Outcome
) -> None:
    stage = Stage(Action.BYPASS)
    stage.dialling() >> FirstBytes(TLS) << NEVER
    stage.play >> DialFailed(failure)
    ended(stage.play, Reset(), outcome, host="a.test")


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
    stage.names.answered("a.test", OTHER)
    play = stage.dialling() >> DialFailed(DialFailure.REFUSED) << SetDeadline(0.3)
    play >> FirstBytes(TLS) << NEVER << Dial((OTHER,))
    play >> Dialled(OTHER) << Relay(False)
    play >> RelayEnded(Ending.ORDERLY, 1, 1)
    ended(play, Close(), Outcome.COMPLETED, remote=OTHER)


def test_when_all_fail_the_first_failure_is_the_one_on_record() -> None:
    stage = Stage(Action.BYPASS)
    stage.names.answered("a.test", OTHER)
    play = stage.dialling() >> DialFailed(DialFailure.REFUSED) << SetDeadline(0.3)
    play >> FirstBytes(TLS) << NEVER << Dial((OTHER,))
    play >> DialFailed(DialFailure.TIMEOUT)
    ended(play, Reset(), Outcome.ORIGIN_REFUSED)


def test_other_addresses_join_a_dial_that_is_under_way_or_begins() -> None:
    under_way, begins = Stage(Action.BYPASS), Stage(Action.BYPASS, host=Action.CAPTURE)
    under_way.names.answered("a.test", OTHER)
    begins.names.answered("a.test", OTHER)
    under_way.dialling() >> FirstBytes(TLS) << NEVER << Dial((OTHER,))
    begins.waiting() >> FirstBytes(TLS) << NEVER << Dial((REMOTE, OTHER))


def test_an_address_of_which_the_policy_says_something_else_is_not_tried() -> None:
    rule = Rule(name="not there", address=("192.0.2.2/32",), action=Action.BLOCK)
    names = Names()
    names.answered("a.test", OTHER)
    flow = Flow("f", Terms(on_failure=OnFailure.CLOSED), Policy(rules=(rule,)), names, Colleagues())
    play = Playbook(flow.told) >> Accepted(CLIENT, GATE, ORIGIN) << SetDeadline(2.0) << Ask(ORIGIN)
    play >> OwnerKnown(CURL) << NEVER << Dial((REMOTE,)) << Peek(1)
    play >> FirstBytes(TLS) << NEVER
    play.done()


def test_the_address_that_answered_for_a_name_is_remembered() -> None:
    stage = Stage(Action.BYPASS)
    stage.relayed()
    assert stage.names.others("a.test", OTHER) == (REMOTE,)


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


def test_a_worker_that_dies_takes_its_flows_with_it() -> None:
    stage = Stage()
    stage.handed() >> WorkerDied()
    ended(stage.play, Reset(), Outcome.FAULT, error="worker_died")


def test_a_flow_waits_for_a_worker_that_comes_back() -> None:
    stage = Stage()
    play = stage.connected() >> FirstBytes(TLS) << NEVER << Staff()
    play >> Unstaffed() << SetDeadline(1.0)
    play >> Staffed(1) << NEVER << Record << Mint("a.test") << HandOver


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
    stage.handed(HTTP)


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
    stage.waiting() >> LongLived(0, 0)
    stage.play.done()


def test_a_cut_ends_a_flow_in_any_state_once() -> None:
    for reach in (Stage.waiting, Stage.relayed, Stage.handed):
        stage = Stage(
            Action.DECRYPT if reach is Stage.handed else Action.BYPASS,
            host=Action.BLOCK if reach is Stage.waiting else None,
        )
        reach(stage) >> Cut("drained")
        ended(stage.play, Reset(), Outcome.CUT, error="drained")
        stage.play >> Cut("again") >> Deadline() >> RelayEnded(Ending.ORDERLY, 0, 0)
        stage.play.done()


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
    RelayEnded(Ending.ORDERLY, 0, 0), LongLived(0, 0), Faulted("x"),
]  # fmt: skip


@pytest.mark.parametrize("reach", [Stage.relayed, Stage.handed])
def test_a_flow_that_somebody_carries_hears_only_who_carries_it(reach: Any) -> None:
    ends = (RelayEnded if reach is Stage.relayed else (WorkerSaid, WorkerDied), LongLived, Faulted)
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
    commands = list(stage.flow.told(Accepted(CLIENT, GATE, ORIGIN), 0.0))
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
