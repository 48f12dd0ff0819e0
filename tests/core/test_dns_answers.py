"""Answers over TCP: held until they are whole where services were asked for, and nowhere else."""

from __future__ import annotations

from itertools import pairwise

import pytest
from dns_writer import HTTPS, address, query, response, service
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core.dns_answers import DnsAnswers
from mitmsec.core.dns_frames import MESSAGE_LIMIT_BYTES
from mitmsec.core.dns_offers import Offers, limited

NO_H3 = Offers(h3=False)
ADDRESS = response("a.test", address("a.test", "192.0.2.1"))
OFFER = response("a.test", service("a.test"), kind=HTTPS).replace(b"\2h2", b"\2h3")
LIMITED = limited(OFFER, NO_H3)


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


def answers(*, asked: bool = True) -> DnsAnswers:
    made = DnsAnswers(NO_H3)
    made.asked(query("a.test"))
    if asked:
        made.asked(query("a.test", HTTPS))
    assert made.is_asked is asked
    return made


def test_an_answer_about_services_is_held_until_it_is_whole() -> None:
    assert LIMITED != OFFER
    made, wire = answers(), framed(OFFER)
    assert made.fed(wire[:1]) == made.fed(wire[1:2]) == made.fed(wire[2:-1]) == b""
    assert made.fed(wire[-1:] + framed(ADDRESS)) == framed(LIMITED) + framed(ADDRESS)


def test_what_was_not_asked_for_is_never_held() -> None:
    made, wire = answers(asked=False), framed(OFFER)
    assert b"".join(made.fed(wire[at : at + 1]) for at in range(len(wire))) == wire
    assert made.fed(wire[:1]) == wire[:1]
    made.asked(query("a.test", HTTPS))
    assert made.fed(wire[1:5]) == wire[1:5], "it had begun before anybody asked"
    assert made.fed(wire[5:] + wire) == wire[5:] + framed(LIMITED)


def test_the_end_lets_go_of_what_was_held() -> None:
    made = answers()
    assert made.fed(framed(OFFER)[:20]) == b""
    assert made.fed(b"") == framed(OFFER)[:20]
    assert made.fed(b"") == b""


@pytest.mark.parametrize("other", [b"\0\5hello", b"\0\0", b"\0\x0b" + bytes(900)])
def test_what_is_no_dns_goes_on_as_it_comes(other: bytes) -> None:
    made = answers()
    assert made.fed(framed(OFFER) + other) == framed(LIMITED) + other
    assert made.fed(framed(OFFER)[:9]) == framed(OFFER)[:9]


def test_what_is_longer_than_such_answers_goes_on_as_it_comes() -> None:
    made, long = answers(), framed(bytes(MESSAGE_LIMIT_BYTES + 1))
    assert made.fed(long[:100]) == long[:100]
    assert made.fed(long[100:] + framed(OFFER)) == long[100:] + framed(LIMITED)


@given(st.lists(st.sampled_from([ADDRESS, OFFER, bytes(12), b"x" * 99]), max_size=6), st.data())
def test_pieces_change_nothing(messages: list[bytes], data: st.DataObject) -> None:
    wire = b"".join(map(framed, messages)) + data.draw(st.binary(max_size=20))
    cuts = sorted({0, len(wire), *data.draw(st.lists(st.integers(0, len(wire)), max_size=8))})
    made, at_once = answers(), answers()
    in_pieces = b"".join(made.fed(wire[start:end]) for start, end in pairwise(cuts)) + made.fed(b"")
    assert in_pieces == at_once.fed(wire) + at_once.fed(b"")
    assert in_pieces.startswith(b"".join(framed(LIMITED if one is OFFER else one) for one in messages))
