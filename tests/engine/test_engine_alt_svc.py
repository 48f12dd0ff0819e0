"""Alternatives in responses: HTTP/3 goes, the rest stays, and who had heard of it forgets it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.engine.alt_svc import without_http3


def left(*values: bytes) -> list[bytes]:
    """What becomes of these fields, between others."""
    fields = ((b"server", b"x"), *((b"Alt-Svc", value) for value in values), (b"content-type", b"h3"))
    after = without_http3(fields)
    assert [field for field in after if field[0].lower() != b"alt-svc"] == [fields[0], fields[-1]]
    return [value for name, value in after if name.lower() == b"alt-svc"]


@pytest.mark.parametrize(
    "value",
    [
        b'h3=":443"',
        b'h3=":443"; ma=86400; persist=1, h3-29=":443"; ma=86400',
        b'quic=":443"; v="46,43", h3-Q050=":8443"',
        b'%683=":443"',  # an h, escaped
        b' h3 =":443"',
        b'h3="a,b.test:443"',
        b'h3="\\"',
        b'h3="a\\',
    ],
)
def test_nothing_but_http3_becomes_clear(value: bytes) -> None:
    assert left(value) == [b"clear"]


def test_other_alternatives_stay() -> None:
    assert left(b'h3=":443"; ma=1, h2="b.test:443"; ma=2, h3-29=":1"') == [b'h2="b.test:443"; ma=2']
    assert left(b'h3=":443"', b'h2="b.test:443"') == [b'h2="b.test:443"']
    assert left(b'h2="b.test:443"; x="h3=1, h3=2"') == [b'h2="b.test:443"; x="h3=1, h3=2"']


@pytest.mark.parametrize(
    "values", [(), (b"clear",), (b'h2=":443"',), (b"",), (b'H3=":443"',), (b'h30=":1",h2=":2"',), (b'h2=":1', b",")]
)
def test_what_is_no_http3_stays_as_it_is(values: tuple[bytes, ...]) -> None:
    assert left(*values) == [*values]


MEMBERS = st.sampled_from([b'h3=":443"', b'h2=":443"', b'h3-29="a,b"', b'w="\\",h3=1"; ma=3', b"clear"])


@given(st.lists(st.lists(MEMBERS, min_size=1), max_size=4))
def test_of_any_members_exactly_those_of_http3_go(values: list[list[bytes]]) -> None:
    kept = [[one for one in each if not one.startswith(b"h3")] for each in values]
    expected = [b",".join(each) for each in kept if each]
    assert left(*(b",".join(each) for each in values)) == (expected or ([b"clear"] if values else []))


@given(st.lists(st.binary(max_size=40).map(lambda tail: b"h2=" + tail), max_size=3))
def test_any_bytes_come_to_something_that_changes_no_more(values: list[bytes]) -> None:
    once = without_http3(tuple((b"alt-svc", value) for value in values))
    assert without_http3(once) == once


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b'h3=":443"; ma=86400, h2=":8443"', b'h3=":443"; ma=86400, h2=":8443"'),
        (b'h3="b.test:443", h3=":8443"; ma=1', b'h3="b.test:443"'),
        (b'h3=":8443"', b"clear"),
        (b'h3=":44\\3"', b"clear"),
        (b'h3=:443, h3-29=":1443"', b"clear"),
        (b'h3=":443', b"clear"),
    ],
)
def test_where_it_is_decrypted_http3_stays_at_the_port_that_is_led_to_the_gate(value: bytes, expected: bytes) -> None:
    (after,) = without_http3(((b"Alt-Svc", value),), but_led=True)
    assert after[1] == expected
