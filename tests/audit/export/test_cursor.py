"""A cursor goes on in its own log and in no other."""

from __future__ import annotations

import pytest
from audit_events import draft, request
from export_events import REAL
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.audit.envelope import sealed
from mitmsec.audit.export.cursor import (
    BEGINNING,
    Cursor,
    OtherLog,
    Position,
    check_event,
    check_log,
    encoded,
    parsed,
    position_of,
)
from mitmsec.audit.merkle import leaf_hash

AT = position_of(REAL[6])


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(-1, 2**53))
def test_what_was_kept_reads_back(text: str, seq: int) -> None:
    cursor = Cursor(to=text, log=text, at=Position(seq, text))
    assert parsed(encoded(cursor)) == cursor
    assert encoded(cursor).count(b"\n") == 1


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"to":"x"}', b"\xff", encoded(Cursor("", "", AT)) + b"x"])
def test_what_is_no_cursor_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        parsed(data)


def test_a_cursor_of_a_later_version_is_refused() -> None:
    with pytest.raises(ValueError):
        parsed(encoded(Cursor("", "", AT)).replace(b'"version":1', b'"version":2'))


def test_a_position_is_a_leaf_of_the_tree() -> None:
    event, envelope = sealed(draft(request()), 6)
    assert position_of(event) == Position(6, leaf_hash(envelope).hex())


def test_names_of_logs_are_compared_where_both_have_one() -> None:
    check_log(Cursor("", "a", AT), "a")
    check_log(Cursor("", "", AT), "a")
    check_log(Cursor("", "a", AT), "")
    with pytest.raises(OtherLog, match="of the log a; this one is b"):
        check_log(Cursor("", "a", AT), "b")


def test_the_event_there_must_be_the_one_that_was() -> None:
    check_event(AT, REAL[6], 6)
    check_event(AT, None, 9)  # retention has removed it
    check_event(BEGINNING, None, -1)
    with pytest.raises(OtherLog, match="event 6 is not the one"):
        check_event(AT, REAL[6] | {"url": "x"}, 9)
    with pytest.raises(OtherLog, match="7 events were done with, and this log has 3"):
        check_event(AT, None, 2)
