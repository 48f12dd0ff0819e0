"""aioquic's connection with windows that have a size: two of them, back to back, without a socket."""

from __future__ import annotations

import trustme
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import StopSendingReceived, StreamDataReceived, StreamReset
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from mitmsec.engine.quic.connection import STREAM_WINDOW_BYTES, STREAMS_LIMIT, WINDOW_BYTES, Connection

PEER = ("", 0)
NAME = "www.origin.test"


class Two:
    """A client and a server; time passes as it is told."""

    def __init__(self) -> None:
        ca = trustme.CA()
        issued = ca.issue_cert(NAME)
        near = QuicConfiguration(is_client=True, alpn_protocols=["h3"], server_name=NAME)
        near.load_verify_locations(cadata=ca.cert_pem.bytes())
        far = QuicConfiguration(is_client=False, alpn_protocols=["h3"])
        far.certificate = x509.load_pem_x509_certificate(issued.cert_chain_pems[0].bytes())
        far.private_key = load_pem_private_key(issued.private_key_pem.bytes(), None)
        self.client = Connection(near)
        self.server = Connection(far, self.client.original_destination_connection_id)
        self.now_s = 0.0
        self.client.connect(PEER, self.now_s)
        self.carry()

    def carry(self, rounds: int = 40) -> None:
        for _ in range(rounds):
            self.now_s += 0.05
            for one, other in ((self.client, self.server), (self.server, self.client)):
                timer_s = one.get_timer() if one is self.client or one._network_paths else None
                if timer_s is not None and timer_s <= self.now_s:
                    one.handle_timer(self.now_s)
                for datagram, _ in one.datagrams_to_send(self.now_s) if one._network_paths else ():
                    other.receive_datagram(datagram, PEER, self.now_s)

    @staticmethod
    def heard(one: Connection, kind: type) -> list[object]:
        found = []
        while (event := one.next_event()) is not None:
            if isinstance(event, kind):
                found.append(event)
        return found

    def received(self, one: Connection) -> int:
        return sum(len(event.data) for event in self.heard(one, StreamDataReceived) if hasattr(event, "data"))


def test_a_stream_gets_so_much_beyond_what_was_read_and_no_more() -> None:
    two = Two()
    two.server.withholds = lambda stream_id: stream_id == 0
    two.client.say(0, bytes(4 * STREAM_WINDOW_BYTES), end_stream=True)
    two.client.say(4, bytes(2 * STREAM_WINDOW_BYTES), end_stream=True)
    two.carry(400)
    first, second = (two.client.backlog_bytes(stream_id) for stream_id in (0, 4))
    assert (first, second) == (3 * STREAM_WINDOW_BYTES, 0)
    assert two.client.held_bytes == first
    two.server.withholds = lambda stream_id: False
    two.carry(400)
    assert (two.client.held_bytes, two.received(two.server)) == (0, 6 * STREAM_WINDOW_BYTES)


def test_a_connection_gets_no_credit_while_the_other_side_is_full() -> None:
    two = Two()
    two.server.is_full = lambda: True
    for stream_id in range(0, 64, 4):
        two.client.say(stream_id, bytes(STREAM_WINDOW_BYTES // 2), end_stream=True)
    two.carry(400)
    assert two.received(two.server) == WINDOW_BYTES
    two.server.is_full = lambda: False
    two.carry(600)
    assert two.received(two.server) == 16 * STREAM_WINDOW_BYTES // 2 - WINDOW_BYTES


def test_a_peer_has_so_many_streams_open_and_gets_others_as_they_end() -> None:
    two = Two()
    for number in range(2 * STREAMS_LIMIT):
        two.client.say(4 * number, b"x", end_stream=True)
    two.carry()
    assert two.received(two.server) == STREAMS_LIMIT
    for number in range(STREAMS_LIMIT):
        two.server.say(4 * number, b"y", end_stream=True)
    two.carry(100)
    assert two.received(two.server) == STREAMS_LIMIT
    assert two.received(two.client) == STREAMS_LIMIT


def test_what_comes_for_a_stream_that_is_over_is_dropped() -> None:
    two = Two()
    two.client.say(0, b"asked", end_stream=True)
    two.client.say(0, b"more", end_stream=True)
    two.carry()
    two.server.break_off(0, 7)
    two.server.break_off(0, 8)
    two.server.say(0, b"late", end_stream=False)
    two.carry()
    assert [event.error_code for event in two.heard(two.client, StreamReset)] == [7]  # type: ignore[attr-defined]
    two.carry()
    two.server.say(0, b"later", end_stream=True)
    two.server.say(4, b"nobody has asked", end_stream=True)
    two.server.decline(0, 7)
    two.server.decline(4, 7)
    two.carry()
    assert two.heard(two.client, StopSendingReceived) == []
    assert two.received(two.client) == 0


def test_a_peer_is_told_to_send_no_more() -> None:
    two = Two()
    two.client.say(0, b"begun", end_stream=False)
    two.carry()
    two.server.decline(0, 9)
    two.carry()
    assert len(two.heard(two.client, StopSendingReceived)) == 1


def test_how_it_ends_is_known_at_once_and_from_whom() -> None:
    two = Two()
    assert two.client.cipher.startswith("TLS_")
    assert [one.subject for one in two.client.peer_chain]
    assert two.server.peer_chain == ()
    assert two.client.ending is None
    two.server.close(0x107, reason_phrase="enough")
    two.carry(1)
    two.carry(1)
    assert two.client.ending is not None
    assert (two.client.ending.error_code, two.client.is_ended_by_peer) == (0x107, True)
    assert two.server.is_ended_by_peer is False


def test_a_server_has_no_requests_of_its_own() -> None:
    two = Two()
    two.server.say(1, b"pushed", end_stream=True)
    two.carry()
    assert two.received(two.client) == 0
