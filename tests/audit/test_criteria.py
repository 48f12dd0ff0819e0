"""What a filter means, for one event at a time."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from audit_events import connection, draft, finding

from mitmsec.audit.criteria import FACETS, Filter, facets_of, meets, says, searched
from mitmsec.audit.envelope import sealed
from mitmsec.audit.event import CertificateSeen, FaultSeen, Kind
from mitmsec.core.model import Severity

AT = datetime(2026, 11, 3, 10, 0, tzinfo=UTC)


def event(seen: Any, seq: int = 5) -> dict[str, Any]:
    return sealed(draft(seen), seq)[0]


@pytest.mark.parametrize(
    ("wanted", "is_met"),
    [
        (Filter(), True),
        (Filter(after=4, before=6), True),
        (Filter(after=5), False),
        (Filter(before=5), False),
        (Filter(since=AT), True),
        (Filter(until=AT), False),
        (Filter(since=AT.replace(minute=1)), False),
        (Filter(until=AT.replace(minute=1)), True),
        (Filter(user="alice"), True),
        (Filter(user="ali"), False),
        (Filter(kind=Kind.REQUEST), False),
        (Filter(rule="defaults"), True),
        (Filter(rule="def*"), True),
        (Filter(rule="DEF*"), False),
        (Filter(app="CURL"), True),
        (Filter(app="/usr/*/CURL"), True),
        (Filter(app="curl*"), False),
        (Filter(host="com"), True),
        (Filter(host=".Example.com"), True),
        (Filter(host="xample.com"), False),
        (Filter(host="[192.0.2.7]"), True),
        (Filter(host="192.0.2.?"), True),
        (Filter(host="*.org"), False),
        (Filter(severity=Severity.HIGH), False),
        (Filter(text="api.exam"), True),
        (Filter(text="pi.exam"), False),
    ],
    ids=str,
)
def test_a_connection_meets_what_it_is(wanted: Filter, is_met: bool) -> None:
    assert meets(event(connection()), wanted) is is_met


def test_a_rule_is_one_of_connections_alone() -> None:
    other = {**event(finding()), "rule": "defaults"}
    assert not meets(other, Filter(rule="defaults"))
    assert meets(other, Filter(rule="defaults", kind=Kind.FINDING))


def test_a_finding_is_found_by_what_it_found() -> None:
    found = event(finding())
    assert meets(found, Filter(detector=found["detector"], severity=Severity(found["severity"])))
    assert not meets(found, Filter(detector="other"))


def test_an_address_is_only_where_something_went_there() -> None:
    leaf = CertificateSeen(flow="f", serial="0a", names=("a.example",), not_after="2027-01-01T00:00:00Z")
    assert not meets(event(leaf), Filter(host="192.0.2.7"))
    assert meets(event(leaf), Filter(host="a.example"))
    assert meets(event(connection(host=None)), Filter(host="192.0.2.7"))
    assert not meets(event(FaultSeen(what="x")) | {"host": None}, Filter(host="a.example"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("one", True),
        ("ONE", True),
        ("ne", False),
        ("two", True),
        ("o three", False),
        ("two-three", True),
        ("-three", True),
        ("ee", False),
        ("threefold", False),
        ("straße", True),
        ("STRASSE", True),
        ("443", True),
        ("44", True),
        ("999", False),
        ("keyed", False),
        ("abc", False),
        ("inner", True),
        ("tone onetone tone one", True),
    ],
)
def test_text_is_found_from_the_beginning_of_a_word_on(text: str, said: bool) -> None:
    made = {
        "keyed": "One two-three",
        "id": "abc",
        "port": 443,
        "bytes": {"sent": 999},
        "names": ["Straße", {"deep": ["inner", None]}],
        "nothing": None,
        "more": "tone onetone tone one",
    }
    assert says(made, text) is said


def test_whatever_an_event_holds_it_can_be_searched() -> None:
    assert searched({"a": 1.5, "b": True, "pid": 7, "c": [1, [2, "x"]]}) == ["7", "x"]
    assert facets_of({"process": "no mapping", "remote": 5, "kind": 3, "names": [7]}) == {}
    assert set(facets_of(event(connection()))) < set(FACETS)


def test_an_event_without_a_number_is_not_excluded_by_one() -> None:
    assert meets({"time": "2026"}, Filter(after=3))
