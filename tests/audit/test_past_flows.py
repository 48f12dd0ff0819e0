"""From events to the flows that they tell of; an event that is none gives a reason and never a guess."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from audit_events import CURL, connection, draft, request
from msgspec.structs import replace

from mitmsec.audit.envelope import Fields, sealed
from mitmsec.audit.event import ConnectionSeen, NamedBy, Outcome
from mitmsec.audit.past_flows import NoFlow, past_connection
from mitmsec.core.messages import TlsClientFacts, TlsFacts
from mitmsec.core.model import Action, Direction, Endpoint, Fact, Transport
from mitmsec.core.past_flow import Verdict
from mitmsec.core.sniff import Protocol

TOLD_BY_DNS = replace(connection(), named_by=NamedBy.DNS)
UDP = replace(
    connection(), protocol="udp", tls=None, bytes_sent=None, bytes_received=None, datagrams_sent=1, datagrams_received=0
)


def event(seen: ConnectionSeen, **changed: Any) -> Fields:
    return {**sealed(draft(seen), 7)[0], **changed}


def test_an_event_gives_back_what_the_policy_was_asked_about() -> None:
    facts = TlsFacts(client=TlsClientFacts(sni="api.example.com", ja4="t13d", name_agrees="agree", offers=("h2",)))  # type: ignore[arg-type]
    seen = replace(connection(), tls=facts, policy="ab" * 32, duration_ms=1500)
    found = past_connection(event(seen))
    assert (found.flow.process, found.flow.local, found.flow.remote) == (CURL, seen.local, seen.remote)
    assert (found.flow.protocol, found.flow.name, found.flow.ja4) == (Protocol.TLS, "api.example.com", "t13d")
    assert (found.flow.ech, found.flow.shown.ech) == (False, False)
    encrypted = event(connection(), tls={"client": {"ech": True}})
    assert past_connection(encrypted).flow.shown.ech is True
    assert (found.flow.alpn, found.flow.unknown) == (("h2",), frozenset())
    assert (found.flow.proven, found.flow.transport, found.flow.direction) == (
        True, Transport.TCP, Direction.OUTBOUND,
    )  # fmt: skip
    assert found.recorded == Verdict(action=Action.DECRYPT, rule="defaults", reason="no rule matched")
    assert (found.policy, found.outcome) == ("ab" * 32, "completed")
    assert found.began == datetime(2026, 11, 3, 9, 59, 58, 500_000, tzinfo=UTC)
    assert past_connection(event(connection())).policy == ""


def test_a_name_that_the_origin_proved_is_proven_whatever_dns_said() -> None:
    for certified, expected in ((True, True), (False, False), (None, False)):
        client = TlsClientFacts(sni="api.example.com", ja4="t13d", name_certified=certified)
        seen = replace(connection(), tls=TlsFacts(client=client))
        assert past_connection(event(seen)).flow.proven is expected


def test_facts_that_only_windows_knows_come_back() -> None:
    host = replace(CURL, services=("Dnscache",), unread=(Fact.PACKAGE,))
    assert past_connection(event(connection(process=host))).flow.process == host


def test_where_another_address_was_reached_the_policy_was_asked_about_the_first() -> None:
    asked = Endpoint.of("192.0.2.99", 443)
    assert past_connection(event(replace(connection(), asked=asked))).flow.remote == asked


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (TOLD_BY_DNS, (Transport.TCP, Protocol.TLS, None, False)),
        (replace(connection(), protocol="ssh", tls=None), (Transport.TCP, Protocol.SSH, "api.example.com", False)),
        (UDP, (Transport.UDP, None, None, False)),
        (replace(UDP, datagrams_sent=None, datagrams_received=None), (Transport.UDP, None, None, False)),
        (replace(UDP, protocol="dns"), (Transport.UDP, None, None, False)),
        (replace(connection(), protocol="quic", tls=None), (Transport.UDP, None, None, False)),
        (replace(connection(), protocol="quic"), (Transport.UDP, Protocol.QUIC, "api.example.com", False)),
        (
            replace(
                connection(outcome=Outcome.MALFORMED, action=Action.BLOCK),
                protocol="tcp",
                tls=None,
                host=None,
                bytes_sent=0,
                bytes_received=0,
            ),
            (Transport.TCP, None, None, True),
        ),
        (connection(outcome=Outcome.MALFORMED), (Transport.TCP, Protocol.TLS, "api.example.com", False)),
    ],
)
def test_what_first_bytes_showed_is_told_by_protocol_and_host(
    seen: ConnectionSeen, expected: tuple[object, ...]
) -> None:
    flow = past_connection(event(seen)).flow
    assert (flow.transport, flow.protocol, flow.name, flow.is_malformed) == expected


def test_what_was_never_looked_at_is_unknown() -> None:
    came_in = replace(connection(), protocol="tcp", tls=None, host=None, direction=Direction.INBOUND)
    flow = past_connection(event(came_in, producer="supervisor")).flow
    assert (flow.protocol, flow.unknown) == (None, {"host", "protocol", "alpn", "ja4", "ech"})
    assert past_connection(event(came_in)).flow.unknown == frozenset()
    assert past_connection(event(came_in)).flow.protocol is Protocol.TCP
    silent = past_connection(event(replace(came_in, bytes_sent=0, bytes_received=0))).flow
    assert (silent.protocol, silent.unknown) == (None, {"protocol"})  # it may have ended before that was known
    captured = replace(came_in, bytes_sent=0, bytes_received=0, action=Action.CAPTURE)
    assert past_connection(event(captured)).flow.protocol is Protocol.TCP
    assert past_connection(event(connection())).flow.unknown == {"alpn"}
    assert past_connection(event(connection(), clipped=True)).flow.unknown == {"alpn", "application", "host"}
    assert past_connection(event(replace(came_in, protocol="http"))).flow.proven is None


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({**sealed(draft(request()), 1)[0]}, "it is of kind request"),
        (event(connection(outcome=Outcome.STRANGER)), "nobody had diverted it"),
        (event(connection(), action="teleport"), "ValueError"),
        (event(connection(), protocol="gopher"), "ValueError"),
        (event(connection(), remote=None), "TypeError"),
        (event(connection(), remote={"host": "x"}), "KeyError"),
        (event(connection(), tls=3), "AttributeError"),
        (event(connection(), process={"pid": "many"}), "ValidationError"),
        (event(connection(), time="yesterday"), "ValueError"),
        (event(connection(), duration_ms=10**400), "OverflowError"),
        (event(connection(), remote={"address": "192.0.2.1", "port": 443, "host": 5}), "ValidationError"),
        (event(connection(), tls={"client": {"ja4": 5}}), "ValidationError"),
        (event(connection(), tls={"client": {"offers": [5]}}), "ValidationError"),
    ],
)
def test_an_event_that_is_no_decision_says_why(told: Fields, why: str) -> None:
    with pytest.raises(NoFlow, match=why):
        past_connection(told)
