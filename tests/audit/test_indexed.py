"""What events are found by."""

from __future__ import annotations

import pytest
from audit_events import connection, draft, request
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.audit.criteria import FACETS, says
from mitmsec.audit.envelope import sealed
from mitmsec.audit.indexed import NOTHING, VOLUME_LIMIT_BYTES, hour_of, key_of, keys_of, rows_of, words_in
from mitmsec.audit.spans import words_of
from mitmsec.gate.ids import flow_id


def numbered(facet: str, text: str) -> int:
    return len(facet) * 1000 + len(text)


def test_an_event_is_a_row_of_small_numbers() -> None:
    event = sealed(draft(connection("flow-1")), 3)[0]
    rows = rows_of([(3, event)], numbered)
    ((seq, hour, *facets, sent, received),) = rows.found
    assert (seq, hour, sent, received) == (3, hour_of("2026-11-03T10"), 120, 4500)
    told = dict(zip(FACETS, facets, strict=True))
    assert told["app"] == numbered("app", "/usr/bin/curl")
    assert told["detector"] == NOTHING
    assert rows.keys == [(key_of("flow-1"), 3)]
    ((at, text),) = rows.words
    assert at == 3
    assert "api example com" in text
    assert "flow" not in text


def test_what_is_no_event_is_found_by_nothing() -> None:
    rows = rows_of([(1, {}), (2, {"id": 5, "bytes": 3, "time": None}), (3, {"bytes": {"sent": "x"}})], numbered)
    assert [set(row[1:]) for row in rows.found] == [{0}] * 3
    assert rows.keys == []


def test_an_event_on_a_connection_is_found_by_both() -> None:
    event = sealed(draft(request("flow-9")), 3)[0]
    assert keys_of(event) == {key_of("flow-9"), key_of(event["id"])}


def test_a_connection_that_lives_is_found_by_its_own_id() -> None:
    flow = flow_id()
    assert key_of(f"{flow}.open") == key_of(flow)
    assert key_of("flow-1.open") == key_of("flow-1") != key_of("flow-2")


@given(st.integers(0, 1 << 47), st.integers(0, 1 << 47))
def test_ids_that_begin_with_a_time_keep_their_order(one_ms: int, other_ms: int) -> None:
    one, other = key_of(flow_id(one_ms)), key_of(flow_id(other_ms))
    assert (one <= other) == (one_ms <= other_ms) or one_ms == other_ms


@given(st.text())
def test_any_text_has_a_key_that_sqlite_can_hold(text: str) -> None:
    assert 0 <= key_of(text) < 1 << 63


@given(st.text(), st.text(min_size=1), st.text())
def test_whoever_says_a_text_has_its_words(before: str, text: str, behind: str) -> None:
    """So what the index leaves out says it nowhere, whatever letters stand around it."""
    value = before + text + behind
    if not says({"value": value}, text):
        return
    has = words_in(value).split()
    wanted = words_of(text)
    assert set(wanted.whole) <= set(has)
    assert any(word.startswith(wanted.begun) for word in has) or not wanted.begun


@pytest.mark.parametrize(
    ("value", "text"),
    [("straße", "strasse"), ("\ufb01nance", "finance"), ("cafe\u0301 noir", "cafe\u0301"), ("\ue000secret", "secret")],
)
def test_letters_that_fold_in_strange_ways_hide_nothing(value: str, text: str) -> None:
    assert says({"value": value}, text)
    assert words_of(text).begun in words_in(value).split() or set(words_of(text).whole) <= set(words_in(value).split())


def test_volumes_that_nobody_moves_do_not_end_the_index() -> None:
    event = {"bytes": {"sent": 1 << 70, "received": -5}}
    ((*_, sent, received),) = rows_of([(1, event)], numbered).found
    assert (sent, received) == (VOLUME_LIMIT_BYTES, 0)


def test_hours_are_those_since_1970() -> None:
    assert hour_of("1970-01-02T01") == 25
    assert hour_of("None") == hour_of("9999999999999") == hour_of("") == 0
