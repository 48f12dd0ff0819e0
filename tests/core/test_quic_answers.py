"""What a QUIC client is told in place of its server, believed by a real client's library."""

from __future__ import annotations

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated
from hypothesis import given
from hypothesis import strategies as st
from quic_packets import V1, V2, initial

from mitmsec.core.quic_answers import connections, is_unreadable_version, refusal, version_negotiation
from mitmsec_certs.packet_cipher import Aes128

CIPHER = Aes128()
SERVER = ("192.0.2.1", 443)
PADDED = b"\x01".ljust(1200, b"\0")
GREASED = bytes([0xC0]) + bytes.fromhex("1a2a3a4a") + b"\x04abcd" + b"\x02me" + bytes(1200)


def client(version: int, *supported: int) -> QuicConnection:
    configuration = QuicConfiguration(alpn_protocols=["h3"], original_version=version, server_name="origin.test")
    configuration.supported_versions = [version, *supported]
    made = QuicConnection(configuration=configuration)
    made.connect(SERVER, now=0.0)
    return made


def sent(one: QuicConnection) -> bytes:
    return one.datagrams_to_send(now=0.0)[0][0]


@pytest.mark.parametrize("version", [V1, V2])
def test_a_client_that_is_refused_gives_up_at_once_and_knows_why(version: int) -> None:
    one = client(version)
    answer = refusal(sent(one), CIPHER)
    assert answer is not None
    one.receive_datagram(answer, SERVER, now=0.1)
    one.handle_timer(now=10.0)
    (ended,) = [event for event in iter(one.next_event, None) if isinstance(event, ConnectionTerminated)]
    assert ended.error_code == 0x131  # CRYPTO_ERROR with the alert access_denied


def test_a_client_of_another_version_is_told_of_one_that_can_be_read_and_takes_it() -> None:
    one = client(0x1A2A3A4A, V1)
    answer = version_negotiation(sent(one))
    assert answer is not None
    one.receive_datagram(answer, SERVER, now=0.1)
    assert refusal(sent(one), CIPHER) is not None  # what comes now is an Initial of version 1


def test_what_is_too_small_or_answers_itself_is_not_answered() -> None:
    assert refusal(initial(b"\x01"), CIPHER) is None
    assert refusal(bytes(1200), CIPHER) is None
    assert version_negotiation(GREASED[:1199]) is None
    assert version_negotiation(GREASED[:1] + bytes(4) + GREASED[5:]) is None
    assert version_negotiation(initial(PADDED)) is None
    assert version_negotiation(GREASED[:5] + b"\x15" + bytes(1300)) is None
    assert version_negotiation(GREASED[:5] + b"\x01a\x15" + bytes(1300)) is None
    assert version_negotiation(GREASED) == b"\xc0" + bytes(4) + b"\x02me" + b"\x04abcd" + bytes([0, 0, 0, 1])


def test_whom_a_datagram_is_sent_to_is_told() -> None:
    assert connections(initial(b"\x01", to=b"one") + initial(b"\x01", to=b"other")) == {b"one", b"other"}
    assert connections(b"\x40no handshake") == frozenset()


@given(st.binary(max_size=40), st.binary(max_size=1300))
def test_any_bytes_are_answered_with_fewer_or_not_at_all(head: bytes, rest: bytes) -> None:
    datagram = head + rest
    for answer in (refusal(datagram, CIPHER), version_negotiation(datagram)):
        assert answer is None or len(answer) < 120
    assert is_unreadable_version(datagram) in (True, False)
