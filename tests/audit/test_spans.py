"""Questions to the index: as few rows as can be, and no hour twice or not at all."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.audit.criteria import Filter
from mitmsec.audit.spans import LAST_H, Words, hours_of, periods, words_of

HOURS = st.integers(0, 2000)


@given(HOURS, HOURS, HOURS)
def test_each_hour_is_in_one_period(first: int, last: int, coarse: int) -> None:
    told = [
        hour
        for level_h, begin, end in periods(first, last, coarse)
        for since in range(begin, end + 1, level_h)
        for hour in range(since, since + level_h)
    ]
    assert told == list(range(first, last + 1))


@given(HOURS, HOURS, HOURS)
def test_no_period_that_may_lack_events_is_used(first: int, last: int, coarse: int) -> None:
    for level_h, begin, end in periods(first, last, coarse):
        assert level_h == 1 or (begin % level_h == end % level_h == 0 and end + level_h <= coarse)


def test_a_month_is_weeks_days_and_hours() -> None:
    assert periods(1, 720, LAST_H) == [(1, 1, 23), (24, 24, 144), (168, 168, 504), (24, 672, 696), (1, 720, 720)]
    assert periods(1, 720, 0) == [(1, 1, 720)]


def test_a_filter_is_about_whole_hours() -> None:
    assert hours_of(Filter()) == (0, LAST_H)
    wanted = Filter(since=datetime(1970, 1, 2, 1, 59, tzinfo=UTC), until=datetime(1970, 1, 3, 2, 0, 1, tzinfo=UTC))
    assert hours_of(wanted) == (25, 50)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", Words()),
        ("%-_", Words()),
        ("Api.Example.COM", Words(("api", "example"), "com")),
        ("ends here.", Words(("ends", "here"))),
        ("a_b", Words(("a",), "b")),
        ("Straße 5", Words(("strasse",), "5")),
        ("naïve", Words(("na",), "ve")),
        ("ü", Words()),
    ],
)
def test_words_are_those_that_the_index_has(text: str, words: Words) -> None:
    assert words_of(text) == words
