"""Cases: each order in each state, by each role; and what no row of orders can lead to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.audit.console.desk import (
    APPROVED_FOR,
    Approve,
    Ask,
    Assign,
    Case,
    Dismiss,
    Escalate,
    Note,
    Order,
    Reason,
    Refusal,
    Refuse,
    Reopen,
    See,
    Showing,
    SignOff,
    State,
    Step,
    step,
)
from mitmsec.audit.console.duty import PERMITS, Deed, Duty, Person, is_name

ROSA, RITA = (Person(name=name, duty=Duty.REVIEWER) for name in ("rosa", "rita"))
AXEL, ADA = (Person(name=name, duty=Duty.APPROVER) for name in ("axel", "ada"))
VERA, ANNA = Person(name="vera", duty=Duty.VIEWER), Person(name="anna", duty=Duty.ADMINISTRATOR)
NOW = datetime(2026, 11, 9, 10, 0, tzinfo=UTC)
OPEN = Case(event="e1", people=2)


def after(*orders: tuple[Person, Order], case: Case = OPEN) -> Case:
    for person, order in orders:
        done = step(case, order, person, NOW)
        assert isinstance(done, Step), done
        case = done.case
    return case


DISMISSED = after((ROSA, Dismiss(reason=Reason.EXPECTED)))
ESCALATED = after((ROSA, Escalate(text="tell the owner")))
HALF = after((ROSA, SignOff()), case=DISMISSED)
CLOSED = after((ROSA, SignOff()), (AXEL, SignOff()), case=DISMISSED)
ASKED = after((ROSA, Ask(why="is it a customer's?")))
APPROVED = after((AXEL, Approve()), case=ASKED)
SEEN = after((ROSA, See()), case=APPROVED)


def test_taking_a_case_puts_it_in_review_and_giving_it_back_opens_it() -> None:
    taken = step(OPEN, Assign(to="rosa"), ROSA, NOW)
    assert isinstance(taken, Step)
    assert (taken.operation, taken.detail, taken.case.state, taken.case.assignee) == (
        "taken",
        "rosa",
        State.IN_REVIEW,
        "rosa",
    )
    given_to = step(taken.case, Assign(to="rita"), ROSA, NOW)
    assert isinstance(given_to, Step)
    assert (given_to.operation, given_to.case.assignee) == ("assigned", "rita")
    back = after((RITA, Assign(to="")), case=given_to.case)
    assert (back.state, back.assignee) == (State.OPEN, "")
    assert after((RITA, Assign(to="rita")), case=ESCALATED).state is State.ESCALATED


def test_each_step_says_when_and_what_goes_on_record() -> None:
    done = step(OPEN, Dismiss(reason=Reason.FALSE_POSITIVE, text=" a test card \n"), ROSA, NOW)
    assert isinstance(done, Step)
    assert (done.operation, done.detail) == ("dismissed", "false_positive: a test card")
    assert (done.case.reason, done.case.assignee) == (Reason.FALSE_POSITIVE, "rosa")
    assert done.case.changed == "2026-11-09T10:00:00+00:00"
    noted = step(OPEN, Note(text="x" * 5000), ROSA, NOW)
    assert isinstance(noted, Step)
    assert (noted.case.notes, len(noted.detail)) == (1, 2000)
    seen = step(APPROVED, See(), ROSA, NOW)
    assert isinstance(seen, Step)
    assert (seen.operation, seen.people) == ("unmasked", ("rosa", "axel"))


def test_two_people_sign_off_and_the_case_is_closed() -> None:
    first = after((ROSA, SignOff()), case=DISMISSED)
    assert not first.is_closed
    assert CLOSED.is_closed
    assert CLOSED.signed == ("rosa", "axel")
    reopened = after((RITA, Reopen(text="it came again")), case=CLOSED)
    assert (reopened.state, reopened.signed, reopened.reason) == (State.IN_REVIEW, (), None)
    assert after((ROSA, Dismiss(reason=Reason.TEST)), (ROSA, SignOff()), case=Case(event="e2")).is_closed


def test_a_decision_that_changes_needs_new_signatures() -> None:
    half = after((ROSA, SignOff()), case=DISMISSED)
    assert after((ROSA, Escalate(text="no, it is real")), case=half).signed == ()


REFUSED = [
    (CLOSED, Assign(to="rita"), ROSA, "this case is closed; reopen it first"),
    (CLOSED, Dismiss(reason=Reason.TEST), ROSA, "this case is closed; reopen it first"),
    (CLOSED, Escalate(text="x"), ROSA, "this case is closed; reopen it first"),
    (CLOSED, SignOff(), ADA, "everybody who must has signed it off"),
    (OPEN, SignOff(), ROSA, "dismiss or escalate it first"),
    (OPEN, Reopen(text="x"), ROSA, "this case is open"),
    (DISMISSED, Reopen(text=" "), ROSA, "say why in a few words"),
    (OPEN, Note(text="\n "), ROSA, "say why in a few words"),
    (OPEN, Escalate(text=""), ROSA, "say why in a few words"),
    (OPEN, Ask(why=""), ROSA, "say why in a few words"),
    (ASKED, Refuse(text=""), AXEL, "say why in a few words"),
    (OPEN, Assign(to="<b>"), ROSA, "that is no account's name"),
    (HALF, SignOff(), ROSA, "you have signed it off; the second signature is somebody else's"),
    (OPEN, Approve(), AXEL, "nobody has asked"),
    (OPEN, See(), ROSA, "nobody has asked"),
    (ASKED, See(), ROSA, "it is not approved"),
    (ASKED, Ask(why="x"), RITA, "rosa has asked already"),
    (APPROVED, Ask(why="x"), RITA, "rosa has asked already"),
    (APPROVED, Approve(), ADA, "nobody waits for that any more"),
    (SEEN, See(), ROSA, "it was shown, once"),
]  # fmt: skip


@pytest.mark.parametrize(("case", "order", "person", "why"), REFUSED)
def test_what_does_not_fit_the_state_is_refused_with_the_reason(
    case: Case, order: Order, person: Person, why: str
) -> None:
    assert step(case, order, person, NOW) == Refusal(why=why)


@pytest.mark.parametrize(
    ("case", "order", "person"),
    [
        (after((AXEL, Ask(why="x"))), Approve(), AXEL),
        (after((AXEL, Ask(why="x"))), Refuse(text="x"), AXEL),
        (APPROVED, See(), RITA),
        (APPROVED, See(), AXEL),
        (ASKED, Approve(), ROSA),
        (ASKED, Refuse(text="x"), RITA),
        *((OPEN, order, who) for who in (VERA, ANNA) for order in (Note(text="x"), Ask(why="x"), Assign(to="vera"))),
        (ASKED, Approve(), ANNA),
    ],
)
def test_who_may_not_is_told_that(case: Case, order: Order, person: Person) -> None:
    done = step(case, order, person, NOW)
    assert isinstance(done, Refusal)
    assert done.forbidden


def test_an_approval_holds_for_a_while_and_then_may_be_asked_for_again() -> None:
    late = NOW + APPROVED_FOR + timedelta(seconds=1)
    before = NOW - timedelta(minutes=1)  # by a clock that was put back
    for at in (late, before):
        assert step(APPROVED, See(), ROSA, at) == Refusal(why="the approval is too old; ask again")
    again = step(APPROVED, Ask(why="still"), RITA, late)
    assert isinstance(again, Step)
    assert again.case.unmask is not None
    assert again.case.unmask.asked_by == "rita"


def test_a_refusal_is_on_record_with_its_reason_and_another_may_ask() -> None:
    refused = step(ASKED, Refuse(text="not needed"), AXEL, NOW)
    assert isinstance(refused, Step)
    assert (refused.operation, refused.detail, refused.people) == ("unmask_refused", "not needed", ("rosa",))
    assert isinstance(step(refused.case, Ask(why="but it is"), RITA, NOW), Step)


PEOPLE = st.sampled_from([ROSA, RITA, AXEL, ADA, VERA, ANNA])
ORDERS = st.sampled_from(
    [
        Assign(to="rosa"), Assign(to=""), Note(text="n"), Dismiss(reason=Reason.TEST), Escalate(text="e"),
        Reopen(text="r"), SignOff(), Ask(why="w"), Approve(), Refuse(text="n"), See(),
    ]
)  # fmt: skip


@given(st.lists(st.tuples(PEOPLE, ORDERS), max_size=40), st.integers(1, 2))
def test_whatever_is_ordered_two_people_sign_and_two_people_unmask(
    rows: list[tuple[Person, Order]], people: int
) -> None:
    case = Case(event="e", people=people)
    for person, order in rows:
        done = step(case, order, person, NOW)
        if isinstance(done, Refusal):
            continue
        if isinstance(order, See):
            before = case.unmask
            assert before is not None
            assert before.state is Showing.APPROVED
            assert before.asked_by == person.name
            assert before.decided_by not in ("", person.name)
            assert done.case.unmask is not None
            assert done.case.unmask.state is Showing.SEEN
        case = done.case
        assert len(set(case.signed)) == len(case.signed) <= people
        assert not (case.signed and case.state in (State.OPEN, State.IN_REVIEW))
        assert (case.reason is not None) == (case.state is State.DISMISSED)


def test_an_administrator_gives_out_rights_and_has_none_of_them() -> None:
    assert not PERMITS[Duty.ADMINISTRATOR] & {Deed.REVIEW, Deed.ASK, Deed.APPROVE, Deed.EXPORT}
    assert [duty for duty in Duty if Deed.ADMINISTER in PERMITS[duty]] == [Duty.ADMINISTRATOR]
    assert [duty for duty in Duty if Deed.APPROVE in PERMITS[duty]] == [Duty.APPROVER]
    assert PERMITS[Duty.VIEWER] < PERMITS[Duty.REVIEWER] < PERMITS[Duty.APPROVER]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("rosa", True), ("a.b-c_1", True), ("-a", False), ("a b", False), ("ä", False), ("a" * 65, False), ("..", False)],
)
def test_names_of_accounts_are_plain(text: str, expected: bool) -> None:
    assert is_name(text) is expected
