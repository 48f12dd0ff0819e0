"""Header fields that are found sooner are the same fields."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from mitmproxy import http

from mitmsec.engine.fields import Fields, quicken

NAMES = st.sampled_from([b"Host", b"host", b"COOKIE", b"cookie", b"x-\xff\xc3\xa4", b""]) | st.binary(max_size=6)
FIELDS = st.lists(st.tuples(NAMES, st.binary(max_size=6)), max_size=8)


def both(fields: list[tuple[bytes, bytes]]) -> tuple[http.Headers, http.Headers]:
    """mitmproxy's own, and ours."""
    theirs, ours = http.Headers(fields), http.Headers(fields)
    quicken(ours)
    assert type(ours) is Fields
    return theirs, ours


@given(FIELDS, NAMES | NAMES.map(lambda name: name.decode("utf-8", "surrogateescape")) | st.just("Set-Cookie"))
def test_they_answer_as_mitmproxys_own(fields: list[tuple[bytes, bytes]], name: str | bytes) -> None:
    theirs, ours = both(fields)
    assert ours.get_all(name) == theirs.get_all(name)
    assert ours.get(name) == theirs.get(name)
    assert ours.get(name, "other") == theirs.get(name, "other")
    assert (name in ours) == (name in theirs)
    assert not fields or ours[fields[0][0]] == theirs[fields[0][0]]
    assert (ours, bytes(ours), list(ours.items(multi=True))) == (theirs, bytes(theirs), list(theirs.items(multi=True)))


@given(FIELDS, NAMES)
def test_a_change_is_the_same_change(fields: list[tuple[bytes, bytes]], name: bytes) -> None:
    for change in (
        lambda headers: headers.pop(name, None),
        lambda headers: headers.set_all(name, [b"a", b"b"]),
        lambda headers: headers.insert(0, name, b"a"),
        lambda headers: headers.add(name, b"c"),
    ):
        theirs, ours = both(fields)
        assert change(ours) == change(theirs)
        assert ours.fields == theirs.fields
        assert ours.copy().fields == theirs.fields


def test_fields_of_another_kind_are_left_alone() -> None:
    class Other(http.Headers):
        pass

    other = Other()
    quicken(other)
    assert type(other) is Other
