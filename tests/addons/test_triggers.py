"""Both engines tell of every match that it has ended, wherever the stream was cut."""

from __future__ import annotations

import gc
import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec_addons import triggers
from mitmsec_addons.triggers import ByHyperscan, ByRe, ByWords, Engine, Trigger, compiled

LOOKED_FOR = (Trigger(r"\bab{2,4}c"), Trigger("xyz", caseless=True), Trigger(r"\d{3}-\d{2}"))
ENGINES = pytest.mark.parametrize("make", [ByHyperscan, ByRe])
TEXT = st.text(alphabet="abcxYz012- ", max_size=60).map(str.encode)


def hits(engine: Engine, *slices: bytes) -> list[tuple[int, int]]:
    scan = engine.open()
    found = [hit for data in slices for hit in scan.feed(data)]
    return [*found, *scan.close()]


def ends(data: bytes) -> set[tuple[int, int]]:
    """Of each expression, as `re` finds them from each place."""
    return {
        (number, match.end())
        for number, trigger in enumerate(LOOKED_FOR)
        for at in range(len(data))
        if (match := re.compile(trigger.expression.encode(), re.I if trigger.caseless else 0).match(data, at))
    }


@ENGINES
@given(data=TEXT, cuts=st.lists(st.integers(0, 60), max_size=5))
def test_any_cut_tells_the_end_of_each_match(make: type[Engine], data: bytes, cuts: list[int]) -> None:
    places = sorted({0, *(cut for cut in cuts if cut < len(data)), len(data)})
    slices = [data[begin:end] for begin, end in itertools.pairwise(places)]
    found = hits(make(LOOKED_FOR), *slices)  # type: ignore[call-arg]
    assert set(found) == ends(data)
    assert [end for _, end in found] == sorted(end for _, end in found)


@ENGINES
def test_what_cannot_be_compiled_is_an_error_of_whoever_wrote_it(make: type[Engine]) -> None:
    with pytest.raises(ValueError, match="an expression that"):
        make([Trigger("(")])  # type: ignore[call-arg]


def test_hyperscan_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(compiled(LOOKED_FOR), ByHyperscan)
    monkeypatch.setattr(triggers, "hyperscan", None)
    assert isinstance(compiled(LOOKED_FOR), ByRe)
    assert isinstance(compiled(NAMED), ByWords)


def test_a_stream_outlives_whoever_made_its_engine() -> None:
    """The binding itself holds neither database nor callback."""
    scans = [ByHyperscan(LOOKED_FOR).open() for _ in range(20)]
    gc.collect()
    assert all(scan.feed(b"..abbc") == [(0, 6)] for scan in scans)
    for scan in scans:
        scan.close()


def test_streams_of_one_engine_do_not_disturb_each_other() -> None:
    engine = ByHyperscan(LOOKED_FOR)
    one, other = engine.open(), engine.open()
    assert list(one.feed(b"x")) == list(other.feed(b"123")) == []
    assert list(one.feed(b"yz")) == [(1, 3)]
    assert list(other.feed(b"-45")) == [(2, 6)]
    one.close()
    other.close()


NAMED = (Trigger(r"ab\d", words=("ab",)), Trigger(r"(?i:(?:aba|cd)\d)", words=("aba", "cd")))


@given(data=st.text(alphabet="abAcdD1 ", max_size=40).map(str.encode), cuts=st.lists(st.integers(0, 40), max_size=5))
def test_without_it_the_words_are_looked_for(data: bytes, cuts: list[int]) -> None:
    places = sorted({0, *(cut for cut in cuts if cut < len(data)), len(data)})
    slices = [data[begin:end] for begin, end in itertools.pairwise(places)]
    expected = [
        (number, end)
        for end in range(len(data) + 1)
        for number, trigger in enumerate(NAMED)
        if data[:end].lower().endswith(tuple(word.encode() for word in trigger.words))
    ]
    assert hits(ByWords(NAMED), *slices) == expected


def test_what_was_compiled_elsewhere_finds_the_same() -> None:
    dumped = ByHyperscan(LOOKED_FOR).dumped()
    assert hits(ByHyperscan(LOOKED_FOR, dumped), b"-abbc", b"XYZ") == [(0, 5), (1, 8)]
    with pytest.raises(ValueError, match="not for this machine"):
        ByHyperscan(LOOKED_FOR, dumped[:-1])


def test_what_ends_with_the_stream_is_told_with_its_end() -> None:
    scan = ByHyperscan([Trigger(r"ab(?:;|\z)")]).open()
    assert (list(scan.feed(b"ab;ab")), list(scan.close())) == ([(0, 3)], [(0, 5)])
