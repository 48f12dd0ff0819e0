"""Delivery to a real syslog server behind TLS: verified, framed, and settled only by an end in order."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import trustme
from syslog_stage import House, Manner

from mitmsec.audit.export.syslog_lines import framed
from mitmsec.service.export_delivery import Undelivered
from mitmsec.service.export_syslog import Address, SyslogServer, Unusable, context

MESSAGES = [b"<13>1 - - - - - - message %d" % number for number in range(50)]
RECORDS = [framed(message) for message in MESSAGES]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    return House(tmp_path_factory.mktemp("collector"))


def server(house: House, port: int, *, client: Path | None = None, trusts_tcp: bool = False) -> SyslogServer:
    tls = context(house.roots.read_text(), client, None)
    return SyslogServer(Address(host="127.0.0.1", port=port), tls, trusts_tcp=trusts_tcp)


def deliver(sink: SyslogServer, records: list[bytes] = RECORDS) -> None:
    sink.take(records)
    sink.settle()


def test_messages_arrive_in_order_and_a_connection_is_made_when_there_are_some(house: House) -> None:
    with house.collector() as collector:
        sink = server(house, collector.port)
        sink.settle()
        assert collector.connections == 0
        for some in (RECORDS[:20], RECORDS[20:40]):
            sink.take(some)
        sink.settle()
        assert collector.messages == MESSAGES[:40]
        sink.take(RECORDS[40:])
        sink.settle()
        assert (collector.messages, collector.connections) == (MESSAGES, 2)


def test_a_collector_may_ask_who_sends(house: House) -> None:
    with house.collector(wants_client=True) as collector:
        sink = server(house, collector.port, client=house.client)
        deliver(sink)
        assert collector.messages == MESSAGES
        assert collector.peer
        nobody = server(house, collector.port)
        with pytest.raises(Undelivered, match=r"alert|reset|pipe"):
            deliver(nobody)
        assert collector.messages == MESSAGES


def test_a_collector_with_a_certificate_of_somebody_else_gets_nothing(house: House, tmp_path: Path) -> None:
    other = House(tmp_path)
    with other.collector() as collector:
        with pytest.raises(Undelivered, match=r"its certificate is not accepted: .*(issuer|self)"):
            server(house, collector.port).take(RECORDS)
        assert collector.messages == []
    with house.collector() as collector:
        tls = context(house.roots.read_text(), None, None)
        with pytest.raises(Undelivered, match=r"its certificate is not accepted: .*ostname"):
            SyslogServer(Address(host="localhost", port=collector.port), tls).take(RECORDS)


def test_where_nobody_listens_it_says_so(house: House) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(Undelivered, match=r"127\.0\.0\.1:\d+: Connection refused"):
            server(house, taken.getsockname()[1]).take(RECORDS)


@pytest.mark.parametrize("manner", [Manner.SILENT, Manner.RESETS, Manner.GOES_AWAY])
def test_an_end_that_is_not_in_order_settles_nothing(house: House, manner: Manner) -> None:
    with house.collector(manner, after_bytes=100) as collector:
        sink = server(house, collector.port)
        with pytest.raises(Undelivered):
            deliver(sink)
        deliver(sink)
        assert collector.messages[-len(MESSAGES) :] == MESSAGES


def test_a_collector_that_never_answers_can_be_trusted_by_how_its_tcp_ends(house: House) -> None:
    with house.collector(Manner.SILENT, Manner.SILENT) as collector:
        with pytest.raises(Undelivered, match="did not answer close_notify"):
            deliver(server(house, collector.port))
        sink = server(house, collector.port, trusts_tcp=True)
        deliver(sink)
    assert collector.messages == MESSAGES * 2


@pytest.mark.parametrize(
    ("manner", "why"), [(Manner.RESETS, "reset by peer"), (Manner.GOES_AWAY, "closed the connection")]
)
def test_an_end_before_ours_settles_nothing_by_tcp_either(house: House, manner: Manner, why: str) -> None:
    with house.collector(manner, after_bytes=100) as collector:
        sink = server(house, collector.port, trusts_tcp=True)
        sink.take(RECORDS)
        assert collector.ended.wait(20)
        with pytest.raises(Undelivered, match=why):
            sink.settle()
        assert collector.messages == []


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("syslog+tls://collector.example:7000", "collector.example:7000"),
        ("syslog+tls://collector.example", "collector.example:6514"),
        ("syslog+tls://[2001:db8::1]:6514/", "[2001:db8::1]:6514"),
    ],
)
def test_addresses(url: str, expected: str) -> None:
    assert str(Address.parse(url)) == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "syslog+tls://",
        "syslog://h:1",
        "syslog+tls://h:0",
        "syslog+tls://h:99999",
        "syslog+tls://u@h",
        "syslog+tls://h/x",
    ],
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ValueError):
        Address.parse(url)


def test_roots_and_certificates_that_cannot_be_used_are_named(house: House, tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="roots"):
        context("", None, None)
    with pytest.raises(Unusable, match=r"client\.pem cannot be used"):
        context(house.roots.read_text(), tmp_path / "client.pem", None)
    with pytest.raises(Unusable, match="cannot be used"):
        context(house.roots.read_text(), house.roots, None)
    encrypted = tmp_path / "encrypted.pem"
    encrypted.write_bytes(_encrypted())
    with pytest.raises(Unusable, match="its key is encrypted"):
        context(house.roots.read_text(), encrypted, None)


def _encrypted() -> bytes:
    from cryptography.hazmat.primitives import serialization

    issued = trustme.CA().issue_cert("sender.example")
    key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
    sealed = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    return sealed + issued.cert_chain_pems[0].bytes()
