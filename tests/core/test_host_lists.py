"""Lists of names: which of them hold a name, and what is left of a list whose names are elsewhere."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core import host_lists
from mitmsec.core.host_lists import HostList, Listed, is_list

A = HostList.of("@a", "bank.example\nother.test\nbank.example")
B = HostList.of("@b", "bank.example\nevil.test")
C = HostList.of("category:c", "www.bank.example\nevil.test\nother.test")
NAMES = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=4).map(".".join)


def test_a_list_is_known_by_the_hash_of_its_names() -> None:
    assert (A.count, A.size_bytes, A.sha256) == (3, len(A.text), hashlib.sha256(A.text.encode()).hexdigest())
    assert (HostList.of("@x", "").count, [*HostList.of("@x", "").names()]) == (0, [])
    assert [*A.names()] == ["bank.example", "other.test", "bank.example"]
    assert [is_list(entry) for entry in ("@a", "category:c", "a.example", "*.a")] == [True, True, False, False]


def test_every_list_that_holds_a_name_or_one_above_it_is_found() -> None:
    listed = Listed([A, B, C])
    asked = {"bank.example": "@a @b", "x.www.bank.example": "@a @b category:c", "evil.test": "@b category:c",
             "other.test": "@a category:c", "test": "", "notbank.example": ""}  # fmt: skip
    assert {name: " ".join(listed.names_of(listed.holding(name))) for name in asked} == asked
    assert listed.bits(["@a", "*.x", "category:c"]) == 0b101
    assert listed.named("@b") is B
    assert Listed(()).holding("a") == 0


def test_a_list_says_by_which_of_its_names_it_holds_another() -> None:
    listed = Listed([A, C])
    assert listed.within("x.www.bank.example", "category:c") == "www.bank.example"
    assert listed.within("x.www.bank.example", "@a") == "bank.example"
    assert listed.within("evil.test", "@a") is None


LONG = st.sampled_from([1, 3, host_lists.LONG_NAMES])


@given(st.lists(st.lists(NAMES, min_size=1, max_size=8), max_size=4), NAMES, st.sampled_from([1, 5, 1 << 19]), LONG)
def test_holding_is_what_a_search_through_every_list_finds(
    written: list[list[str]], name: str, step: int, long: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_lists, "STEP_CHARS", step)
        patch.setattr(host_lists, "LONG_NAMES", long)
        listed = Listed([HostList.of(f"@{number}", "\n".join(names)) for number, names in enumerate(written)])
        found = listed.holding(name)
    holds = [any(name == one or name.endswith(f".{one}") for one in names) for names in written]
    assert found == sum(1 << number for number, held in enumerate(holds) if held)


def test_lists_can_be_taken_in_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_lists, "STEP_CHARS", 1)
    listed = Listed([B, C])
    assert len([*listed.filling()]) == 5
    assert [*listed.filling()] == []
    assert listed.holding("evil.test") == 0b11


def test_a_list_whose_names_are_elsewhere_answers_nothing() -> None:
    assert A.reference == HostList(name="@a", count=3, size_bytes=A.size_bytes, sha256=A.sha256)
    assert (A.is_here, A.reference.is_here) == (True, False)
    listed = Listed([B, A.reference])
    for _ in range(2):
        with pytest.raises(LookupError, match="the list @a are not here"):
            listed.holding("bank.example")


@given(st.lists(st.lists(NAMES, min_size=1, max_size=8), max_size=4), st.lists(NAMES, max_size=3), NAMES, LONG)
def test_names_that_are_expected_are_answered_as_those_that_are_not(
    written: list[list[str]], expected: list[str], name: str, long: int
) -> None:
    lists = [HostList.of(f"@{number}", "\n".join(names)) for number, names in enumerate(written)]
    few, all_of_them = Listed(lists), Listed(lists)
    few.expect(expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_lists, "LONG_NAMES", long)
        for asked in [*expected, name]:
            assert few.holding(asked) == all_of_them.holding(asked)
            assert [few.within(asked, f"@{n}") for n in range(len(lists))] == [
                all_of_them.within(asked, f"@{n}") for n in range(len(lists))
            ]


def test_lists_are_not_taken_in_for_names_that_are_expected() -> None:
    listed = Listed([A, B, C])
    listed.expect(["x.www.bank.example", "evil.test"])
    assert (listed.holding("bank.example"), listed.holding("evil.test"), listed.holding("test")) == (0b11, 0b110, 0)
    assert listed.within("x.www.bank.example", "@a") == "bank.example"
    assert len([*listed.filling()]) == 3
    listed.expect(["other.test"])
    assert listed.holding("other.test") == 0b101
