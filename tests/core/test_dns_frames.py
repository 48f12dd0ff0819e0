"""DNS over TCP: the messages of a stream, in whatever pieces it comes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core import dns_frames
from mitmsec.core.dns_frames import MESSAGE_LIMIT_BYTES, DnsFrames


def framed(*messages: bytes) -> bytes:
    return b"".join(len(message).to_bytes(2, "big") + message for message in messages)


def found(data: bytes, cuts: list[int]) -> list[bytes]:
    """What is found in `data`, cut at these places."""
    frames, messages = DnsFrames(), []
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for begin, end in pairwise(places):
        messages += frames.fed(data[begin:end])
    return messages


ONE, TWO = b"the one of all", b"and the other one"
CUTS = st.lists(st.integers(0, 400), max_size=20)


@given(st.lists(st.binary(min_size=12, max_size=60), max_size=6), CUTS)
def test_any_split_of_the_bytes_gives_the_same_messages(messages: list[bytes], cuts: list[int]) -> None:
    assert found(framed(*messages), cuts) == messages


@given(st.binary(max_size=400), CUTS)
def test_any_bytes_give_the_same_whole_or_in_pieces(data: bytes, cuts: list[int]) -> None:
    assert found(data, cuts) == found(data, []) == found(data, list(range(len(data))))


def test_what_is_not_whole_yet_is_waited_for() -> None:
    frames = DnsFrames()
    assert frames.fed(framed(ONE, TWO)[:-1]) == [ONE]
    assert frames.fed(TWO[-1:]) == [TWO]
    assert not frames.is_over


@pytest.mark.parametrize("length", [MESSAGE_LIMIT_BYTES + 1, 0xFFFF])
def test_what_can_be_no_answer_is_passed_over(length: int) -> None:
    assert found(framed(ONE, bytes(length), TWO), [3, 9, 20]) == [ONE, TWO]


@pytest.mark.parametrize("length", [0, 11])
@given(cuts=CUTS)
def test_what_is_no_dns_is_not_listened_to_any_longer(length: int, cuts: list[int]) -> None:
    stream = framed(ONE, bytes(length), TWO)
    assert found(stream, cuts) == [ONE]
    frames = DnsFrames()
    frames.fed(stream)
    assert frames.is_over


def test_the_longest_that_may_be_one_is_found() -> None:
    longest = bytes(MESSAGE_LIMIT_BYTES)
    assert found(framed(longest), [7000]) == [longest]


@given(CUTS)
def test_a_stream_is_listened_to_for_so_long_whatever_its_pieces(cuts: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dns_frames, "STREAM_LIMIT_BYTES", len(framed(ONE, TWO)) + 1)
        assert found(framed(ONE, TWO, ONE), cuts) == [ONE, TWO]
        frames = DnsFrames()
        frames.fed(framed(ONE, TWO, ONE))
        assert frames.is_over
        assert frames.fed(framed(ONE)) == []
