"""The first bytes of a captured connection: whatever order they come in, the gate would have read the same."""

from __future__ import annotations

import itertools
from random import Random

import pytest
from hellos import REAL, alpn, hello, server_name
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core import sniff
from mitmsec.core.sniff import FIRST_BYTES_LIMIT, Malformed, Protocol, Sniffed
from mitmsec_redirect import openings
from mitmsec_redirect.openings import Opening

TLS = hello(server_name(b"a.test"), alpn(b"h2"))
HTTP = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
FLAWED = b"\x16\x03\x01\x00\x05\x01\xff\xff\xff\xff"
BEGIN = 2**32 - 5  # so that numbers go around


def segments(data: bytes, cuts: list[int]) -> list[tuple[int, bytes]]:
    ends = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [((BEGIN + 1 + a) % 2**32, data[a:b]) for a, b in itertools.pairwise(ends)]


def opened(*said: tuple[int, bytes]) -> Opening:
    opening = Opening(BEGIN)
    for sequence, payload in said:
        opening.client_says(sequence, payload)
    return opening


@given(
    st.sampled_from([TLS, HTTP, FLAWED, b"SSH-2.0-x\r\n", b"\xff\xff", *REAL.values()]),
    st.lists(st.integers(0, 600), max_size=8),
    st.randoms(use_true_random=False),
)
def test_the_answer_is_that_of_the_whole_however_it_comes(data: bytes, cuts: list[int], chance: Random) -> None:
    """Out of order, and some of it more than once; further bytes follow a hello and change nothing."""
    said = segments(data + b"more", cuts)
    said += chance.sample(said, chance.randint(0, len(said)))
    chance.shuffle(said)
    opening = opened(*said)
    assert opening.is_settled
    assert opening.shown == sniff.first_bytes(data + b"more")
    assert opening.held_bytes == 0


def test_overlapping_segments_and_such_as_begin_before_the_connection_are_joined() -> None:
    opening = opened((BEGIN - 2, b"xyz" + HTTP[:4]), ((BEGIN + 3) % 2**32, HTTP[2:9]), ((BEGIN + 8) % 2**32, HTTP[7:]))
    assert opening.shown == Sniffed(protocol=Protocol.HTTP, name="a.test")


def test_without_a_segment_nothing_is_known() -> None:
    opening = opened((BEGIN + 11, TLS[10:]))
    assert (opening.shown, opening.is_settled, opening.held_bytes) == (None, False, len(TLS) - 10)
    opening.client_says(BEGIN + 1, b"")
    opening.give_up()
    assert (opening.shown, opening.is_settled, opening.held_bytes) == (None, True, 0)


def test_a_server_that_speaks_first_settles_it_and_one_that_answers_does_not() -> None:
    greeted = Opening(BEGIN)
    greeted.server_says(b"")
    greeted.server_says(b"SSH-2.0-server\r\n")
    greeted.client_says(BEGIN + 1, HTTP)
    assert greeted.shown == Sniffed(protocol=Protocol.SSH)
    half = Opening(BEGIN)
    half.server_says(b"22")
    assert half.shown == Sniffed(protocol=Protocol.TCP)
    for first in ((BEGIN + 1, TLS[:9]), (BEGIN + 10, TLS[9:])):
        asked = opened(first)
        asked.server_says(b"SSH-2.0-server\r\n")
        assert not asked.is_settled


def test_malformed_bytes_are_known_for_what_they_are() -> None:
    assert isinstance(opened((BEGIN + 1, FLAWED)).shown, Malformed)


def test_memory_and_work_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    far = opened((BEGIN + 1 + FIRST_BYTES_LIMIT, b"x"))
    assert (far.held_bytes, far.is_settled) == (0, False)
    scattered = opened(*((BEGIN + 2 + 2 * place, b"x") for place in range(openings.AHEAD_LIMIT + 1)))
    assert (scattered.shown, scattered.is_settled) == (None, True)
    header = b"GET / HTTP/1.1\r\nX: "
    drops = ((BEGIN + 1 + len(header) + place, b"a") for place in range(openings.ASKED_LIMIT))
    endless = opened((BEGIN + 1, header), *drops)
    assert (endless.shown, endless.is_settled) == (None, True)
    huge = opened((BEGIN + 1, header), (BEGIN + 1 + len(header), b"a" * FIRST_BYTES_LIMIT))
    assert huge.is_settled
    monkeypatch.setattr(openings, "first_bytes", lambda data: sniff.NeedMore())
    assert opened((BEGIN + 1, b"a" * FIRST_BYTES_LIMIT)).is_settled
