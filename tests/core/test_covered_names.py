"""Which rules take every name that another takes."""

from __future__ import annotations

from itertools import product

import policies
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core.covered_names import CoveredNames
from mitmsec.core.host_lists import HostList, Listed
from mitmsec.core.model import Action
from mitmsec.core.rules import Rule
from mitmsec.core.selector import host_patterns

LISTS = Listed(
    (
        HostList.of("@big", "a.example\nb.example\nc.example"),
        HostList.of("@part", "x.a.example\nb.example"),
        HostList.of("@other", "b.example\nd.example"),
        HostList.of("category:news", "a.example"),
    )
)


def of(host: tuple[str, ...] = (), category: tuple[str, ...] = ()) -> Rule:
    return Rule(name="r", action=Action.BLOCK, host=host, category=category)


@pytest.mark.parametrize(
    ("wide", "narrow", "covers"),
    [
        (of(), of(("@big",)), True),
        (of(("@big",)), of(), False),
        (of(("@big",)), of(("@big",)), True),
        (of(("@big",)), of(("@part",)), True),
        (of(("@big",)), of(("@part", "q.b.example", "*.c.example")), True),
        (of(("@big",)), of(("@other",)), False),
        (of(("@big", "@other")), of(("@part", "@other")), True),
        (of(("@part",)), of(("@big",)), False),
        (of(("*.example",)), of(("@big",)), True),
        (of(("*.a.example",)), of(category=("news",)), False),
        (of(("*.a.example", "a.example")), of(category=("news",)), True),
        (of(category=("news",)), of(("x.a.example",)), True),
        (of(category=("news",)), of(("b.example",), category=("news",)), True),
        (of(("@big",), category=("news",)), of(("@part",)), False),
        (of(("@big",), category=("news",)), of(("b.example",), category=("news",)), True),
    ],
)
def test_names_within_names(wide: Rule, narrow: Rule, covers: bool) -> None:
    asked = CoveredNames(LISTS)
    assert [asked.covers(wide, narrow) for _ in range(2)] == [covers, covers]


def takes(rule: Rule, lists: Listed, name: str) -> bool:
    holding = lists.names_of(lists.holding(name))
    by_host = not rule.host or not {*host_patterns(name), *holding}.isdisjoint(rule.host)
    return by_host and (not rule.category or not set(rule.categories).isdisjoint(holding))


@given(st.lists(policies.rules, min_size=2, max_size=2))
def test_who_covers_takes_every_name_and_is_found_by_a_clue(rules: list[Rule]) -> None:
    wide, narrow = rules
    lists = Listed(policies.LISTS)
    asked = CoveredNames(lists)
    if not asked.covers(wide, narrow):
        return
    names = [f"{below}{name}" for below, name in product(("", "y."), (*policies.NAMES, "nobody.test"))]
    assert not [name for name in names if takes(narrow, lists, name) and not takes(wide, lists, name)]
    assert not wide.asks_name or not set(asked.clues(narrow)).isdisjoint((*wide.host, *wide.categories))
