"""The shipped lists: each says what it is for, where it comes from and when, and holds names that are comparable."""

from __future__ import annotations

import re

import pytest

from mitmsec import lists
from mitmsec.core.list_text import read_names

SHIPPED = lists.shipped()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_list_has_a_head_and_nothing_but_names(name: str) -> None:
    text = SHIPPED[name]()
    assert re.fullmatch(r".+\n\nProvenance: .+\nDate: 20\d\d-[01]\d-[0-3]\d", lists.head(text), re.DOTALL)
    found = read_names(text)
    names = found.text.split("\n")
    assert found.errors == ()
    assert 20 <= len(names) == len(set(names)) <= 400
    within = [one for one in names if any(one.endswith(f".{other}") for other in names)]
    assert within == []  # it would be there already
    assert [one for one in names if "." not in one] == []


def test_what_is_private_and_what_is_pinned_and_who_answers_dns_is_shipped() -> None:
    assert list(SHIPPED) == ["doh", "finance", "health", "identity", "messengers", "updates", "webmail"]


def test_a_head_ends_where_the_names_begin() -> None:
    assert lists.head("# a\n# b\n\n# c\nx.test") == "a\nb"
    assert lists.head("# only") == "only"
