from __future__ import annotations

import re
import sys
from collections import defaultdict

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mitmsec_addons import spelling
from mitmsec_addons.spelling import Encoding, Needle, Word, needles


def found(word: Word, data: bytes, at: int = 0) -> list[bytes]:
    spans = {span for needle in needles(word) for span in needle.found(data, data.lower(), at)}
    return [data[begin:end] for begin, end in sorted(spans)]


def test_the_table_of_case_folding_is_all_of_unicode() -> None:
    expected: defaultdict[str, list[str]] = defaultdict(list)
    for character in map(chr, range(sys.maxunicode + 1)):
        if (folded := character.casefold()) != character:
            expected[folded].append(character)
    assert spelling._unfolded() == {folded: tuple(found) for folded, found in expected.items()}


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("secret", "SeCrEt"),
        ("secret", "\u017fecret"),  # long s
        ("kelvin", "\u212aELVIN"),
        ("strasse", "Straße"),
        ("Straße", "STRASSE"),
        ("office", "o\ufb03ce"),  # ffi ligature
        ("office", "o\ufb00ice"),  # ff ligature, then i
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
        ("пароль", "ПАРОЛЬ"),
        ("秘密", "秘密"),
        ("a1", "A1"),
        ("ss", "ß"),
        ("Flussschiff", "Flusßchiﬀ"),
        ("Flussschiff", "Flußschiﬀ"),
    ],
)
@pytest.mark.parametrize("encoding", list(Encoding))
def test_a_word_is_found_in_any_case_and_encoding(word: str, text: str, encoding: Encoding) -> None:
    data = text.encode(encoding)
    assert data in found(Word(word), b"before " + data + b" after")


@pytest.mark.parametrize("space", ["+", "%20", "\t", "\n", "\u00a0", " "])
def test_a_space_stands_for_whatever_separates_words_in_forms_and_addresses(space: str) -> None:
    assert found(Word("top secret"), f"q=top{space}secret".encode()) == [f"top{space}secret".encode()]


@pytest.mark.parametrize("text", ["caf%C3%A9", "caf%c3%a9", "CAF%C3%89"])
def test_letters_beyond_ascii_are_found_percent_encoded(text: str) -> None:
    assert found(Word("café"), text.encode()) == [text.encode()]


@pytest.mark.parametrize("encoding", list(Encoding))
@pytest.mark.parametrize(("text", "hits"), [("con", 1), (" con.", 1), ("icon", 0), ("cone", 0), ("con con", 2)])
def test_a_whole_word_has_no_letter_beside_it(text: str, hits: int, encoding: Encoding) -> None:
    data = text.encode(encoding)
    assert len(found(Word("con", whole=True), data)) == hits


def test_letters_beyond_ascii_are_neighbours_too() -> None:
    assert found(Word("con", whole=True), "écon".encode()) == []


def test_spellings_do_not_overlap_and_the_search_begins_where_it_is_told() -> None:
    assert found(Word("aaa"), b"aaaaaaa") == [b"aaa", b"aaa"]
    assert found(Word("aaa"), b"aaaaaaa", 4) == [b"aaa"]


def test_an_anchor_that_is_no_spelling_does_not_end_the_search() -> None:
    assert found(Word("secret"), b"xecret ecret Secret") == [b"Secret"]


def test_the_anchor_is_the_longest_run_of_plain_letters() -> None:
    needle = Needle(Word("CONFIDENTIAL s"), Encoding.UTF_8)
    assert needle._anchor == b"dential"
    assert Needle(Word("пароль"), Encoding.UTF_8)._anchor == b""


@given(
    st.text(st.sampled_from("abcKkſsßSstTﬁfiFI é秘 µ"), min_size=2, max_size=8),
    st.sampled_from(list(Encoding)),
    st.binary(max_size=8),
    st.binary(max_size=8),
)
def test_a_word_finds_itself_and_its_own_other_cases(
    word: str, encoding: Encoding, before: bytes, after: bytes
) -> None:
    """Whatever Python folds to the same text one character at a time is a spelling."""
    assume(not re.search("[fist]{5}", word.casefold()))  # longer pieces are cut, as the module says
    for text in (word, word.casefold(), "".join(c.upper() if len(c.upper()) == 1 else c for c in word)):
        data = text.encode(encoding)
        spans = Needle(Word(word), encoding).found(data, data.lower(), 0)
        assert (0, len(data)) in list(spans)
        around = before + data + after
        assert list(Needle(Word(word), encoding).found(around, around.lower(), 0))
