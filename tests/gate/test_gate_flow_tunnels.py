"""A tunnel through a proxy, as plays: what is spoken in there is decided as any flow, whoever speaks first."""

from __future__ import annotations

import pytest
from gate_stage import HTTP, NEVER, REMOTE, SSH, TLS, Stage, ended
from hellos import REAL
from playbook import Playbook

from mitmsec.audit.event import Outcome
from mitmsec.core.messages import FlowEnded, Plaintext, TlsClientFacts, TlsFacts, TlsServerFacts, Upgrading
from mitmsec.core.model import Action, OnFailure, UnprovenName
from mitmsec.core.rules import Rule
from mitmsec.core.sniff import Protocol
from mitmsec.gate.signals import (
    Close,
    Deadline,
    Dial,
    Dialled,
    Ending,
    FirstBytes,
    Hand,
    Mint,
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
    TakeBack,
    WatchClient,
    WatchServer,
    WorkerSaid,
    WorkerUpgrades,
)

CONNECT = b"CONNECT %b:443 HTTP/1.1\r\nHost: %b:443\r\n\r\n"
TO_NAME, TO_ADDRESS = CONNECT % (b"b.test", b"b.test"), CONNECT % (b"198.51.100.7", b"198.51.100.7")
SOCKS, NAMELESS = b"\x05\x01\x00", REAL["python-address"]
OPENED = WorkerUpgrades(Upgrading(flow="f", bytes_sent=30, bytes_received=70))


def handed(stage: Stage, asks: bytes = TO_NAME) -> Playbook:
    """A worker relays what is said to the proxy."""
    stage.connected() >> FirstBytes(asks) << NEVER << Staff()
    stage.play >> Staffed(3) << NEVER << Record << Hand
    order = stage.play.last.order
    protocol = Protocol.SOCKS if asks is SOCKS else Protocol.HTTP_PROXY
    assert (order.kind, order.protocol) == (Plaintext.DIALOGUE, protocol)
    return stage.play << WatchClient()


def opened(stage: Stage, asks: bytes = TO_NAME) -> Playbook:
    """There is a tunnel."""
    handed(stage, asks) >> OPENED << SetDeadline(None) << TakeBack() << Peek(1) << WatchServer()
    return stage.play


def waiting(stage: Stage, asks: bytes = SOCKS) -> Playbook:
    """The same where the name decides."""
    play = stage.waiting() >> FirstBytes(asks) << NEVER
    play << Dial((REMOTE,)) >> Dialled(REMOTE) << Staff()
    play >> Staffed(3) << NEVER << Record << Hand << WatchClient()
    return play >> OPENED << SetDeadline(None) << TakeBack() << Peek(1) << WatchServer()


@pytest.mark.parametrize("asks", [TO_NAME, SOCKS], ids=["connect", "socks"])
def test_tls_in_a_tunnel_is_decrypted_under_the_name_in_its_hello(asks: bytes) -> None:
    stage = Stage()
    opened(stage, asks) >> FirstBytes(TLS) << NEVER << Staff(3)
    stage.play >> Staffed(3) << NEVER << Record << Mint("a.test") << Hand
    order = stage.play.last.order
    assert (order.kind, order.name, order.protocol, order.origin) == (Plaintext.TLS, "a.test", None, REMOTE)
    tls = TlsFacts(client=TlsClientFacts(version="TLSv1.3"), server=TlsServerFacts(verified=True))
    ends = FlowEnded(flow="f", bytes_sent=10, bytes_received=20, outcome="completed", tls=tls)
    stage.play << WatchClient() >> WorkerSaid(ends)
    through = "socks" if asks is SOCKS else "http-proxy"
    ended(
        stage.play, Close(), Outcome.COMPLETED, protocol="tls", through=through, host="a.test", action=Action.DECRYPT,
        remote=REMOTE, bytes_sent=40, bytes_received=90,
    )  # fmt: skip
    assert len(stage.names) == 0  # the proxy's address is nobody's but the proxy's


@pytest.mark.parametrize(("told", "port"), [(443, 443), (0, 0), (-1, 0), (65_536, 0)])
def test_a_worker_that_reads_what_comes_in_a_tunnel_hears_which_port_is_meant(told: int, port: int) -> None:
    stage = Stage()
    handed(stage, SOCKS) >> WorkerUpgrades(Upgrading(flow="f", bytes_sent=30, bytes_received=70, port=told))
    stage.play << SetDeadline(None) << TakeBack() << Peek(1) << WatchServer()
    stage.play >> FirstBytes(TLS) << NEVER << Staff(3)
    stage.play >> Staffed(3) << NEVER << Record << Mint("a.test") << Hand
    assert (stage.play.last.order.origin, stage.play.last.order.port) == (REMOTE, port)
    stage.play << WatchClient()


@pytest.mark.parametrize("action", [Action.BYPASS, Action.CAPTURE])
def test_tls_in_a_tunnel_that_its_name_bypasses_is_relayed_unread(action: Action) -> None:
    stage = Stage(host=action)
    waiting(stage) >> FirstBytes(TLS) << NEVER << Relay(action is Action.CAPTURE)
    stage.play >> RelayEnded(Ending.ORDERLY, 1, 2)
    ended(stage.play, Close(), Outcome.COMPLETED, action=action, rule="host", protocol="tls", bytes_sent=31)


def test_a_tunnel_to_a_name_that_is_let_pass_is_relayed_to_its_end() -> None:
    stage = Stage(host=Action.BYPASS)
    play = stage.waiting() >> FirstBytes(CONNECT % (b"a.test", b"a.test")) << NEVER << Dial((REMOTE,))
    assert play >> Dialled(REMOTE) << Relay(False)


def test_a_name_behind_a_proxy_is_confirmed_by_no_answer_of_dns() -> None:
    """Not even where the proxy itself has that name."""
    stage = Stage(host=Action.BYPASS, unproven_name=UnprovenName.BLOCK)
    stage.flow.about.resolved = ("a.test",)
    waiting(stage) >> FirstBytes(TLS)
    seen = ended(stage.play, Reset(), Outcome.BLOCKED, action=Action.BLOCK)
    assert seen.tls is not None
    assert seen.tls.client is not None
    assert seen.tls.client.name_agrees is None


def test_what_a_name_in_a_tunnel_blocks_is_reset_or_gets_a_page() -> None:
    for data, answer in ((TLS, Reset()), (HTTP, Page("host", "its name"))):
        stage = Stage(host=Action.BLOCK)
        waiting(stage) >> FirstBytes(data)
        ended(stage.play, answer, Outcome.BLOCKED, rule="host", host="a.test", through="socks")


def test_a_hello_without_a_name_is_for_whom_the_proxy_was_asked_for() -> None:
    for asks, host in ((TO_NAME, "b.test"), (TO_ADDRESS, "198.51.100.7")):
        stage = Stage()
        opened(stage, asks) >> FirstBytes(NAMELESS) << NEVER << Staff(3)
        assert stage.play >> Staffed(3) << NEVER << Record << Mint(host) << Hand << WatchClient()


@pytest.mark.parametrize("data", [NAMELESS, b"GET / HTTP/1.1\r\nHost: 198.51.100.7\r\n\r\n"], ids=["tls", "http"])
def test_who_names_nobody_in_a_tunnel_whose_end_was_not_seen_is_what_failures_are(data: bytes) -> None:
    stage = Stage(on_failure=OnFailure.OPEN)
    opened(stage, SOCKS) >> FirstBytes(data) << NEVER
    stage.play << Report("tunnel_unnamed", OnFailure.OPEN, "relayed undecrypted") << Relay(False)
    stage = Stage()
    opened(stage, SOCKS) >> FirstBytes(data) << Report("tunnel_unnamed", OnFailure.CLOSED)
    ended(stage.play, Reset(), Outcome.FAULT, error="tunnel_unnamed")


def test_plain_http_in_a_tunnel_is_read() -> None:
    stage = Stage()
    opened(stage) >> FirstBytes(HTTP) << NEVER << Staff(3)
    stage.play >> Staffed(3) << NEVER << Record << Hand
    assert (stage.play.last.order.kind, stage.play.last.order.name) == (Plaintext.HTTP, "a.test")
    stage.play << WatchClient()


def test_mail_in_a_tunnel_is_a_dialogue_and_may_go_on_under_tls() -> None:
    stage = Stage()
    opened(stage) >> ServerSpoke(b"220 mail.test ESMTP\r\n") << NEVER << Staff(3)
    stage.play >> Staffed(3) << NEVER << Record << Hand
    assert (stage.play.last.order.kind, stage.play.last.order.protocol) == (Plaintext.DIALOGUE, Protocol.SMTP)
    stage.play << WatchClient() >> OPENED << SetDeadline(30.0) << TakeBack() << Peek(1)
    stage.play >> FirstBytes(TLS) << NEVER << Staff(3)
    assert stage.play >> Staffed(3) << NEVER << Record << Mint("a.test") << Hand << WatchClient()
    assert (stage.flow.about.sent_before, stage.flow.about.through) == (60, Protocol.HTTP_PROXY)


def test_a_tunnel_may_lead_to_another_proxy() -> None:
    stage = Stage()
    opened(stage, SOCKS) >> FirstBytes(TO_NAME) << NEVER << Staff(3)
    stage.play >> Staffed(3) << NEVER << Record << Hand << WatchClient()
    stage.play >> OPENED << SetDeadline(None) << TakeBack() << Peek(1) << WatchServer()
    stage.play >> FirstBytes(NAMELESS) << NEVER << Staff(3)
    assert stage.play >> Staffed(3) << NEVER << Record << Mint("b.test") << Hand << WatchClient()


def test_what_nobody_knows_in_a_tunnel_is_relayed_as_everywhere() -> None:
    stage = Stage()
    opened(stage) >> FirstBytes(SSH) << NEVER << Relay(True)
    stage.play >> RelayEnded(Ending.ORDERLY, 1, 2)
    ended(stage.play, Close(), Outcome.COMPLETED, action=Action.CAPTURE, protocol="ssh", through="http-proxy")


def test_a_client_gains_nothing_by_being_slow_in_a_tunnel() -> None:
    """No clock runs until it has said something, as everywhere where the origin is connected."""
    stage = Stage(host=Action.BLOCK)
    waiting(stage) >> FirstBytes(TLS[:3]) << SetDeadline(5.0) << Peek >> FirstBytes(TLS)
    ended(stage.play, Reset(), Outcome.BLOCKED, rule="host", host="a.test")
    stage = Stage()
    opened(stage) >> FirstBytes(b"\x00") << SetDeadline(0.3) << Peek >> Deadline() << NEVER << Relay(True)


def test_a_proxy_that_opens_no_tunnel_or_has_gone_leaves_a_dialogue_that_was_captured() -> None:
    stage = Stage()
    handed(stage) >> WorkerSaid(FlowEnded(flow="f", bytes_sent=1, bytes_received=2, outcome="completed"))
    ended(stage.play, Close(), Outcome.COMPLETED, action=Action.CAPTURE, protocol="http-proxy", through="")
    stage = Stage()
    opened(stage, SOCKS) >> ServerGone()
    ended(stage.play, Reset(), Outcome.ORIGIN_RESET, action=Action.CAPTURE, protocol="socks", through="socks")


def test_a_rule_about_proxies_holds_for_the_way_and_not_for_what_is_spoken_there() -> None:
    rule = Rule(name="proxies", protocol=(Protocol.SOCKS,), action=Action.DECRYPT)
    stage = Stage(Action.BYPASS, more=(rule,))
    waiting(stage) >> FirstBytes(TLS) << NEVER << Relay(False)
    stage = Stage(Action.BYPASS, more=(Rule(name="no", protocol=(Protocol.SOCKS,), action=Action.BLOCK),))
    stage.waiting() >> FirstBytes(SOCKS)
    ended(stage.play, Reset(), Outcome.BLOCKED, rule="no", protocol="socks")
