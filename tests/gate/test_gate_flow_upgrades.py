"""A dialogue that goes on under TLS, as plays: decided once without a name, once more by the name in its hello."""

from __future__ import annotations

from typing import Any

import pytest
from gate_stage import FLAWED, HALF, NEVER, REMOTE, TLS, Stage, ended
from hellos import REAL
from playbook import Playbook

from mitmsec.audit.event import Outcome
from mitmsec.core.messages import FlowEnded, Plaintext, TlsClientFacts, TlsFacts, TlsServerFacts, Upgrading
from mitmsec.core.model import Action, OnFailure
from mitmsec.core.rules import Rule
from mitmsec.core.sniff import UPGRADABLE, Protocol
from mitmsec.gate.flow import NO_HELLO, State
from mitmsec.gate.signals import (
    Close,
    Deadline,
    Dial,
    Dialled,
    Ending,
    Faulted,
    FirstBytes,
    Hand,
    Mint,
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
    TakeBack,
    WatchClient,
    WatchServer,
    WorkerDied,
    WorkerSaid,
    WorkerUpgrades,
)

GREETING = b"220 mail.test ESMTP\r\n"
UPGRADING = WorkerUpgrades(Upgrading(flow="f", bytes_sent=30, bytes_received=70))


def handed(stage: Stage, greeting: bytes = GREETING) -> Playbook:
    """A worker relays the dialogue."""
    stage.connected() >> ServerSpoke(greeting) << NEVER << Staff()
    stage.play >> Staffed(3) << NEVER << Record << Hand
    order = stage.play.last.order
    assert (order.kind, order.protocol, order.name) == (Plaintext.DIALOGUE, Protocol.SMTP, REMOTE.address)
    return stage.play << WatchClient()


def upgrading(stage: Stage) -> Playbook:
    """Both ends have agreed to TLS: the hello is awaited."""
    handed(stage) >> UPGRADING << SetDeadline(30.0) << TakeBack() << Peek(1)
    return stage.play


def _waiting(stage: Stage) -> Stage:
    """Where a name decides: nobody has asked for it until the hello in the upgrade is there."""
    play = stage.waiting() >> Deadline() << Dial((REMOTE,))
    play >> Dialled(REMOTE) << WatchServer()
    play >> ServerSpoke(GREETING) << NEVER << Staff()
    play >> Staffed(3) << NEVER << Record << Hand << WatchClient()
    play >> UPGRADING << SetDeadline(30.0) << TakeBack() << Peek(1)
    return stage


def said(**more: Any) -> WorkerSaid:
    return WorkerSaid(FlowEnded(flow="f", bytes_sent=10, bytes_received=20, outcome="completed", **more))


def test_a_dialogue_without_an_upgrade_is_on_record_as_captured() -> None:
    stage = Stage()
    handed(stage) >> said()
    ended(stage.play, Close(), Outcome.COMPLETED, protocol="smtp", action=Action.CAPTURE, bytes_sent=10, tls=None)


def test_an_upgrade_is_decided_by_the_name_in_its_hello_before_anything_is_minted() -> None:
    stage = Stage()
    upgrading(stage) >> FirstBytes(TLS) << NEVER << Staff(3)
    stage.play >> Staffed(3) << NEVER << Record
    assert stage.play.last.seen.host == "a.test"
    stage.play << Mint("a.test") << Hand
    assert (stage.play.last.order.kind, stage.play.last.order.protocol) == (Plaintext.TLS, None)
    stage.play << WatchClient()
    tls = TlsFacts(client=TlsClientFacts(version="TLSv1.3", sni="lie.test"), server=TlsServerFacts(verified=True))
    stage.play >> said(tls=tls, was_heard=True)
    seen = ended(
        stage.play, Close(), Outcome.COMPLETED, protocol="smtp", host="a.test", action=Action.DECRYPT, bytes_sent=40,
        bytes_received=90,
    )  # fmt: skip
    assert seen.tls is not None
    assert seen.tls.client is not None
    assert (seen.tls.client.sni, seen.tls.client.version) == ("a.test", "TLSv1.3")


def test_a_hello_without_a_name_is_what_the_policy_says_of_a_nameless_flow() -> None:
    stage = _waiting(Stage(host=Action.BLOCK))
    stage.play >> FirstBytes(REAL["python-address"]) << NEVER << Staff(3)
    assert stage.play >> Staffed(3) << NEVER << Record << Mint(REMOTE.address) << Hand << WatchClient()


@pytest.mark.parametrize("action", [Action.BYPASS, Action.CAPTURE])
def test_an_upgrade_that_its_name_bypasses_is_relayed_unread(action: Action) -> None:
    stage = _waiting(Stage(host=action))
    stage.play >> FirstBytes(TLS) << NEVER << Relay(action is Action.CAPTURE)
    stage.play >> RelayEnded(Ending.ORDERLY, 1, 2)
    seen = ended(
        stage.play, Close(), Outcome.COMPLETED, protocol="smtp", action=action, rule="host", bytes_sent=31,
        bytes_received=72,
    )  # fmt: skip
    assert seen.tls is not None
    assert seen.tls.client is not None
    assert seen.tls.client.sni == "a.test"


def test_an_upgrade_that_its_name_blocks_is_reset() -> None:
    stage = _waiting(Stage(host=Action.BLOCK))
    stage.play >> FirstBytes(TLS)
    ended(stage.play, Reset(), Outcome.BLOCKED, protocol="smtp", rule="host", host="a.test")


def test_a_rule_about_a_protocol_holds_for_its_upgrade_too() -> None:
    """What goes on under TLS is still what it was: no rule about TLS takes it, and the one that took it still does."""
    rule = Rule(name="protocol", protocol=(Protocol.SMTP,), action=Action.DECRYPT)
    stage = Stage(Action.BYPASS, more=(rule,))
    play = stage.waiting() >> Deadline() << Dial((REMOTE,))
    play >> Dialled(REMOTE) << WatchServer()
    play >> ServerSpoke(GREETING) << NEVER << Staff()
    play >> Staffed(3) << NEVER << Record << Hand << WatchClient()
    play >> UPGRADING << SetDeadline(30.0) << TakeBack() << Peek(1)
    play >> FirstBytes(TLS) << NEVER << Staff(3)
    assert stage.flow.about.decision is not None
    assert stage.flow.about.decision.rule == "protocol"


@pytest.mark.parametrize(("data", "error"), [(b"EHLO again\r\n", NO_HELLO), (b"\x16\x02", NO_HELLO), (FLAWED, "")])
def test_what_is_no_hello_after_both_agreed_to_tls_is_malformed(data: bytes, error: str) -> None:
    stage = Stage(on_failure=OnFailure.OPEN)
    upgrading(stage) >> FirstBytes(data)
    seen = ended(stage.play, Reset(), Outcome.MALFORMED, action=Action.BLOCK, protocol="smtp")
    assert seen.error == (error or seen.error)


def test_a_hello_in_an_upgrade_may_come_in_pieces_and_has_to_end() -> None:
    stage = Stage()
    upgrading(stage) >> FirstBytes(HALF) << SetDeadline(5.0) << Peek
    stage.play >> Deadline()
    ended(stage.play, Reset(), Outcome.MALFORMED, error="incomplete")


def test_a_client_that_agrees_to_tls_and_says_nothing_is_given_up() -> None:
    stage = Stage()
    upgrading(stage) >> Deadline()
    ended(stage.play, Reset(), Outcome.CLIENT_CLOSED, bytes_sent=30, action=Action.CAPTURE)
    stage = Stage()
    upgrading(stage) >> FirstBytes(b"", eof=True)
    ended(stage.play, Close(), Outcome.CLIENT_CLOSED, action=Action.CAPTURE)


def test_an_origin_that_has_gone_by_then_ends_the_flow() -> None:
    stage = Stage()
    upgrading(stage) >> ServerGone()
    ended(stage.play, Reset(), Outcome.ORIGIN_RESET, action=Action.CAPTURE)


@pytest.mark.parametrize(
    ("on_failure", "action"), [(OnFailure.OPEN, Action.BYPASS), (OnFailure.CLOSED, Action.DECRYPT)]
)
def test_an_upgrade_that_nobody_can_decrypt_is_what_failures_are(on_failure: OnFailure, action: Action) -> None:
    stage = Stage(on_failure=on_failure)
    upgrading(stage)
    stage.health.signing = False
    stage.play >> FirstBytes(TLS)
    if on_failure is OnFailure.OPEN:
        stage.play << NEVER << Report("signer_gone", OnFailure.OPEN, "relayed undecrypted") << Relay(False)
    else:
        stage.play << Report("signer_gone", OnFailure.CLOSED)
        ended(stage.play, Reset(), Outcome.FAULT, action=action)


def test_a_fault_of_ours_while_the_hello_is_awaited_lets_it_through_where_failures_open() -> None:
    stage = Stage(on_failure=OnFailure.OPEN)
    upgrading(stage) >> Faulted("KeyError") << Report("gate_failed", OnFailure.OPEN, "KeyError") << NEVER
    stage.play << Relay(False)
    stage.play >> RelayEnded(Ending.ORDERLY, 1, 2)
    ended(stage.play, Close(), Outcome.FAULT, action=Action.BYPASS, rule="on_failure", bytes_sent=31)


def test_a_dialogue_does_not_need_the_signer_until_it_goes_on_under_tls() -> None:
    stage = Stage()
    stage.health.signing = False
    assert handed(stage)


def test_an_upgrade_after_decrypting_was_switched_off_is_relayed() -> None:
    stage = Stage()
    upgrading(stage)
    stage.health.off = True
    assert stage.play >> FirstBytes(TLS) << NEVER << Relay(False)


def test_a_worker_that_dies_with_a_dialogue_takes_it_along() -> None:
    stage = Stage()
    handed(stage) >> WorkerDied()
    ended(stage.play, Reset(), Outcome.FAULT, error="worker_died")


def test_only_a_dialogue_goes_on_under_tls() -> None:
    """Whatever a worker says: once a flow is TLS, it is decided."""
    stage = Stage()
    stage.handed() >> UPGRADING
    ended(stage.play, Reset(), Outcome.FAULT, error="foreign_upgrade", action=Action.DECRYPT)
    stage = Stage()
    upgrading(stage) >> UPGRADING
    assert stage.flow.state is State.FIRST


def test_a_greeting_in_pieces_is_awaited() -> None:
    stage = Stage()
    stage.connected() >> ServerSpoke(GREETING[:4]) << SetDeadline(0.3) << WatchServer(5)
    stage.play >> ServerSpoke(GREETING[:9]) << WatchServer(10)
    assert stage.play >> ServerSpoke(GREETING) << NEVER << Staff()
    for last in (Deadline(), ServerSpoke(GREETING[:4])):
        stage = Stage()
        stage.connected() >> ServerSpoke(GREETING[:4]) << SetDeadline(0.3) << WatchServer(5)
        assert stage.play >> last << NEVER << Relay(True)


OPENINGS = {
    Protocol.FTP: ServerSpoke(b"220 FTP\r\n"),
    Protocol.IMAP: ServerSpoke(b"* OK ready\r\n"),
    Protocol.LDAP: FirstBytes(b"\x30\x0c\x02\x01\x01\x60\x07\x02\x01\x03\x04\x00\x80\x00"),
    Protocol.MYSQL: ServerSpoke(b"J\x00\x00\x00\x0a8.0.36\x00" + bytes(60)),
    Protocol.POP3: ServerSpoke(b"+OK ready\r\n"),
    Protocol.POSTGRESQL: FirstBytes(b"\x00\x00\x00\x08\x04\xd2\x16\x2f"),
    Protocol.SMTP: ServerSpoke(GREETING),
    Protocol.XMPP: FirstBytes(b"<?xml version='1.0'?><stream:stream to='a.test'>"),
}


@pytest.mark.parametrize("protocol", OPENINGS)
def test_each_dialogue_that_is_to_be_decrypted_is_handed_over_as_what_it_is(protocol: Protocol) -> None:
    assert OPENINGS.keys() == UPGRADABLE
    stage = Stage()
    stage.connected() >> OPENINGS[protocol] << NEVER << Staff()
    stage.play >> Staffed(3) << NEVER << Record << Hand
    assert (stage.play.last.order.kind, stage.play.last.order.protocol) == (Plaintext.DIALOGUE, protocol)
    assert stage.play << WatchClient()


@pytest.mark.parametrize("action", [Action.BYPASS, Action.CAPTURE])
@pytest.mark.parametrize("protocol", OPENINGS)
def test_each_dialogue_that_is_not_to_be_decrypted_is_relayed_to_its_end_upgrade_and_all(
    protocol: Protocol, action: Action
) -> None:
    stage = Stage(action)
    stage.connected() >> OPENINGS[protocol] << NEVER << Relay(action is Action.CAPTURE)
    stage.play >> RelayEnded(Ending.ORDERLY, 1, 2)
    ended(stage.play, Close(), Outcome.COMPLETED, protocol=protocol, action=action)


@pytest.mark.parametrize("protocol", OPENINGS)
def test_each_dialogue_can_be_refused(protocol: Protocol) -> None:
    stage = Stage(Action.BYPASS, more=(Rule(name="no", protocol=(protocol,), action=Action.BLOCK),))
    play = stage.waiting() >> Deadline() << Dial((REMOTE,))
    play >> Dialled(REMOTE) << WatchServer()
    play >> OPENINGS[protocol]
    ended(play, Reset(), Outcome.BLOCKED, protocol=protocol, rule="no")
