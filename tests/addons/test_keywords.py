from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core.inspection import Part, PartKind
from mitmsec.core.model import Clear, Finding, Severity
from mitmsec_addons.keywords import FINDINGS_LIMIT, WORD_LIMIT_CHARACTERS, WORDS_LIMIT, Keywords


def part(kind: PartKind = PartKind.BODY, *, sent: bool = True) -> Part:
    return Part(flow="f1", kind=kind, sent=sent, host="origin.test")


def inspect(words: tuple[str, ...], *slices: bytes, of: Part | None = None) -> list[Finding]:
    inspection = Keywords(words).open(of or part())
    return [*(finding for data in slices for finding in inspection.feed(data)), *inspection.close()]


def test_a_keyword_is_told_with_its_place_and_without_what_stands_around_it() -> None:
    [finding] = inspect(("Project Falcon",), b"x" * 1032 + b"PROJECT falcon costs 4 million")
    assert finding == Finding(
        detector="keywords",
        severity=Severity.MEDIUM,
        confidence=0.9,
        summary='keyword "Project Falcon"',
        evidence="P… (14 characters)",
        location="request.body+1032",
        offset=1032,
        size_bytes=14,
        clear=Clear(value=b"PROJECT falcon"),
    )


@pytest.mark.parametrize(
    ("kind", "sent", "location"),
    [
        (PartKind.BODY, False, "response.body+2"),
        (PartKind.STREAM, True, "request.stream+2"),
        (PartKind.URL, True, "request.url"),
        (PartKind.HEADERS, False, "response.headers"),
    ],
)
def test_the_location_says_which_part(kind: PartKind, sent: bool, location: str) -> None:
    [finding] = inspect(("falcon",), b"a falcon", of=part(kind, sent=sent))
    assert finding.location == location


def test_a_short_word_is_told_with_less_confidence() -> None:
    [finding] = inspect(("m&a",), b"the M&A team")
    assert finding.confidence == 0.6


def test_words_inside_words_are_each_told_in_the_order_in_which_they_begin() -> None:
    findings = inspect(("tary", "secretary", "secret"), b"secretary")
    assert [finding.summary for finding in findings] == [
        'keyword "secret"',
        'keyword "secretary"',
        'keyword "tary"',
    ]


def test_a_keyword_across_slices_is_told_once() -> None:
    inspection = Keywords(("falcon",)).open(part())
    assert inspection.feed(b"fal") == []
    assert inspection.feed(b"con") == []  # more could follow that decides about it
    assert len(inspection.feed(b" and a long text that decides it" * 4)) == 1
    assert inspection.close() == []


def test_after_ten_findings_the_rest_of_a_part_is_only_counted() -> None:
    findings = inspect(("falcon",), *[b"falcon "] * 25)
    assert len(findings) == FINDINGS_LIMIT + 1
    assert findings[-1].summary == "15 more keyword hits in the same part"
    assert (findings[-1].location, findings[-1].evidence) == ("request.body", "")


def test_what_is_held_between_slices_is_bounded_by_the_longest_keyword() -> None:
    inspection = Keywords(("falcon",)).open(part())
    for _ in range(100):
        inspection.feed(b"falconfalco" * 1000)
    assert len(inspection._buffer) < 100


def test_an_equals_sign_asks_for_whole_words_and_two_for_the_sign_itself() -> None:
    assert inspect(("=con",), b"icon cone") == []
    assert len(inspect(("= con",), b"con icon")) == 1
    assert len(inspect(("==x",), b"a=x")) == 1


def test_repeated_words_and_white_space_count_once() -> None:
    assert len(inspect(("Top  Secret ", "top secret"), b"TOP SECRET")) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "there are no keywords"),
        (("a", ""), "'a' has fewer than two characters; keyword '' has fewer"),
        (("=a",), "'a' has fewer than two"),
        (("x" * (WORD_LIMIT_CHARACTERS + 1),), f"more than {WORD_LIMIT_CHARACTERS} characters"),
        (tuple(f"word {number}" for number in range(WORDS_LIMIT + 1)), f"more than {WORDS_LIMIT}"),
    ],
)
def test_words_that_cannot_be_looked_for_are_refused(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Keywords(words)


WORDS = ("abc", "=bca", "ss", "=aß", "cab abc", "йа", "zzzz", "c", "=ca")
PIECES = ["a", "b", "c", "ab", "ABC", "s", "ß", "ẞ", " ", "й", "Йа", "z", "+", "%20", "\0", "a\0b\0c\0"]


@given(
    st.sets(st.sampled_from([word for word in WORDS if len(word) > 1]), min_size=1),
    st.lists(st.sampled_from(PIECES), max_size=60),
    st.sampled_from(["utf-8", "utf-16-le"]),
    st.data(),
)
def test_any_slicing_gives_the_same_findings(
    words: set[str], pieces: list[str], encoding: str, draw: st.DataObject
) -> None:
    content = "".join(pieces).encode(encoding)
    whole = inspect(tuple(sorted(words)), content)
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(content)), max_size=12)))
    slices = [content[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    assert inspect(tuple(sorted(words)), *slices) == whole
    assert inspect(tuple(sorted(words)), *(content[at : at + 1] for at in range(len(content)))) == whole
