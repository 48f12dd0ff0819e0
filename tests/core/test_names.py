"""Host names are compared in one spelling only."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core.names import is_address, name_and_parents, parents, parse_name, written_name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Example.COM.", "example.com"),
        ("localhost", "localhost"),
        ("_dmarc.a-b.example", "_dmarc.a-b.example"),
        ("1.2.3.4.example", "1.2.3.4.example"),
    ],
)
def test_names_from_the_wire(text: str, name: str) -> None:
    assert parse_name(text) == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "a..b",
        ".a",
        "a b",
        "a\x00b",
        "bücher.example",
        "192.0.2.1",
        "a.1",
        "a.0x7f",
        "*.a",
        "a" * 64,
        "a." * 128,
    ],
)
def test_what_is_no_name(text: str) -> None:
    assert parse_name(text) is None


@given(st.text(max_size=60))
def test_a_name_is_its_own_spelling(text: str) -> None:
    name = parse_name(text)
    assert name is None or parse_name(name) == name == name.lower()


@given(st.text(max_size=40))
def test_what_a_person_writes_becomes_a_name_or_a_sentence(text: str) -> None:
    try:
        name = written_name(text)
    except ValueError as error:
        sentence = str(error)
    else:
        assert parse_name(name) == name
        return
    assert sentence


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Bücher.Example", "xn--bcher-kva.example"),
        ("straße.example", "xn--strae-oqa.example"),  # IDNA2008: not "strasse"
        ("bu\u0308cher.example", "xn--bcher-kva.example"),
        ("中国.example", "xn--fiqs8s.example"),
        ("XN--BCHER-KVA.example.", "xn--bcher-kva.example"),
    ],
)
def test_unicode_names_become_a_labels(text: str, name: str) -> None:
    assert written_name(text) == name


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("192.0.2.1", "address"),
        ("[2001:db8::1]", "address"),
        ("ｅｘａｍｐｌｅ.com", "xn--"),
        ("☃.example", "xn--"),
        ("a b.example", "not a host name"),
    ],
)
def test_what_would_take_a_guess_is_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        written_name(text)


def test_addresses_are_known_with_and_without_brackets() -> None:
    assert [is_address(text) for text in ("192.0.2.1", "::1", "[::1]", "[::1", "a.example")] == [
        True,
        True,
        True,
        False,
        False,
    ]


def test_parents_are_nearest_first() -> None:
    assert parents("a.b.c") == ["b.c", "c"]
    assert parents("c") == []
    assert name_and_parents("a.b.c") == ["a.b.c", "b.c", "c"]
