"""A shape is found whole, once, in its context, wherever the stream is cut, and little of the stream is kept."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mitmsec_addons.sightings import (
    AFTER_BYTES,
    BEFORE_BYTES,
    CONTEXT_BYTES,
    RANGE_BYTES,
    Shape,
    Shapes,
    Sighting,
    Sightings,
)
from mitmsec_addons.triggers import ByHyperscan, ByRe, Trigger


def even(what: bytes, context: bytes) -> float:
    """Numbers whose digits' sum is even, surely where somebody says "sum"."""
    is_even = sum(byte - 48 for byte in what if 48 <= byte < 58) % 2 == 0
    return (0.9 if b"sum" in context else 0.6) if is_even else 0.0


NUMBER = Shape("number", Trigger(r"\b\d{4}"), re.compile(rb"(?<!\w)\d{4,8}(?: \d{4})?(?!\w)"), even)
NAMED = Shape("named", Trigger("id"), re.compile(rb"id\D{0,4}?(\d{3})(?!\d)"), lambda what, context: 0.8)
BY_HYPERSCAN, BY_RE = Shapes([NUMBER, NAMED], ByHyperscan), Shapes([NUMBER, NAMED], ByRe)


def seen(shapes: Shapes, *slices: bytes) -> list[Sighting]:
    reading = Sightings(shapes)
    return [*(one for data in slices for one in reading.feed(data)), *reading.close()]


def places(found: list[Sighting]) -> list[tuple[str, int, bytes]]:
    return [(one.shape, one.offset, one.what) for one in found]


def test_a_shape_has_its_place_and_its_context_decides_how_sure_it_is() -> None:
    assert seen(BY_HYPERSCAN, b"a 1234 b") == [Sighting("number", 2, b"1234", 0.6)]
    assert seen(BY_HYPERSCAN, b"sum 1234 b") == [Sighting("number", 4, b"1234", 0.9)]
    far = b"sum" + b"." * CONTEXT_BYTES + b" 1234 b"
    assert seen(BY_HYPERSCAN, far) == [Sighting("number", CONTEXT_BYTES + 4, b"1234", 0.6)]
    assert seen(BY_HYPERSCAN, b"id = 123.") == [Sighting("named", 5, b"123", 0.8)]


def test_what_is_none_does_not_hide_one_that_begins_within_it() -> None:
    """1235 has an odd sum, and so has 1235 1236 …; what stands second has an even one."""
    assert places(seen(BY_HYPERSCAN, b"1236 1234 1")) == [("number", 0, b"1236 1234")]
    assert places(seen(BY_HYPERSCAN, b"1235 1234 x")) == [("number", 5, b"1234")]


@pytest.mark.parametrize("shapes", [BY_HYPERSCAN, BY_RE])
@given(
    words=st.lists(st.sampled_from(["1234", "12345", "id", "123", "sum", "x" * 200, "." * 300, "99999999", "id: 77 "])),
    cuts=st.lists(st.integers(0, 4000), max_size=12),
)
def test_any_cut_gives_the_same(shapes: Shapes, words: list[str], cuts: list[int]) -> None:
    data = " ".join(words).encode()
    whole = seen(BY_HYPERSCAN, data)
    ends = sorted({0, *(cut for cut in cuts if cut < len(data)), len(data)})
    assert seen(shapes, *(data[begin:end] for begin, end in itertools.pairwise(ends))) == whole


@given(st.lists(st.sampled_from(["id", "ID", "iD 12", "idid", "321", "1234 ", " ", "x" * 90, "." * 300])))
def test_where_it_is_known_how_they_begin_the_same_are_found(words: list[str]) -> None:
    found = re.compile(rb"(?i:id)\D{0,4}?(\d{3})(?!\d)")
    shape = Shape("named", Trigger("id", caseless=True), found, lambda what, context: 0.8)
    sooner = replace(shape, begins=(b"id",))
    data = "".join(words).encode()
    assert seen(Shapes([sooner], ByRe), data) == seen(Shapes([shape], ByRe), data)


def test_every_single_cut_and_single_bytes_give_the_same() -> None:
    data = b"." * 150 + b"the sum is 1234 5678, id - 321;" + b"." * 250
    whole = seen(BY_HYPERSCAN, data)
    assert places(whole) == [("number", 161, b"1234 5678"), ("named", 177, b"321")]
    for cut in range(len(data)):
        assert seen(BY_HYPERSCAN, data[:cut], data[cut:]) == whole
    assert seen(BY_HYPERSCAN, *(data[at : at + 1] for at in range(len(data)))) == whole


def test_each_is_told_once_also_where_ranges_meet() -> None:
    """A text of nothing but numbers is one range after another."""
    data = b"1234 5678,\n" * (4 * RANGE_BYTES // 11)
    found = seen(BY_HYPERSCAN, *(data[at : at + 1000] for at in range(0, len(data), 1000)))
    assert places(found) == [("number", at, b"1234 5678") for at in range(0, len(data), 11)]


def test_it_is_told_as_soon_as_what_is_behind_it_is_known() -> None:
    reading = Sightings(BY_HYPERSCAN)
    assert list(reading.feed(b"1234" + b"." * (AFTER_BYTES - 1))) == []
    assert places(list(reading.feed(b"."))) == [("number", 0, b"1234")]
    assert list(reading.close()) == []


def test_little_is_kept_of_a_stream_with_nothing_and_of_one_with_nothing_else() -> None:
    for piece in (b"." * 65536, b"1234 5678,\n" * 6000):
        reading = Sightings(BY_HYPERSCAN)
        for _ in range(5):
            list(reading.feed(piece))
            assert len(reading._kept + reading._fresh) <= RANGE_BYTES + BEFORE_BYTES + 2 * AFTER_BYTES
        reading.close()


def test_a_check_is_never_asked_about_more_than_its_context() -> None:
    asked: list[tuple[int, int]] = []

    def check(what: bytes, context: bytes) -> float:
        asked.append((len(what), len(context)))
        return 1.0

    shape = Shape("number", NUMBER.trigger, NUMBER.found, check)
    seen(Shapes([shape]), b"." * 500 + b" 1234 " + b"." * 500)
    assert asked == [(4, 4 + 2 * CONTEXT_BYTES)]


def counted(data: bytes, *slices: bytes, **words: Any) -> tuple[int, list[Sighting]]:
    """How often the check was asked, and what was found."""
    asked: list[bytes] = []

    def check(what: bytes, context: bytes) -> float:
        asked.append(what)
        return 0.9 if what.startswith(b"9") else 0.0

    shape = Shape("number", NUMBER.trigger, re.compile(rb"(?<!\w)\d{4}(?!\w)"), check, **words)
    reading = Sightings(Shapes([shape]), enough=3)
    found = [*(one for piece in slices or [data] for one in reading.feed(piece)), *reading.close()]
    return len(asked), found


def test_where_there_is_enough_nothing_more_is_asked() -> None:
    data = b"9999 " * 20_000
    asked, found = counted(data)
    assert (asked, [one.offset for one in found]) == (3, [0, 5, 10])
    assert counted(data, *(data[at : at + 999] for at in range(0, len(data), 999))) == (asked, found)


def test_without_what_it_needs_nothing_is_asked_and_with_it_only_near_it() -> None:
    needs = re.compile(rb"word")
    assert counted(b"9999 " * 1000, needs=needs) == (0, [])
    asked, found = counted(b"8888 " * 500 + b"word" + b" 8888" * 500, needs=needs)
    assert (asked, found) == (38, [])


def test_so_many_tries_and_no_more_within_a_range() -> None:
    data = b"8888 " * 100 + b"9999 " + b"." * 1000 + b"9999 "
    assert [one.offset for one in counted(data)[1]] == [500, 1505]
    asked, found = counted(data, tries=64)
    assert (asked, [one.offset for one in found]) == (65, [1505])
