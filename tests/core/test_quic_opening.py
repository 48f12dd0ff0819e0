"""The hello that a QUIC connection begins with: real clients', in any pieces and order, and what is none."""

from __future__ import annotations

from random import Random

import hellos
import pytest
import quic_packets
from hypothesis import given
from hypothesis import strategies as st
from quic_packets import ID, REAL, V2, crypto, flight, initial

from mitmsec.core import quic_opening
from mitmsec.core.clienthello import ClientHello, Malformed, NeedMore
from mitmsec.core.quic_opening import MORE_BYTES, QuicOpening
from mitmsec.core.quic_packets import initials
from mitmsec_certs.packet_cipher import Aes128

MESSAGE = hellos.message(hellos.body([hellos.server_name(b"www.example.com"), hellos.alpn(b"h3")]))


def read(*datagrams: bytes) -> ClientHello | NeedMore | Malformed:
    opening = QuicOpening(Aes128())
    for datagram in datagrams:
        opening.fed(datagram)
    return opening.answer


def reason(*datagrams: bytes) -> str:
    answer = read(*datagrams)
    assert isinstance(answer, Malformed)
    return answer.reason


@pytest.mark.parametrize(
    ("client", "ja4", "ech"),
    [
        ("aioquic", "q13d0307h3_55b375c5d22e_1cecd519fee8", False),
        ("chromium", "q13d0311h3_55b375c5d22e_653d80c3fe9d", True),
        ("curl", "q13d0308h3_55b375c5d22e_1b7ced03430d", False),
        ("firefox", "q13d0314h3_55b375c5d22e_61e396c58b1f", True),
    ],
)
def test_real_clients_hellos_are_read(client: str, ja4: str, ech: bool) -> None:
    """Those of browsers take two datagrams each, and their pieces are shuffled."""
    answer = read(*REAL[client])
    assert isinstance(answer, ClientHello)
    assert (answer.sni, answer.alpn, answer.ja4, answer.ech) == ("www.example.com", ("h3",), ja4, ech)
    assert read(*reversed(REAL[client])) == answer
    assert read(*(one for one in REAL[client] for _ in range(2))) == answer
    assert isinstance(read(*REAL[client][:-1]), NeedMore)


@given(st.lists(st.integers(1, len(MESSAGE)), max_size=12), st.randoms(use_true_random=False), st.booleans())
def test_a_hello_in_any_pieces_and_order_is_read(cuts: list[int], random: Random, together: bool) -> None:
    datagrams = flight(MESSAGE, cuts)
    random.shuffle(datagrams)
    answer = read(b"".join(datagrams)) if together else read(*datagrams)
    assert isinstance(answer, ClientHello)
    assert (answer.sni, answer.alpn, answer.raw) == ("www.example.com", ("h3",), MESSAGE)
    assert isinstance(read(*datagrams[:-1]), NeedMore)


@given(st.lists(st.tuples(st.integers(0, len(MESSAGE)), st.integers(0, 40)), max_size=20))
def test_pieces_that_overlap_and_agree_are_one(pieces: list[tuple[int, int]]) -> None:
    frames = b"".join(crypto(at, MESSAGE[at : at + size]) for at, size in pieces)
    answer = read(initial(frames), initial(crypto(0, MESSAGE), 1))
    assert isinstance(answer, ClientHello)
    assert answer.raw == MESSAGE


def test_an_answer_is_final() -> None:
    (datagram,) = flight(MESSAGE, ())
    answer = read(datagram)
    assert read(datagram, b"\x40", bytes(9)) == answer
    opening = QuicOpening(Aes128())
    opening.fed(flight(MESSAGE, [40])[1])
    assert opening.held_bytes == len(MESSAGE)
    assert opening.fed(datagram) == answer
    assert opening.held_bytes == 0
    assert reason(b"\x40", datagram) == "no QUIC handshake"


def test_the_connection_ids_of_version_2_and_of_a_server_that_has_answered_are_followed() -> None:
    first, second = flight(MESSAGE, [40])
    moved = initial(crypto(40, MESSAGE[40:]), 1, to=b"theirs", keyed_by=ID)
    assert isinstance(read(first, moved), ClientHello)
    assert isinstance(read(moved), NeedMore)
    assert isinstance(read(initial(crypto(0, MESSAGE), version=V2)), ClientHello)
    assert isinstance(read(first, second[:-1] + bytes([second[-1] ^ 1])), NeedMore)


def test_a_client_begins_anew_after_a_retry() -> None:
    first, _ = flight(MESSAGE, [40])
    assert isinstance(read(first, initial(crypto(40, MESSAGE[40:]), 1, to=b"retried")), NeedMore)
    assert isinstance(read(first, initial(crypto(0, MESSAGE), 1, to=b"retried", token=b"token")), ClientHello)


def test_what_a_connection_says_after_its_hello_has_to_agree_with_it() -> None:
    opening = QuicOpening(Aes128())
    opening.fed(initial(crypto(0, MESSAGE[:40])))
    assert opening.begun is None
    opening.fed(initial(crypto(40, MESSAGE[40:]), 1))
    assert opening.begun is not None
    assert opening.begun.held_bytes == len(MESSAGE)

    def agrees(frames: bytes, to: bytes = ID, keyed_by: bytes | None = None, reserved: int = 0) -> bool | None:
        assert opening.begun is not None
        (one,) = initials(initial(frames, 2, to=to, keyed_by=keyed_by, reserved=reserved))
        return opening.begun.agrees(one)

    assert agrees(crypto(0, MESSAGE)) is agrees(crypto(9, MESSAGE[9:40]), b"theirs", ID) is True
    assert agrees(b"\x02\x05\0\0\0") is agrees(b"\x1c\0\0\0") is True
    assert agrees(crypto(0, MESSAGE), b"another") is None
    assert agrees(crypto(9, b"something else")) is agrees(b"\x1e\0\0\0") is agrees(b"\x01", reserved=1) is False
    again = len(MESSAGE) + MORE_BYTES
    assert agrees(crypto(len(MESSAGE), MESSAGE)) is True
    assert agrees(crypto(len(MESSAGE) + again - 1, b"ab")) is False
    assert opening.begun.held_bytes == 2 * len(MESSAGE)


OTHERS = {
    "name": [hellos.server_name(b"another.test"), hellos.alpn(b"h3")],
    "no name": [hellos.alpn(b"h3")],
    "protocol": [hellos.server_name(b"www.example.com"), hellos.alpn(b"doq")],
    "encrypted": [hellos.server_name(b"www.example.com"), hellos.alpn(b"h3"), (0xFE0D, b"\0")],
}


@pytest.mark.parametrize("second", [*OTHERS, "none"])
@pytest.mark.parametrize("cut", [3, 40])
def test_a_second_hello_for_something_else_goes_nowhere_however_often_it_is_sent(second: str, cut: int) -> None:
    """Servers that have asked for it (HelloRetryRequest) go by the second one's name."""
    other = hellos.message(hellos.body(OTHERS[second])) if second in OTHERS else b"\x0b" + MESSAGE[1:]
    opening = QuicOpening(Aes128())
    opening.fed(initial(crypto(0, MESSAGE)))
    assert opening.begun is not None
    pieces = [(len(MESSAGE), other[:cut]), (len(MESSAGE) + cut, other[cut:])]
    sent = [next(iter(initials(initial(crypto(*piece), 1 + at)))) for at, piece in enumerate(pieces)]
    first, *rest = [opening.begun.agrees(one) for one in (*sent, *sent)]
    assert first is (second in OTHERS)  # its name is not there yet
    assert rest == [False, False, False]


def test_a_second_hello_with_another_key_share_and_a_cookie_passes() -> None:
    more = [hellos.server_name(b"www.example.com"), hellos.alpn(b"h3"), (44, b"\0\2ab")]
    opening = QuicOpening(Aes128())
    opening.fed(initial(crypto(0, MESSAGE)))
    assert opening.begun is not None
    (one,) = initials(initial(crypto(len(MESSAGE), hellos.message(hellos.body(more))), 1))
    assert opening.begun.agrees(one) is True


def test_frames_of_an_initial_are_passed_over() -> None:
    acks = b"\x02\x05\x00\x01\x00\x00\x00" + b"\x03\x05\x00\x00\x00\x01\x02\x03"
    assert isinstance(read(initial(b"\0\0\x01" + acks + crypto(0, MESSAGE) + b"\0\x01")), ClientHello)


@pytest.mark.parametrize(
    ("frames", "why"),
    [
        (b"\x06\x00", "QUIC frame ends early"),
        (b"\x06\x00\x05abc", "QUIC frame ends early"),
        (b"\x06\x40", "QUIC frame ends early"),
        (b"\x01\x01\x01\x40", "QUIC frame that no Initial may hold"),
        (b"\x02\x05\x00\x09\x00", "QUIC frame ends early"),
        (b"\x03\x05\x00\x00\x00\x01\x02", "QUIC frame ends early"),
        (b"\x02\x05\x00\x00", "QUIC frame ends early"),
        (b"\x01\x01\x02\x05", "QUIC frame ends early"),
        (b"\x02\x05\x00\x41\x01\x00" + bytes(600), "over 256 ranges in a QUIC acknowledgement"),
        (b"\x01" * 4097, "over 4096 QUIC frames before a ClientHello"),
        (b"\x1c\0\0\0", "QUIC connection closed before its ClientHello"),
        (b"\x08\0\0\0", "QUIC frame that no Initial may hold"),
        (crypto(1 << 30, b"abc"), "hello over 64 KiB, or in more than 512 pieces"),
        (crypto(0, b"ab") * 513, "hello over 64 KiB, or in more than 512 pieces"),
        (crypto(0, b"\x02abc"), "handshake message 2 instead of a ClientHello"),
        (crypto(5, b"abc") + crypto(6, b"c"), "QUIC handshake bytes that are told twice, differently"),
        (crypto(0, hellos.message(hellos.body(version=0x0203))), "ClientHello of version 0x0203"),
    ],
)
def test_frames_that_no_client_sends_are_malformed(frames: bytes, why: str) -> None:
    assert len(frames) >= 4 or frames[0] == 6
    assert reason(_unpadded(frames)) == why


def _unpadded(frames: bytes) -> bytes:
    """Padding would end a frame that is to end early: a PING stands before it instead."""
    return initial(b"\x01" * max(4 - len(frames), 0) + frames)


def test_reserved_bits_are_malformed() -> None:
    assert reason(initial(crypto(0, MESSAGE), reserved=2)) == "QUIC packet with reserved bits"


def test_packets_and_connections_are_bounded() -> None:
    others = [initial(b"\x01", to=bytes([number])) for number in range(quic_opening.CONNECTIONS_LIMIT + 1)]
    assert reason(*others) == "over 4 QUIC connections"
    assert isinstance(read(*others[:-1]), NeedMore)
    unread = b"\xc0\x0a\x1a\x2a\x3a"
    assert isinstance(read(*[unread] * quic_opening.PACKETS_LIMIT), NeedMore)
    assert reason(*[unread] * (quic_opening.PACKETS_LIMIT + 1)) == "no ClientHello in 64 QUIC packets"
    pings = b"".join(initial(b"\x01", number) for number in range(40))
    assert isinstance(read(pings), NeedMore)
    assert reason(pings, pings) == "no ClientHello in 64 QUIC packets"


@given(st.sampled_from(sorted(REAL)), st.integers(0, 1199), st.integers(1, 255))
def test_a_damaged_packet_is_never_taken_for_another(client: str, at: int, change: int) -> None:
    whole, changed = read(*REAL[client]), bytearray(REAL[client][0])
    changed[at] ^= change
    answer = read(bytes(changed), *REAL[client])
    assert answer == whole or isinstance(answer, Malformed)


@given(st.lists(st.binary(max_size=60), max_size=8))
def test_random_datagrams_never_raise(datagrams: list[bytes]) -> None:
    assert not isinstance(read(*datagrams), ClientHello)


def test_frames_of_any_bytes_never_raise() -> None:
    random = Random(9000)
    for _ in range(300):
        frames = bytearray(crypto(0, MESSAGE))
        for _ in range(random.randint(1, 4)):
            frames[random.randrange(len(frames))] = random.randrange(256)
        answer = read(quic_packets.initial(bytes(frames)))
        assert isinstance(answer, ClientHello | NeedMore | Malformed)
