"""Two people, a quarter of an hour, once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mitmsec.core.unmasking import OPEN_S, Person, Unmasking, why_not_approved, why_not_shown

ALICE, BOB, EVE = Person(name="alice", uid=1000), Person(name="bob", uid=1001), Person(name="eve")
ASKED = Unmasking(id="r", event="e", reason="ticket 7", by=ALICE, at_s=1000)
AGREED = replace(ASKED, approved_by=BOB, approved_s=1100)
PEOPLE = st.builds(Person, name=st.sampled_from(["a", "A", "b", "c"]), uid=st.sampled_from([None, 1, 2, 3]))


@pytest.mark.parametrize(
    ("one", "by", "now_s", "why"),
    [
        (ASKED, BOB, 1000, ""),
        (ASKED, EVE, 1000 + OPEN_S, ""),
        (ASKED, BOB, 1001 + OPEN_S, "it was asked for more than 15 minutes ago"),
        (ASKED, BOB, 999, "it was asked for more than 15 minutes ago"),
        (ASKED, ALICE, 1001, "alice (uid 1000) has asked for it: another person has to agree"),
        (ASKED, Person(name="Alice"), 1001, "alice (uid 1000) has asked for it: another person has to agree"),
        (ASKED, Person(name="toor", uid=1000), 1001, "alice (uid 1000) has asked for it: another person has to agree"),
        (replace(ASKED, by=EVE), Person(name="EVE", uid=5), 1001, "eve has asked for it: another person has to agree"),
        (AGREED, EVE, 1101, "bob (uid 1001) has agreed to it already"),
    ],
)
def test_who_may_agree(one: Unmasking, by: Person, now_s: int, why: str) -> None:
    assert why_not_approved(one, by, now_s) == why


@pytest.mark.parametrize(
    ("one", "by", "now_s", "why"),
    [
        (AGREED, ALICE, 1100, ""),
        (AGREED, ALICE, 1100 + OPEN_S, ""),
        (AGREED, ALICE, 1101 + OPEN_S, "it was agreed to more than 15 minutes ago"),
        (AGREED, ALICE, 1099, "it was agreed to more than 15 minutes ago"),
        (AGREED, BOB, 1101, "alice (uid 1000) has asked for it: nobody else is shown it"),
        (AGREED, Person(name="alice"), 1101, "alice (uid 1000) has asked for it: nobody else is shown it"),
        (ASKED, ALICE, 1001, "nobody has agreed to it yet"),
        (replace(AGREED, approved_by=Person(name="ALICE")), ALICE, 1101, "who agreed is who asked"),
        (replace(AGREED, shown_s=1150), ALICE, 1151, "it has been shown once"),
    ],
)
def test_who_may_see_it(one: Unmasking, by: Person, now_s: int, why: str) -> None:
    assert why_not_shown(one, by, now_s) == why


@given(PEOPLE, PEOPLE, PEOPLE, st.integers(0, 3 * OPEN_S), st.integers(0, 3 * OPEN_S))
def test_nobody_sees_anything_without_another_one_who_agreed_in_time(
    asks: Person, agrees: Person, sees: Person, agreed_s: int, seen_s: int
) -> None:
    one = replace(ASKED, by=asks, at_s=0)
    if not why_not_approved(one, agrees, agreed_s):
        one = replace(one, approved_by=agrees, approved_s=agreed_s)
    if why_not_shown(one, sees, seen_s):
        return
    assert sees == asks
    assert agrees.name.casefold() != asks.name.casefold()
    assert agrees.uid is None or agrees.uid != asks.uid
    assert agreed_s <= OPEN_S
    assert agreed_s <= seen_s <= 2 * OPEN_S
