"""Fuzzed: `quic_opening`, with what is inside a packet as with what is outside. Three outcomes, the last two final."""

from __future__ import annotations

import quic_packets
from fuzz_choices import Choices

from mitmsec.core import quic_opening
from mitmsec.core.clienthello import HELLO_LIMIT_BYTES, ClientHello, Malformed, NeedMore
from mitmsec.core.quic_answers import refusal, version_negotiation
from mitmsec.core.quic_opening import QuicOpening
from mitmsec.core.quic_packets import initials
from mitmsec_certs.packet_cipher import Aes128

DATAGRAMS = 4


def attempt(data: bytes) -> None:
    """A byte says how many datagrams there are and which are sealed, two more for each how long it is."""
    choices = Choices(data)
    count, sealed = 1 + choices.below(DATAGRAMS), choices.below(16)
    opening, answer = QuicOpening(Aes128()), None
    cuts = [choices.below(256) * 8 for _ in range(count - 1)]
    rest = choices.rest()
    for number in range(count):
        piece, rest = (rest[: cuts[number]], rest[cuts[number] :]) if number < count - 1 else (rest, b"")
        datagram = quic_packets.initial(piece, number) if sealed >> number & 1 else piece
        for packet in initials(datagram):
            assert packet.packet in datagram
        for said in (refusal(datagram, Aes128()), version_negotiation(datagram)):
            assert said is None or len(said) < len(datagram)
        answer = _after(opening, datagram)
    assert answer is not None


def _after(opening: QuicOpening, datagram: bytes) -> ClientHello | NeedMore | Malformed:
    before = opening.answer
    answer = opening.fed(datagram)
    assert isinstance(before, NeedMore) or before is answer, "more datagrams changed an answer"
    assert opening.held_bytes <= quic_opening.CONNECTIONS_LIMIT * HELLO_LIMIT_BYTES
    match answer:
        case ClientHello():
            assert answer.raw[0] == 1
            assert answer.ja4.startswith("q")
        case Malformed(reason=reason):
            assert reason
            assert reason.isprintable()
        case NeedMore():
            pass
    return answer
