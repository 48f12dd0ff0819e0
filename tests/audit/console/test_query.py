"""Filters in addresses: read, written, taken off; what is none is told and not used."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl

from hypothesis import given
from hypothesis import strategies as st

from mitmsec.audit.console.query import NAMES, Chip, Query, read
from mitmsec.audit.criteria import Filter
from mitmsec.audit.event import Kind
from mitmsec.audit.overview import Among
from mitmsec.core.model import Action

NOW = datetime(2026, 11, 9, 10, 0, tzinfo=UTC)


def test_filters_are_read_from_an_address() -> None:
    found = read([("action", "block"), ("app", " curl "), ("since", "2h"), ("page", "7"), ("host", "")], NOW)
    assert found.filter(NOW) == Filter(action=Action.BLOCK, app="curl", since=NOW - timedelta(hours=2))
    assert found.address("/events") == "/events?app=curl&action=block&since=2h"
    assert found.address("/events", app=None, before="9") == "/events?action=block&since=2h&before=9"
    assert found.chips("/x")[0] == Chip(name="app", value="curl", without="/x?action=block&since=2h")
    assert Query().address("/x") == "/x"


def test_what_is_no_filter_is_told_and_left_out() -> None:
    found = read([("kind", "nonsense"), ("until", "yesterday"), ("severity", "x"), ("app", "a")], NOW)
    assert found.wrong == ("kind", "severity", "until")
    assert found.filter(NOW) == Filter(app="a")


def test_what_only_findings_have_asks_for_findings() -> None:
    found = read([("detector", "iban"), ("severity", "high")], NOW)
    assert found.filter(NOW).kind is Kind.FINDING
    assert found.among() == Among(detector="iban", severity="high")


def test_a_time_without_an_offset_is_local_and_one_with_it_is_itself() -> None:
    assert read([("since", "2026-11-09T09:00:00+02:00")], NOW).filter(NOW).since == datetime(2026, 11, 9, 7, tzinfo=UTC)
    since = read([("since", "2026-11-09T09:00:00")], NOW).filter(NOW).since
    assert since is not None
    assert since.tzinfo is not None


@given(st.dictionaries(st.sampled_from(NAMES), st.text(max_size=30)))
def test_an_address_that_was_made_is_read_as_what_it_was_made_of(given_: dict[str, str]) -> None:
    first = read(given_.items(), NOW)
    address = first.address("/events")
    again = read(parse_qsl(address.partition("?")[2], keep_blank_values=True), NOW)
    assert again.given == first.given
    assert address.isprintable()
    first.filter(NOW)
