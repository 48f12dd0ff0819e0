"""What is blocked with `page = true`: a worker tells the client why, inside TLS, and nobody else hears of it."""

from __future__ import annotations

from typing import Any

import pytest
from gate_stage import CLIENT, CURL, GATE, HTTP, NEVER, ORIGIN, OTHER, REMOTE, TLS, Stage, ended
from hellos import alpn, hello, server_name
from hypothesis import given
from hypothesis import strategies as st
from playbook import Playbook

from mitmsec.audit.event import FlowHanded, Outcome
from mitmsec.core.messages import FlowEnded, TlsClientFacts, TlsFacts, TlsServerFacts, Upgrading
from mitmsec.core.model import Action, Direction, OnFailure, Refusal
from mitmsec.core.policy import Rule
from mitmsec.core.sniff import Protocol
from mitmsec.gate.flow import State
from mitmsec.gate.learned import Learned
from mitmsec.gate.signals import (
    Accepted,
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
    Page,
    Proved,
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
    TakeBack,
    Undial,
    Unstaffed,
    WatchClient,
    WatchServer,
    WorkerDied,
    WorkerSaid,
    WorkerUpgrades,
)

TOLD = Rule(name="told", action=Action.BLOCK, host=("a.test",), page=True, reason="its name")
FACTS = TlsFacts(client=TlsClientFacts(version="TLSv1.3", sni="liar.test"))


def stage(action: Action = Action.BYPASS, *, on_failure: OnFailure = OnFailure.OPEN, **more: Any) -> Stage:
    return Stage(action, on_failure=on_failure, more=(TOLD,), **more)


def staffed(on: Stage) -> Playbook:
    """Up to the moment where a worker is sought."""
    return on.waiting() >> FirstBytes(TLS) << NEVER << Staff()


def handed(on: Stage) -> Playbook:
    play = staffed(on)
    play >> Staffed(3) << NEVER << Record
    assert isinstance(play.last.seen, FlowHanded)
    play << Mint("a.test") << Hand
    on.order = play.last.order
    return play << WatchClient()


def said(**facts: Any) -> WorkerSaid:
    return WorkerSaid(FlowEnded(**{"flow": "f", "bytes_sent": 5, "bytes_received": 7, "outcome": "completed", **facts}))


def test_a_worker_shows_the_page_and_nothing_is_dialled() -> None:
    on = stage()
    play = handed(on)
    assert (on.order.name, on.order.decision.action, on.order.decision.page) == ("a.test", Action.BLOCK, True)
    play >> said(tls=FACTS)
    seen = ended(play, Close(), Outcome.BLOCKED, action=Action.BLOCK, rule="told", reason="its name", bytes_sent=5)
    assert (seen.tls.client.version, seen.tls.client.sni, seen.tls.server) == ("TLSv1.3", "a.test", None)


@pytest.mark.parametrize("outcome", ["completed", "client_rejected", "fault", "malformed", "cut", "nonsense"])
def test_whatever_a_worker_says_of_it_it_was_blocked(outcome: str) -> None:
    play = handed(stage())
    play >> said(outcome=outcome, error="how", reset=True)
    ended(play, Reset(), Outcome.BLOCKED, action=Action.BLOCK, error="how")


def test_plaintext_has_its_page_as_ever() -> None:
    on = stage()
    ended(on.waiting() >> FirstBytes(HTTP), Page("told", "its name"), Outcome.BLOCKED)


def test_a_rule_without_it_resets_as_ever() -> None:
    on = Stage(Action.BYPASS, host=Action.BLOCK)
    ended(on.waiting() >> FirstBytes(TLS), Reset(), Outcome.BLOCKED)


def test_an_origin_that_was_dialled_before_the_name_was_known_is_left_before_a_worker_is_sought() -> None:
    on = stage()
    play = on.waiting() >> Deadline() << Dial((REMOTE,))
    play >> Dialled(REMOTE) << WatchServer()
    play >> FirstBytes(TLS) << NEVER << Undial() << Staff()
    play >> ServerSpoke(b"220 hello\r\n")  # what it said in that moment is nobody's business
    play >> Staffed(1) << NEVER << Record << Mint("a.test") << Hand << WatchClient()
    on = stage()
    play = on.waiting() >> Deadline() << Dial((REMOTE,))
    play >> FirstBytes(TLS) << NEVER << Undial() << Staff()
    play >> Dialled(OTHER)


def test_an_address_that_shows_no_name_has_a_page_under_the_address() -> None:
    rule = Rule(name="told", action=Action.BLOCK, address=("192.0.2.0/24",), page=True)
    on = Stage(Action.BYPASS, more=(rule,))
    play = on.waiting() >> FirstBytes(hello(alpn(b"http/1.1"))) << NEVER << Staff()
    play >> Staffed(1) << NEVER << Record << Mint("192.0.2.1") << Hand << WatchClient()


@pytest.mark.parametrize("offers", [(b"imap",), (b"dot", b"acme-tls/1"), (b"h3",)])
def test_what_cannot_be_http_is_reset_undecrypted(offers: tuple[bytes, ...]) -> None:
    on = stage()
    play = on.waiting() >> FirstBytes(hello(server_name(b"a.test"), alpn(*offers)))
    ended(play, Reset(), Outcome.BLOCKED, rule="told")


@pytest.mark.parametrize("offers", [(), (b"http/1.1",), (b"imap", b"h2")])
def test_what_may_be_http_is_looked_at(offers: tuple[bytes, ...]) -> None:
    extensions = [server_name(b"a.test"), *([alpn(*offers)] if offers else [])]
    assert stage().waiting() >> FirstBytes(hello(*extensions)) << NEVER << Staff()


def test_who_is_switched_off_decrypts_nothing_to_show_a_page() -> None:
    on = stage()
    on.health.off = True
    play = on.waiting() >> FirstBytes(TLS)
    seen = ended(play, Reset(), Outcome.BLOCKED, action=Action.BLOCK)
    assert seen.tls.client.version is None


def test_who_comes_from_outside_is_not_told_of_our_rules() -> None:
    on = stage()
    on.flow.about.direction = Direction.INBOUND
    ended(on.waiting() >> FirstBytes(TLS), Reset(), Outcome.BLOCKED)


def test_in_a_tunnel_and_after_a_dialogue_it_is_a_reset() -> None:
    for through in (True, False):
        on = stage()
        on.waiting().done()
        if through:
            on.flow.about.through = Protocol.SOCKS
        else:
            on.flow.about.upgraded = True
        ended(on.play >> FirstBytes(TLS), Reset(), Outcome.BLOCKED)


@pytest.mark.parametrize("on_failure", OnFailure)
@pytest.mark.parametrize("lack", ["no_worker", "recorder_gone", "signer_gone"])
def test_where_no_page_can_be_shown_it_is_a_reset_whatever_failures_do(lack: str, on_failure: OnFailure) -> None:
    on = stage(on_failure=on_failure)
    play = on.waiting()
    play.done()
    on.health.recording, on.health.signing = lack != "recorder_gone", lack != "signer_gone"
    play >> FirstBytes(TLS)
    if lack == "no_worker":
        play << NEVER << Staff()
        play >> Unstaffed() << SetDeadline(1.0)
        play >> Deadline()
    play << Report(lack, OnFailure.CLOSED)
    ended(play, Reset(), Outcome.BLOCKED, action=Action.BLOCK, rule="told", error=lack)


@pytest.mark.parametrize("on_failure", OnFailure)
def test_a_worker_that_dies_or_a_fault_of_ours_lets_nothing_through(on_failure: OnFailure) -> None:
    for begin in (staffed, handed):
        play = begin(stage(on_failure=on_failure))
        play >> Faulted("KeyError") << Report("gate_failed", on_failure, "KeyError")
        ended(play, Reset(), Outcome.BLOCKED, action=Action.BLOCK, error="gate_failed")
    play = handed(stage(on_failure=on_failure))
    play >> WorkerDied()
    ended(play, Reset(), Outcome.BLOCKED, action=Action.BLOCK, error="worker_died")


def test_nobody_learns_to_let_it_pass_from_refusals_of_our_certificate() -> None:
    learned = Learned()
    for _ in range(9):
        on = stage(Action.DECRYPT, learned=learned)
        play = handed(on)
        play >> said(outcome="client_rejected", tls=TlsFacts(client=TlsClientFacts(refusal=Refusal.ALERT)))
        seen = ended(play, Close(), Outcome.BLOCKED)
        assert seen.tls.client.refusal == Refusal.ALERT
    assert len(learned) == 0


def test_a_lying_worker_teaches_no_address_and_gets_no_upgrade() -> None:
    on = stage()
    play = handed(on)
    play >> said(tls=TlsFacts(client=TlsClientFacts(), server=TlsServerFacts(verified=True)))
    ended(play, Close(), Outcome.BLOCKED)
    assert on.names.others("a.test", OTHER, Action.BLOCK) == ()
    play = handed(stage())
    play >> WorkerUpgrades(Upgrading(flow="f", bytes_sent=1, bytes_received=1))
    ended(play, Reset(), Outcome.BLOCKED, action=Action.BLOCK, error="foreign_upgrade")


EVENTS = [
    OwnerKnown(CURL), FirstBytes(TLS), FirstBytes(HTTP), FirstBytes(b"", eof=True), ClientGone(), Deadline(),
    Dialled(REMOTE), DialFailed(DialFailure.REFUSED), ServerSpoke(b"220 x\r\n"), ServerGone(), Staffed(1), Unstaffed(),
    said(), WorkerDied(), ClientLeft(1), RelayEnded(Ending.ORDERLY, 0, 0), LongLived(0, 0), Proved(True), Faulted("x"),
    Cut("switched off"), WorkerUpgrades(Upgrading(flow="f", bytes_sent=1, bytes_received=1)),
]  # fmt: skip


@given(st.lists(st.sampled_from(EVENTS), max_size=10), st.sampled_from(OnFailure))
def test_in_whatever_order_things_happen_nothing_is_carried_once_it_is_to_be_blocked(
    events: list[Any], on_failure: OnFailure
) -> None:
    on = stage(on_failure=on_failure)
    on.flow.told(Accepted(CLIENT, GATE, ORIGIN, 0.0), 0.0)
    is_blocked = False
    for event in events:
        commands = on.flow.told(event, 1.0)
        is_blocked = is_blocked or on.flow.state in (State.STAFF, State.HANDED)  # which nothing else leads to here
        if is_blocked:
            assert not any(isinstance(command, Relay | Dial | TakeBack) for command in commands)
    assert on.flow.state not in (State.STAFF, State.HANDED) or on.flow.about.is_blocked
    Playbook.plays.clear()
