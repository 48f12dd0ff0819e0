"""What a reader would not see, or would be deceived by, is marked; nothing is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.audit.console.marks import Part, parts, plain


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain Ünicode", "plain Ünicode"),
        ("a\x1b[31mb", "aESC[31mb"),
        ("safe\u202egpj.exe", "safeU+202Egpj.exe"),
        ("a\u200bb\ufeff", "aU+200BbU+FEFF"),
        ("one\ntwo\tthree", "one⏎two⇥three"),
        ("\ud800", "U+D800"),
        (None, ""),
        (4711, "4711"),
    ],
)
def test_marks_stand_in_for_what_is_not_shown(text: object, expected: str) -> None:
    assert plain(text) == expected


def test_a_mark_is_told_apart_from_the_same_words_as_text() -> None:
    assert parts("ESC\x1b") == [Part(text="ESC"), Part(text="ESC", is_mark=True)]
    assert parts("<b>&\"'") == [Part(text="<b>&\"'")]


@given(st.text(max_size=200), st.integers(1, 50))
def test_nothing_is_shown_that_cannot_be_seen_and_length_is_bounded(text: str, limit: int) -> None:
    found = parts(text, limit)
    assert all(part.text.isprintable() for part in found)
    assert "".join(part.text for part in found if not part.is_mark) == "".join(
        character for character in text[:limit] if character.isprintable()
    )
    if len(text) > limit:
        assert found[-1] == Part(text=f"… {len(text) - limit} more", is_mark=True)
