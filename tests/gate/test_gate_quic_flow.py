"""One flow of QUIC: a table of what comes and what becomes of it. Real hellos of aioquic and of browsers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import quic_packets
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import encode_quic_retry
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from quic_packets import crypto

from mitmsec.audit.event import ConnectionSeen, FlowHanded, NamedBy, Outcome
from mitmsec.core.address_names import Agreement
from mitmsec.core.clienthello import NeedMore, parse_message
from mitmsec.core.messages import FlowEnded, Plaintext, TlsClientFacts, TlsFacts, TlsServerFacts
from mitmsec.core.model import Action, Endpoint, OnFailure, Process, UnprovenName
from mitmsec.core.policy import Policy
from mitmsec.core.quic_answers import SMALLEST_BYTES
from mitmsec.core.quic_packets import client_keys, initials, opened
from mitmsec.core.rules import Application, Rule
from mitmsec.core.sniff import Protocol
from mitmsec.gate.learned import Learned
from mitmsec.gate.quic_decrypting import Decrypting
from mitmsec.gate.quic_flow import (
    CONNECTIONS_LIMIT,
    HELD_LIMIT,
    HELD_LIMIT_BYTES,
    LONG_LIVED_S,
    REFUSALS_LIMIT,
    QuicFlow,
)
from mitmsec.gate.quic_signals import Answer, Command, Deliver, Forward, Hand, LetGo, Record, Report, Staff, State
from mitmsec.gate.signals import Origin, OwnerKnown
from mitmsec.gate.terms import Terms
from mitmsec_certs.packet_cipher import Aes128

CIPHER = Aes128()
REMOTE = Endpoint(address="203.0.113.10", port=443)
CLIENT = Endpoint(address="127.0.0.1", port=40000)
CURL = Process(pid=7, exe="/usr/bin/curl", user="0")
NO_BANK = Policy(rules=(Rule(name="no bank", action=Action.BLOCK, host=("bank.test",)),))
LATER = b"\x40 a packet of a later stage"
SERVER = ("192.0.2.1", 443)


def hello(name: str | None = "origin.test", version: int = quic_packets.V1) -> list[bytes]:
    """The first datagrams of a client."""
    configuration = QuicConfiguration(alpn_protocols=["h3"], original_version=version, server_name=name)
    configuration.supported_versions = [version]
    one = QuicConnection(configuration=configuration)
    one.connect(SERVER, now=0.0)
    return [datagram for datagram, _ in one.datagrams_to_send(now=0.0)]


def initial(frames: bytes, number: int = 0, **more: bytes) -> bytes:
    """A datagram with it, as large as one has to be."""
    return quic_packets.initial(frames, number, **more).ljust(SMALLEST_BYTES, b"\0")  # type: ignore[arg-type]


def id_of(datagram: bytes) -> bytes:
    return next(initials(datagram)).destination


def frames_of(datagram: bytes) -> bytes:
    """What the first packet of a connection says."""
    first = next(initials(datagram))
    packet = opened(first, client_keys(quic_packets.V1, first.destination), CIPHER)
    assert packet is not None
    return packet.frames


def flow_of(
    policy: Policy = NO_BANK,
    on_failure: OnFailure = OnFailure.OPEN,
    *,
    owner: Process | None = CURL,
    resolved: tuple[str, ...] | None = None,
    remote: Endpoint = REMOTE,
) -> QuicFlow:
    origin = Origin(remote=remote, pid=7, uid=0, comm="curl", source="10.0.0.5")
    terms = Terms(on_failure=on_failure, policy="fingerprint")
    made = QuicFlow("flow", origin, CLIENT, policy, terms, CIPHER, now_s=0.0, at_s=0.0, resolved=resolved)
    if owner is not None:
        assert made.owned(OwnerKnown(owner)) == []
    return made


def told(flow: QuicFlow, *datagrams: bytes) -> list[Command]:
    return [command for one in datagrams for command in flow.client_sent(one, 1.0)]


def forwarded(commands: Sequence[Command]) -> list[bytes]:
    return [one.datagram for one in commands if isinstance(one, Forward)]


def recorded(commands: Sequence[Command]) -> ConnectionSeen:
    (seen,) = [one.seen for one in commands if isinstance(one, Record) and isinstance(one.seen, ConnectionSeen)]
    return seen


OF_QUIC = Policy(
    rules=(
        Rule(name="but here", action=Action.BYPASS, host=("origin.test",), protocol=(Protocol.QUIC, Protocol.TLS)),
        Rule(name="no quic", action=Action.BLOCK, protocol=(Protocol.QUIC,)),
        Rule(name="no tls", action=Action.BLOCK, protocol=(Protocol.TLS,)),
    )
)


def test_a_rule_about_quic_is_about_every_name_in_it_and_about_what_shows_none() -> None:
    assert forwarded(told(flow_of(OF_QUIC), *(first := hello()))) == first
    for name in ("bank.test", None):
        seen = recorded(told(flow_of(OF_QUIC), *hello(name)))
        assert (seen.action, seen.rule, seen.outcome) == (Action.BLOCK, "no quic", Outcome.BLOCKED)
    broken = told(flow_of(OF_QUIC), initial(crypto(0, b"no hello")))
    assert (recorded(broken).action, recorded(broken).outcome) == (Action.BLOCK, Outcome.MALFORMED)
    begun = flow_of(OF_QUIC)
    assert forwarded(told(begun, LATER)) == [LATER]  # what shows nothing is no QUIC yet
    assert recorded(told(begun, *hello("bank.test"))).rule == "no quic"


def test_a_rule_about_tls_is_none_about_quic() -> None:
    only_tls = Policy(rules=OF_QUIC.rules[2:])
    assert forwarded(told(flow_of(only_tls), *(first := hello()))) == first


def test_what_a_rule_does_not_block_is_held_until_its_hello_is_whole_and_passes_unread() -> None:
    flow, first = flow_of(), hello()
    assert forwarded(told(flow, *first)) == first
    assert told(flow, LATER) == [Forward(LATER)]
    flow.origin_sent(900, 2.0)
    seen = recorded(flow.ended(3.5))
    assert (seen.protocol, seen.host, seen.named_by) == ("quic", "origin.test", None)
    assert (seen.action, seen.rule, seen.outcome) == (Action.BYPASS, "defaults", Outcome.COMPLETED)
    assert seen.reason == 'no rule matched; [defaults] decide; QUIC passes unread, by quic = "bypass"'
    assert (seen.bytes_sent, seen.bytes_received) == (sum(map(len, first)) + len(LATER), 900)
    assert (seen.datagrams_sent, seen.datagrams_received, seen.duration_ms) == (len(first) + 1, 1, 3500)
    assert seen.local == Endpoint(address="10.0.0.5", port=40000)
    assert seen.tls is not None
    assert seen.tls.client is not None
    assert (seen.tls.client.sni, seen.policy) == ("origin.test", "fingerprint")
    assert flow.ended(4.0) == told(flow, LATER) == []


@pytest.mark.parametrize("version", [quic_packets.V1, quic_packets.V2])
def test_what_a_rule_blocks_is_told_so_and_never_reaches_its_origin(version: int) -> None:
    flow = flow_of()
    commands = told(flow, *hello("bank.test", version))
    assert forwarded(commands) == []
    seen = recorded(commands)
    assert (seen.action, seen.rule, seen.outcome, seen.bytes_sent) == (Action.BLOCK, "no bank", Outcome.BLOCKED, 0)
    assert any(isinstance(one, Answer) for one in commands)
    again = [command for _ in range(99) for command in told(flow, hello("bank.test", version)[0])]
    assert len(again) == REFUSALS_LIMIT - 1
    assert told(flow, LATER) == flow.ended(3.0) == []


@pytest.mark.parametrize("name", quic_packets.REAL)
def test_hellos_of_browsers_pass_and_are_refused_whole(name: str) -> None:
    datagrams = quic_packets.REAL[name]
    flow = flow_of()
    told(flow, *datagrams)
    seen = recorded(flow.ended(2.0))
    assert seen.host is not None
    refusing = flow_of(Policy(rules=(Rule(name="not this", action=Action.BLOCK, host=(seen.host,)),)))
    commands = told(refusing, *datagrams)
    assert forwarded(commands) == []
    assert recorded(commands).rule == "not this"


def test_nothing_passes_before_the_owner_is_known() -> None:
    flow, first = flow_of(owner=None), hello()
    assert told(flow, *first) == []
    assert forwarded(flow.owned(OwnerKnown(CURL))) == first
    assert flow.owned(OwnerKnown(CURL)) == []


def test_of_whom_nobody_selects_all_passes_and_nothing_is_kept() -> None:
    flow, first = flow_of(owner=None), hello("bank.test")
    told(flow, *first)
    assert forwarded(flow.owned(OwnerKnown(CURL, selected=False))) == first
    assert forwarded(told(flow, *hello("bank.test"))) != []
    assert flow.waited(99.0) == flow.ended(100.0) == []


@pytest.mark.parametrize("on_failure", OnFailure)
def test_an_owner_who_stays_unknown_or_unread_is_what_on_failure_says(on_failure: OnFailure) -> None:
    unknown, first = flow_of(on_failure=on_failure, owner=None), hello()
    told(unknown, *first)
    assert unknown.waited(1.0) == []
    asks = Policy(
        applications=(Application(name="a", sha256=("0" * 64,)),),
        rules=(Rule(name="r", action=Action.BLOCK, application=("a",)),),
    )
    whole, silent, odd = (flow_of(asks, on_failure) for _ in range(3))
    told(silent, first[0][:1200] if len(first) > 1 else initial(crypto(0, b"\x01\0")))
    cases = {
        "owner_unknown": [unknown.waited(2.5)],
        "owner_unread": [told(whole, *first), silent.waited(6.0), told(odd, LATER)],
        "recorder_gone": [flow_of(on_failure=on_failure).unrecorded()],
    }
    for what, ways in cases.items():
        for commands in ways:
            (report,) = [one for one in commands if isinstance(one, Report)]
            assert (report.what, report.failed) == (what, on_failure)
            is_refused = any(isinstance(one, Record) for one in commands)
            assert is_refused is (on_failure is OnFailure.CLOSED)


def test_the_same_host_may_begin_again_and_another_one_is_refused() -> None:
    """As after a Retry. The first packets of the other host are held, and go nowhere."""
    flow = flow_of()
    told(flow, *hello())
    again, other = hello(), hello("bank.test")
    assert forwarded(told(flow, *again)) == again
    assert forwarded(told(flow, *again)) == again
    commands = told(flow, *other)
    assert forwarded(commands) == []
    seen = recorded(commands)
    assert (seen.action, seen.host, seen.outcome) == (Action.BLOCK, "origin.test", Outcome.BLOCKED)
    assert flow.state is State.REFUSED


@pytest.mark.parametrize("before", [[LATER], hello()], ids=["no hello", "another host's hello"])
def test_another_host_that_comes_before_the_owner_is_known_is_refused_as_well(before: list[bytes]) -> None:
    """All of it was held together, and what passes is read one by one."""
    flow, other = flow_of(owner=None), hello("bank.test")
    assert told(flow, *before, *other, *other, LATER) == []
    commands = flow.owned(OwnerKnown(CURL))
    assert forwarded(commands) == before
    assert recorded(commands).action is Action.BLOCK
    assert any(isinstance(one, Answer) for one in commands)
    assert (flow.state, flow.held_bytes) == (State.REFUSED, 0)


def test_what_came_together_passes_whole_where_each_may_pass() -> None:
    flow = flow_of(owner=None)
    datagrams = [LATER, *hello(), *hello(), LATER]
    assert told(flow, *datagrams) == []
    assert forwarded(flow.owned(OwnerKnown(CURL))) == datagrams


def test_what_a_known_connection_says_later_is_read_and_passes() -> None:
    """Acknowledgements under the server's id, the same hello again after a Retry, a second hello, and an end."""
    flow, first = flow_of(), hello()
    told(flow, *first)
    known, frames = id_of(first[0]), frames_of(first[0])
    later = [
        initial(b"\x02\0\0\0\0", 1, to=b"theirs", keyed_by=known),
        initial(frames, 2, to=known),
        initial(frames, 0, to=b"retried", token=b"token"),
        initial(crypto(len(frames.rstrip(b"\0")), b"another key share"), 3, to=b"theirs", keyed_by=known),
        initial(b"\x1c\0\0\0", 4, to=b"theirs", keyed_by=known),
    ]
    assert forwarded(told(flow, *later)) == later


def test_a_real_client_passes_again_after_a_retry() -> None:
    client = QuicConnection(configuration=QuicConfiguration(alpn_protocols=["h3"], server_name="origin.test"))
    client.connect(SERVER, now=0.0)
    first = [datagram for datagram, _ in client.datagrams_to_send(now=0.0)]
    flow, sent = flow_of(), next(initials(first[0]))
    assert forwarded(told(flow, *first)) == first
    retry = encode_quic_retry(quic_packets.V1, b"retried", sent.source, sent.destination, b"token")
    client.receive_datagram(retry, SERVER, now=0.1)
    again = [datagram for datagram, _ in client.datagrams_to_send(now=0.1)]
    assert id_of(again[0]) == b"retried"
    assert forwarded(told(flow, *again)) == again


def test_another_hello_under_a_judged_connection_goes_nowhere() -> None:
    """Its server may not have seen the first one. Nor does one pass that cannot be read, by itself or with another."""
    flow, first = flow_of(), hello()
    told(flow, *first)
    known, other = id_of(first[0]), frames_of(hello("bank.test")[0])
    assert told(flow, initial(other, 1, to=known)) == []
    assert told(flow, initial(other, 1, to=b"theirs", keyed_by=known)) == []
    assert told(flow, initial(other, 1, to=known, keyed_by=b"nobody's")) == []
    said_again = quic_packets.initial(b"\x01", 1, to=known)
    assert told(flow, said_again + initial(other, 1, to=known, keyed_by=b"nobody's")) == []
    assert told(flow, initial(crypto(60_000, b"far"), 1, to=known)) == []
    greased = quic_packets.initial(other, 1, to=known, fixed_bit=0)  # RFC 9287
    assert told(flow, greased.ljust(SMALLEST_BYTES, b"\0")) == []
    assert forwarded(told(flow, *first)) == first


def test_an_initial_in_a_datagram_that_its_server_would_drop_is_dropped_here() -> None:
    """RFC 9000 §14.1. Else a small one could show an allowed host, for us alone."""
    flow, first = flow_of(), hello()
    known, other = id_of(first[0]), frames_of(hello("bank.test")[0])
    small = quic_packets.initial(frames_of(first[0]).rstrip(b"\0"), to=known)
    assert len(small) < SMALLEST_BYTES
    assert told(flow, small) == []
    assert (flow.state, flow.held_bytes) == (State.OPENING, 0)
    commands = told(flow, initial(other, 1, to=known))
    assert forwarded(commands) == []
    assert recorded(commands).rule == "no bank"
    passing = flow_of()
    told(passing, *first)
    assert told(passing, small) == []


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize(("client", "has"), [("firefox", True), ("chromium", True), ("curl", False)])
def test_rules_ask_whether_a_hello_has_an_encrypted_one_inside(client: str, has: bool, asked: bool) -> None:
    flow = flow_of(Policy(rules=(Rule(name="by ech", action=Action.BLOCK, ech=(asked,)),)))
    passed = forwarded(told(flow, *quic_packets.REAL[client]))
    assert bool(passed) is (has is not asked)


def test_the_same_host_in_another_hello_is_judged_by_what_that_shows() -> None:
    flow = flow_of(Policy(rules=(Rule(name="in the clear", action=Action.BLOCK, ech=(False,)),)))
    assert forwarded(told(flow, *quic_packets.REAL["chromium"])) == quic_packets.REAL["chromium"]
    commands = told(flow, *quic_packets.REAL["curl"])
    assert forwarded(commands) == []
    seen = recorded(commands)
    assert (seen.host, seen.rule, seen.action) == ("www.example.com", "in the clear", Action.BLOCK)


def test_what_is_kept_of_hellos_is_bounded() -> None:
    flow = flow_of()
    far = crypto(50_000, b"x")
    big = hello()[0]
    told(flow, initial(far, 1, to=id_of(big)), big)
    assert flow.state is State.PASSING
    assert recorded(told(flow, *hello())).action is Action.BLOCK


def test_a_flow_has_few_connections() -> None:
    flow = flow_of()
    for _ in range(CONNECTIONS_LIMIT):
        assert forwarded(told(flow, *hello()))
    assert forwarded(told(flow, *hello())) == []


def test_a_hello_that_begins_again_in_pieces_is_held_and_a_bad_one_dropped() -> None:
    flow = flow_of()
    told(flow, *hello())
    message = b"\x01" + (3000).to_bytes(3) + bytes(1000)
    assert told(flow, initial(crypto(0, message), to=b"new")) == []
    assert told(flow, initial(crypto(0, b"\x02" + message[1:]), 1, to=b"new")) == []  # told twice, differently
    assert told(flow, initial(b"\x1e", to=b"newer")) == []
    many = quic_packets.initial(crypto(0, message), to=b"one") + initial(crypto(0, message), to=b"other")
    assert told(flow, many) == []
    far = [initial(crypto(60_000, b"x"), number, to=bytes([number])) for number in range(4)]
    assert told(flow, *far) == []
    full = flow_of()
    told(full, *hello())
    for _ in range(HELD_LIMIT + 1):
        assert told(full, initial(crypto(0, message), to=b"new")) == []
    assert full.held_bytes <= HELD_LIMIT_BYTES


def test_what_is_no_quic_is_decided_without_a_name_and_judged_again_by_a_hello() -> None:
    flow = flow_of()
    assert told(flow, LATER) == [Forward(LATER)]
    commands = told(flow, *hello("bank.test"))
    assert forwarded(commands) == []
    assert recorded(commands).rule == "no bank"
    named = flow_of()
    told(named, LATER)
    first = hello()
    assert forwarded(told(named, *first)) == first
    assert recorded(named.ended(2.0)).host == "origin.test"
    blocked = flow_of(Policy(action=Action.BLOCK))
    assert forwarded(told(blocked, LATER)) == []


def test_a_later_packet_that_has_overtaken_the_first_waits_for_it() -> None:
    flow, first = flow_of(), hello()
    piece = initial(crypto(0, b"\x01\0"), to=b"slow")
    told(flow, piece, LATER)
    assert flow.state is State.OPENING
    assert forwarded(told(flow_of(), *first, LATER)) == [*first, LATER]


def test_an_unreadable_hello_is_refused_where_a_name_could_decide_and_else_what_the_policy_says() -> None:
    bad = initial(b"\x1e")
    seen = recorded(told(flow_of(), bad))
    assert (seen.action, seen.outcome, seen.error) == (
        Action.BLOCK,
        Outcome.MALFORMED,
        "QUIC frame that no Initial may hold",
    )
    settled = flow_of(Policy())
    assert forwarded(told(settled, bad)) == [bad]
    assert forwarded(told(settled, *hello())) != []
    assert recorded(told(flow_of(Policy(action=Action.BLOCK)), bad)).outcome is Outcome.BLOCKED
    late = flow_of()
    told(late, initial(crypto(0, b"\x01\0")))
    assert late.waited(4.0) == []
    assert recorded(late.waited(5.5)).error == "incomplete"


def test_what_a_program_left_unfinished_is_on_record() -> None:
    flow = flow_of()
    told(flow, initial(crypto(0, b"\x01\0")))
    seen = recorded(flow.ended(2.0))
    assert (seen.action, seen.outcome, seen.bytes_sent) == (Action.BLOCK, Outcome.CLIENT_CLOSED, 0)


def test_another_version_is_answered_with_one_that_can_be_read_whenever_it_comes() -> None:
    greased = bytes([0xC0]) + bytes.fromhex("1a2a3a4a") + b"\x04abcd" + b"\x02me" + bytes(1200)
    opening, passing = flow_of(), flow_of()
    told(passing, *hello())
    for flow in (opening, passing):
        (answer,) = told(flow, greased)
        assert isinstance(answer, Answer)
        assert told(flow, greased[:600]) == []
    first = hello()
    assert forwarded(told(opening, *first)) == first


def test_a_datagram_for_two_connections_is_dropped() -> None:
    both = quic_packets.initial(crypto(0, b"\x01\0"), to=b"one") + initial(crypto(0, b"\x01\0"), to=b"other")
    flow = flow_of()
    assert told(flow, both) == []
    assert flow.held_bytes == 0


def test_what_is_held_is_bounded() -> None:
    flow = flow_of()
    far = [initial(crypto(60_000, b"x"), to=bytes([number])) for number in range(HELD_LIMIT)]
    assert told(flow, *far) == []
    assert flow.held_bytes <= HELD_LIMIT_BYTES


UNPROVEN = Policy(
    rules=(Rule(name="private", action=Action.BYPASS, host=("origin.test",)),), unproven_name=UnprovenName.DECRYPT
)


@pytest.mark.parametrize(("resolved", "passes"), [(("origin.test",), True), (("other.test",), False), (None, True)])
def test_a_bypass_by_an_unproven_name_is_refused_for_it_cannot_be_decrypted(
    resolved: tuple[str, ...] | None, passes: bool
) -> None:
    flow = flow_of(UNPROVEN, resolved=resolved)
    assert bool(forwarded(told(flow, *hello()))) is passes


def test_names_from_dns_are_told_as_such() -> None:
    nameless = flow_of(Policy(), resolved=("origin.test", "other.test"))
    told(nameless, LATER)
    seen = recorded(nameless.ended(2.0))
    assert (seen.host, seen.named_by, seen.tls) == ("origin.test", NamedBy.DNS, None)
    named = flow_of(Policy(), resolved=("other.test",))
    told(named, *hello())
    client = recorded(named.ended(2.0)).tls
    assert client is not None
    assert client.client is not None
    assert client.client.name_agrees is Agreement.DISAGREE


def test_one_that_lives_long_is_told_once_while_it_lives() -> None:
    flow = flow_of()
    told(flow, *hello())
    assert flow.waited(LONG_LIVED_S - 1) == []
    assert recorded(flow.waited(LONG_LIVED_S)).outcome is Outcome.OPEN
    assert flow.waited(LONG_LIVED_S + 1) == []


@settings(deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=1300) | st.sampled_from([hello("bank.test")[0], LATER]), max_size=20))
def test_whatever_a_program_sends_a_blocked_host_hears_no_first_packet(datagrams: list[bytes]) -> None:
    flow = flow_of()
    first = hello("bank.test")
    passed = forwarded(told(flow, *datagrams, *first))
    assert not {first[-1], hello("bank.test")[0]} & set(passed)
    assert flow.held_bytes <= HELD_LIMIT_BYTES


# --- decrypted --------------------------------------------------------------------------------------------------------
SAID = FlowEnded(flow="flow", bytes_sent=1, bytes_received=1, outcome="completed", was_heard=True)


class Health:
    """All are there."""

    off, recording, signing = False, True, True


def decrypting_flow(
    policy: Policy = NO_BANK, memory: Decrypting | None = None, *, owner: Process | None = CURL, **more: Any
) -> QuicFlow:
    origin = Origin(remote=REMOTE, pid=7, uid=0, comm="curl", source="10.0.0.5")
    terms = Terms(on_failure=OnFailure.OPEN, policy="fingerprint", decrypts_quic=True)
    memory = memory or Decrypting(Health(), Learned())
    made = QuicFlow("flow", origin, CLIENT, policy, terms, CIPHER, now_s=0.0, at_s=0.0, decrypting=memory, **more)
    if owner is not None:
        assert made.owned(OwnerKnown(owner)) == []
    return made


def handed(flow: QuicFlow, first: Sequence[bytes]) -> list[Command]:
    """What it orders when it is handed over."""
    assert told(flow, *first) == [Staff()]
    return list(flow.staffed(3))


def test_what_is_to_be_decrypted_goes_to_a_worker_with_all_that_was_held() -> None:
    flow, first = decrypting_flow(), hello()
    record, hand, *rest = handed(flow, first)
    assert isinstance(record, Record)
    assert record.seen == FlowHanded(
        flow="flow",
        process=CURL,
        worker=3,
        host="origin.test",
        local=Endpoint(address="10.0.0.5", port=40000),
        remote=REMOTE,
    )
    assert isinstance(hand, Hand)
    assert (hand.worker, hand.order.kind, hand.order.name) == (3, Plaintext.QUIC, "origin.test")
    assert parse_message(hand.order.hello) != NeedMore()
    assert rest == [Deliver(datagram) for datagram in first]
    assert told(flow, LATER) == [Deliver(LATER)]
    flow.origin_sent(900, 2.0)
    server = TlsServerFacts(verified=True, alpn="h3", error="x" * 999)
    ended = replace(SAID, tls=TlsFacts(client=TlsClientFacts(version="TLSv1.3", sni="a lie"), server=server))
    commands = flow.worker_said(ended, 3.0)
    assert commands[1:] == [LetGo()]
    seen = recorded(commands)
    assert (seen.action, seen.rule, seen.outcome, seen.duration_ms) == (
        Action.DECRYPT, "defaults", Outcome.COMPLETED, 3000,
    )  # fmt: skip
    assert seen.reason == "no rule matched; [defaults] decide"
    assert (seen.bytes_sent, seen.bytes_received) == (sum(map(len, first)) + len(LATER), 900)
    assert seen.tls is not None
    assert seen.tls.client is not None
    assert seen.tls.server is not None
    assert (seen.tls.client.version, seen.tls.client.sni) == ("TLSv1.3", "origin.test")
    assert seen.tls.client.ja4 is not None
    assert (seen.tls.server.alpn, len(seen.tls.server.error or "")) == ("h3", 256)
    assert flow.ended(4.0) == []


@pytest.mark.parametrize(
    ("action", "kind"), [(Action.BLOCK, Answer), (Action.BYPASS, Forward), (Action.CAPTURE, Forward)]
)
def test_beside_it_the_other_actions_are_what_they_were(action: Action, kind: type) -> None:
    policy = Policy(rules=(Rule(name="this", action=action, host=("origin.test",)),))
    commands = told(decrypting_flow(policy), *hello())
    assert kind in {type(command) for command in commands}
    assert not {Staff, Hand, Deliver} & {type(command) for command in commands}


def test_what_no_worker_can_have_is_refused_so_that_its_program_uses_tcp() -> None:
    flow = decrypting_flow()
    assert told(flow, *hello()) == [Staff()]
    commands = flow.unstaffed("no worker is there")
    seen = recorded(commands)
    assert (seen.action, seen.outcome) == (Action.BLOCK, Outcome.BLOCKED)
    assert seen.reason.endswith("over QUIC it is not: no worker is there, so the program is to fall back to TCP")
    assert any(isinstance(command, Answer) for command in commands)
    assert told(flow, LATER) == list(flow.staffed(3)) == list(flow.unstaffed("")) == []


def test_what_could_not_be_handed_over_is_refused_too() -> None:
    flow = decrypting_flow()
    handed(flow, hello())
    commands = flow.unstaffed("no descriptor is left")
    assert (commands[0], recorded(commands).action) == (LetGo(), Action.BLOCK)
    assert any(isinstance(command, Answer) for command in commands)


def test_who_names_no_host_or_is_no_http3_is_refused() -> None:
    for first in (hello(None), [LATER], other_alpn()):
        commands = told(decrypting_flow(Policy()), *first)
        assert forwarded(commands) == []
        assert recorded(commands).action is Action.BLOCK


def other_alpn() -> list[bytes]:
    one = QuicConnection(configuration=QuicConfiguration(alpn_protocols=["doq"], server_name="origin.test"))
    one.connect(SERVER, now=0.0)
    return [datagram for datagram, _ in one.datagrams_to_send(now=0.0)]


def test_a_hello_that_nobody_can_read_is_refused_where_all_is_decrypted() -> None:
    flow = decrypting_flow(Policy())
    told(flow, initial(b"\xff"))
    commands = list(flow.waited(9.0))
    assert forwarded(commands) == []
    assert flow.state is State.REFUSED


def test_a_second_connection_on_a_flow_that_a_worker_has_is_refused_and_the_first_goes_on() -> None:
    flow, first = decrypting_flow(), hello()
    handed(flow, first)
    for name in ("origin.test", "bank.test"):
        commands = told(flow, hello(name)[0])
        assert [type(command) for command in commands] == [Answer]
    assert told(flow, first[0]) == [Deliver(first[0])]
    assert told(flow, LATER) == [Deliver(LATER)]


def test_another_hello_that_was_held_with_the_first_is_no_workers() -> None:
    flow, first, other = decrypting_flow(owner=None), hello(), hello("bank.test")
    told(flow, *first, *other)
    assert flow.owned(OwnerKnown(CURL)) == [Staff()]
    commands = list(flow.staffed(3))
    assert [command.datagram for command in commands if isinstance(command, Deliver)] == first


@pytest.mark.parametrize("has_answered", [True, False])
def test_a_worker_that_ends_or_dies_ends_the_flow_and_who_has_heard_nothing_is_told_to_use_tcp(
    has_answered: bool,
) -> None:
    for why, outcome in (("worker_died", Outcome.FAULT), ("switched off", Outcome.CUT)):
        flow, first = decrypting_flow(), hello()
        handed(flow, first)
        if has_answered:
            flow.origin_sent(1200, 1.0)
        commands = flow.cut(why, outcome, 2.0)
        seen = recorded(commands)
        assert (seen.action, seen.outcome, seen.error) == (Action.DECRYPT, outcome, why)
        assert any(isinstance(command, Answer) for command in commands) is not has_answered
        assert flow.cut(why, outcome, 3.0) == flow.worker_said(SAID, 3.0) == told(flow, LATER) == []


def test_what_a_worker_says_is_held_to_what_an_end_can_be() -> None:
    flow = decrypting_flow()
    handed(flow, hello())
    seen = recorded(flow.worker_said(replace(SAID, outcome="stranger", error="e" * 999), 1.0))
    assert (seen.outcome, len(seen.error)) == (Outcome.FAULT, 256)


def test_a_program_that_goes_while_a_worker_has_its_flow_is_on_record() -> None:
    flow = decrypting_flow()
    handed(flow, hello())
    assert recorded(flow.waited(LONG_LIVED_S + 1)).outcome is Outcome.OPEN
    commands = flow.ended(20.0)
    assert (recorded(commands).action, commands[-1]) == (Action.DECRYPT, LetGo())


def test_switched_off_what_would_be_decrypted_passes_unread() -> None:
    class Off(Health):
        off = True

    flow, first = decrypting_flow(memory=Decrypting(Off(), Learned())), hello()
    assert forwarded(told(flow, *first)) == first
    seen = recorded(flow.ended(1.0))
    assert seen.action is Action.BYPASS
    assert seen.reason.startswith("mitmsec is switched off; else decrypted: ")


def test_a_bypass_by_an_unproven_name_is_decrypted_where_that_can_be() -> None:
    policy = Policy(
        action=Action.BYPASS, unproven_name=UnprovenName.DECRYPT,
        rules=(Rule(name="let pass", action=Action.BYPASS, host=("origin.test",)),),
    )  # fmt: skip
    flow = decrypting_flow(policy, resolved=("other.test",))
    assert told(flow, *hello()) == [Staff()]


def test_one_that_passes_already_is_not_decrypted_from_then_on() -> None:
    """Another hello for the same host, of which the policy says otherwise."""
    first, again = hello(), hello()
    fingerprint = recorded([*told(flow := flow_of(), *again), *flow.ended(1.0)]).tls
    assert fingerprint is not None
    assert fingerprint.client is not None
    policy = Policy(action=Action.DECRYPT, rules=(Rule(name="ours", action=Action.BYPASS, ja4=("q13d*",)),))
    passing = decrypting_flow(policy)
    assert forwarded(told(passing, *first)) == first
    passing._policy = Policy()
    commands = told(passing, *again)
    assert forwarded(commands) == []
    assert "its flow passes unread already" in recorded(commands).reason
