"""What is shown of others' words moves nothing and turns nothing around."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core.printable import shown


@given(st.text())
def test_what_is_shown_is_printable(text: str) -> None:
    assert shown(text).isprintable()
    assert not text.isprintable() or shown(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [("\x1b[2J", r"\x1b[2J"), ("a\u202eb", r"a\u202eb"), ("1\n2", r"1\n2"), (7, "7"), ("naïve", "naïve")],
)
def test_what_is_not_printable_is_escaped(text: object, expected: str) -> None:
    assert shown(text) == expected
