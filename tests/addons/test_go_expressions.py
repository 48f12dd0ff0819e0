"""What Go means by an expression is what Hyperscan and `re` are told."""

from __future__ import annotations

import re

import pytest

from mitmsec_addons.go_expressions import for_re, ported


@pytest.mark.parametrize(
    ("go", "told"),
    [
        ("abc", "abc"),
        ("(?i)abc", "(?i:abc)"),
        ("p8e-(?i)[a-z]{3}", "p8e-(?i:[a-z]{3})"),
        ("(a(?i)b|c)d", "(a(?i:b)|(?i:c))d"),  # the flag ends with its group, and not with its alternative
        ("(?i)(?:(?-i:JIRA)|x)", "(?i:(?:(?-i:JIRA)|x))"),
        ("(?is)a(?-s).", "(?is:a(?-s:.))"),
        ("[[:alnum:]_]{2}[[:xdigit:]]", "[A-Za-z0-9_]{2}[A-Fa-f0-9]"),
        (r"[\]()|$]\$", r"[\]()|$]\$"),  # none of it means anything here
        ("[]a]", "[]a]"),
        (r"a(?:;|$)", r"a(?:;|\z)"),
        ("(?P<kid>a)|b", "(a)|b"),
    ],
)
def test_what_it_is_told_as(go: str, told: str) -> None:
    assert ported(go) == told


def test_the_end_of_the_text_is_nothing_before_its_last_line_break() -> None:
    end = re.compile(for_re(ported(r"key\\z(?:;|$)")))
    assert end.search(r"key\z")
    assert not end.search("key\\z\n")


@pytest.mark.parametrize(("go", "why"), [("(?U)a", "flag"), ("(?m)a", "flag"), ("a)", "ends"), ("(a", "does not end")])
def test_what_is_not_taken(go: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        ported(go)
