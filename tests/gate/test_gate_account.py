"""What is recorded about a flow."""

from __future__ import annotations

import msgspec
import pytest
from hellos import alpn, hello, server_name
from msgspec.structs import replace

from mitmsec.audit.event import ConnectionSeen, NamedBy, Outcome
from mitmsec.core import sniff
from mitmsec.core.messages import FlowEnded, Plaintext, TlsClientFacts, TlsFacts
from mitmsec.core.model import Action, Confidence, Decision, Direction, Endpoint, Process
from mitmsec.core.sniff import Protocol, Sniffed
from mitmsec.gate.account import DIAL_OUTCOMES, RELAY_OUTCOMES, Account
from mitmsec.gate.signals import Accepted, DialFailure, Ending, Origin

ENDED = FlowEnded(
    flow="f",
    bytes_sent=1,
    bytes_received=2,
    outcome="completed",
    tls=TlsFacts(client=TlsClientFacts(version="TLSv1.3", sni="forged.test")),
)


def account() -> Account:
    about = Account("f")
    about.decision = Decision(action=Action.DECRYPT, rule="defaults", reason="no rule matched")
    first = sniff.first_bytes(hello(server_name(b"a.test")))
    assert isinstance(first, Sniffed)
    about.first, about.protocol = first, first.protocol
    return about


def test_every_way_to_fail_and_to_end_has_an_outcome() -> None:
    assert set(DIAL_OUTCOMES) == set(DialFailure)
    assert set(RELAY_OUTCOMES) == set(Ending)


def test_what_was_done_stands_before_what_was_decided_and_an_error_before_what_was_malformed() -> None:
    about = account()
    about.done, about.malformed, about.began_s = Action.CAPTURE, "bad length", 5.0
    seen = about.seen(Outcome.MALFORMED, 4.0, sent=1, received=2)
    assert (seen.action, seen.error, seen.duration_ms) == (Action.CAPTURE, "bad length", 0)
    assert about.seen(Outcome.FAULT, 6.5, sent=1, received=2, error="mine").error == "mine"


def test_a_record_survives_the_wire() -> None:
    seen = account().seen(Outcome.COMPLETED, 1.0, sent=1, received=2)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(seen), type=ConnectionSeen) == seen


def test_what_a_hello_offers_by_alpn_is_on_record_unless_it_is_very_much() -> None:
    for names, offers in (((b"h2", b"http/1.1"), ("h2", "http/1.1")), ((), ()), ((b"x",) * 129, None)):
        about = account()
        about.first = sniff.first_bytes(hello(server_name(b"a.test"), *([alpn(*names)] if names else [])))  # type: ignore[assignment]
        assert about.hello_facts().offers == offers
    forged = about.facts_with(replace(ENDED, tls=TlsFacts(client=TlsClientFacts(offers=("forged",)))))
    assert forged is not None
    assert forged.client is not None
    assert forged.client.offers is None


def test_a_record_names_the_policy_under_which_the_flow_began() -> None:
    about = Account("f", "ab" * 32)
    about.decision = Decision(action=Action.BYPASS, rule="defaults", reason="no rule matched")
    assert about.seen(Outcome.COMPLETED, 1.0, sent=1, received=2).policy == "ab" * 32


def test_the_name_in_a_hello_is_held_against_the_names_of_its_address() -> None:
    for resolved, expected in ((("a.test",), "agree"), (("b.test",), "disagree"), ((), "unknown"), (None, None)):
        about = account()
        about.resolved = resolved
        seen = about.seen(Outcome.COMPLETED, 1.0, sent=1, received=2)
        assert seen.tls is not None
        assert seen.tls.client is not None
        assert (seen.tls.client.name_agrees, seen.host, seen.named_by) == (expected, "a.test", None)
        facts = about.facts_with(ENDED)
        assert facts is not None
        assert facts.client is not None
        assert facts.client.name_agrees == expected, "a worker has no say in it"


def test_a_flow_that_shows_no_name_has_the_one_that_dns_gave_its_address_last() -> None:
    about = account()
    about.first = Sniffed(protocol=Protocol.TCP)
    about.protocol = Protocol.TCP
    for resolved, host, by in (
        (("new.test", "old.test"), "new.test", NamedBy.DNS),
        ((), None, None),
        (None, None, None),
    ):
        about.resolved = resolved
        seen = about.seen(Outcome.COMPLETED, 1.0, sent=1, received=2)
        assert (seen.host, seen.named_by, seen.tls) == (host, by, None)


def test_a_hello_without_a_name_agrees_with_nothing() -> None:
    about = account()
    first = sniff.first_bytes(hello())
    assert isinstance(first, Sniffed)
    about.first, about.resolved = first, ("b.test",)
    seen = about.seen(Outcome.COMPLETED, 1.0, sent=1, received=2)
    assert seen.tls is not None
    assert seen.tls.client is not None
    assert (seen.host, seen.named_by, seen.tls.client.name_agrees) == ("b.test", NamedBy.DNS, None)


def test_a_worker_can_say_what_was_negotiated_and_not_what_was_offered() -> None:
    facts = account().facts_with(ENDED)
    assert facts is not None
    assert facts.client is not None
    assert (facts.client.version, facts.client.sni) == ("TLSv1.3", "a.test")


@pytest.mark.checklist("U33")
def test_an_encrypted_hello_is_on_record_under_its_public_name() -> None:
    about = account()
    for extensions, expected in (([(0xFE0D, b"anything")], True), ([], None)):
        first = sniff.first_bytes(hello(server_name(b"public.test"), *extensions))
        assert isinstance(first, Sniffed)
        about.first = first
        facts = about.facts_with(ENDED)
        assert facts is not None
        assert facts.client is not None
        assert (facts.client.sni, facts.client.ech) == ("public.test", expected)


def test_what_a_worker_says_of_the_key_exchange_is_kept_and_no_longer_than_a_text_may_be() -> None:
    said = TlsClientFacts(group="X25519MLKEM768", exceeds_server="c" * 999)
    facts = account().facts_with(msgspec.structs.replace(ENDED, tls=TlsFacts(client=said)))
    assert facts is not None
    assert facts.client is not None
    assert (facts.client.group, facts.client.exceeds_server) == ("X25519MLKEM768", "c" * 256)


def test_the_program_is_known_by_the_address_that_it_sees_as_its_own() -> None:
    about = Account("f")
    client, remote = Endpoint(address="127.0.0.1", port=5), Endpoint(address="192.0.2.1", port=443)
    origin = Origin(remote=remote, pid=8, uid=0, comm="curl", source="192.0.2.9")
    about.accepted(Accepted(client, client, origin), 1.0)
    assert (about.client, about.remote) == (Endpoint(address="192.0.2.9", port=5), remote)


def test_of_whom_the_kernel_recorded_nothing_nothing_is_said_until_the_supervisor_does() -> None:
    about = Account("f")
    client, remote = Endpoint(address="192.0.2.9", port=5), Endpoint(address="192.0.2.1", port=443)
    origin = Origin(remote=remote, pid=0, uid=-1, comm="", source=client.address, client=client)
    about.accepted(Accepted(client, remote, origin), 1.0)
    assert (about.client, about.process) == (client, Process(pid=0))


def test_what_is_not_tls_has_no_facts_of_tls() -> None:
    about = account()
    about.settled(Sniffed(protocol=Protocol.HTTP))
    assert about.facts_with(ENDED) is None
    assert Account("g").hello_facts() == TlsClientFacts()


KNOWN = Process(pid=7, started="2026-11-23T12:00:00Z", exe="/usr/bin/curl", user="root", confidence=Confidence.KERNEL)


def owner_of(process: Process) -> str:
    about = account()
    about.process = process
    assert about.decision is not None
    return about.hand_over(Plaintext.TLS, "a.test", about.decision).owner


@pytest.mark.checklist("U31")
def test_the_owner_of_a_hand_over_tells_processes_apart() -> None:
    """What is shared between flows (a TLS session with an origin) is shared by one process only, one program of it."""
    others = [
        msgspec.structs.replace(KNOWN, pid=8),
        msgspec.structs.replace(KNOWN, started="2026-11-23T12:00:01Z"),
        msgspec.structs.replace(KNOWN, exe="/usr/bin/wget"),
        msgspec.structs.replace(KNOWN, user="nobody"),
    ]
    assert len({owner_of(process) for process in (KNOWN, *others)}) == 5


@pytest.mark.checklist("U31")
def test_a_process_that_is_not_known_is_nobodys_owner() -> None:
    assert owner_of(msgspec.structs.replace(KNOWN, confidence=Confidence.INFERRED)) == ""
    assert owner_of(msgspec.structs.replace(KNOWN, started=None)) == ""


def test_tls_that_came_in_is_read_with_its_services_key_or_not_at_all() -> None:
    about = account()
    assert (about.plaintext, about.is_minted, about.service) == (Plaintext.TLS, True, "")
    about.direction = Direction.INBOUND
    assert (about.plaintext, about.is_minted) == (None, False)
    about.decision = Decision(action=Action.DECRYPT, rule="r", reason="", service="shop")
    assert (about.plaintext, about.is_minted, about.service) == (Plaintext.TLS, False, "shop")
    about.settled(Sniffed(protocol=Protocol.HTTP))
    about.decision = None
    assert (about.plaintext, about.service) == (Plaintext.HTTP, "")
