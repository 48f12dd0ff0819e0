"""How values look: escaped, marked, in units that people read."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from mitmsec.audit.console.rendering import age, brief, environment, moment, shown, size, word

NOW = datetime(2026, 11, 9, 10, 0, tzinfo=UTC)


def test_words_of_others_are_escaped_and_isolated() -> None:
    assert shown('<b a="1">') == "<bdi>&lt;b a=&#34;1&#34;&gt;</bdi>"
    assert '<span class="mark"' in shown("a\u202eb")
    assert str(brief("x" * 100)).startswith('<span title="' + "x" * 100 + '"><bdi>' + "x" * 80 + "<span")
    assert brief("short") == "<bdi>short</bdi>"
    assert brief(None) == "<bdi></bdi>"
    assert 'title="&lt;' in brief("<" * 81)


def test_an_instant_is_utc_and_what_is_none_is_shown_as_it_is() -> None:
    text = moment("2026-11-09T11:00:00.123456+01:00")
    assert 'datetime="2026-11-09T10:00:00.123456Z"' in text
    assert 'title="2026-11-09 10:00:00 UTC"' in text
    assert moment("<yesterday>") == "<bdi>&lt;yesterday&gt;</bdi>"


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("2026-11-09T09:59:30+00:00", "now"),
        ("2026-11-09T09:15:00+00:00", "45 min"),
        ("2026-11-09T04:00:00+00:00", "6 h"),
        ("2026-11-01T00:00:00+00:00", "8 d"),
        ("nonsense", ""),
    ],
)
def test_an_age_has_one_unit(at: str, expected: str) -> None:
    assert age(at, NOW) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (2_500_000, "2.5 MB"),
        (7 * 10**12, "7000.0 GB"),
        (None, "–"),
        ("x", "–"),
    ],
)
def test_sizes(value: object, expected: str) -> None:
    assert size(value) == expected


def test_every_template_is_read_at_once_and_escapes() -> None:
    made = environment()
    assert made.autoescape is True
    assert {"base.html", "case.html", "notice.html"} <= set(made.list_templates())
    assert word("in_review") == "in review"
