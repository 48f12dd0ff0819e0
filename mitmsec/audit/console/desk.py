"""What becomes of a finding: its case, and each step that somebody takes with it.

    open ──take──► in review ──dismiss(why)──► dismissed ─┐
      ▲                │                                  ├─ sign off (by one person, or two) ─► closed
      └───reopen───────┴──────escalate───────► escalated ─┘

    ask to see ──► asked ──approve (somebody else)──► approved ──see (who asked, once, in time)──► seen
                     └────refuse────────────────────► refused

Pure: a case, an order, who gives it and when ──► the case as it is then and what goes on record, or why not. An order
takes effect once it is on record.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import assert_never

from msgspec.structs import replace

from mitmsec.audit.console.duty import Deed, Person, is_name
from mitmsec.core.model import Value

APPROVED_FOR = timedelta(minutes=15)
TEXT_LIMIT_CHARACTERS = 2000


class State(StrEnum):
    """Of a case."""

    DISMISSED = "dismissed"
    ESCALATED = "escalated"
    IN_REVIEW = "in_review"
    OPEN = "open"


class Reason(StrEnum):
    """Why a finding is dismissed."""

    ACCEPTED_RISK = "accepted_risk"
    DUPLICATE = "duplicate"
    EXPECTED = "expected"  # so it is meant to be
    FALSE_POSITIVE = "false_positive"
    TEST = "test"


class Showing(StrEnum):
    """How far a request to see what was redacted has come."""

    APPROVED = "approved"
    ASKED = "asked"
    REFUSED = "refused"
    SEEN = "seen"


class Unmask(Value, frozen=True):
    """Such a request."""

    asked_by: str
    why: str
    state: Showing = Showing.ASKED
    decided_by: str = ""
    decided_at: str = ""  # RFC 3339


class Case(Value, frozen=True):
    """One finding under review. `event` is its id in the log."""

    event: str
    people: int = 1  # who must sign it off
    state: State = State.OPEN
    reason: Reason | None = None
    assignee: str = ""
    signed: tuple[str, ...] = ()
    unmask: Unmask | None = None
    notes: int = 0
    changed: str = ""  # RFC 3339

    @property
    def is_closed(self) -> bool:
        """Everybody who must has signed it off."""
        return len(self.signed) >= self.people


# --- orders -----------------------------------------------------------------------------------------------------------
class Assign(Value, frozen=True):
    """To oneself, or somebody else; nobody: empty."""

    to: str


class Note(Value, frozen=True):
    text: str


class Dismiss(Value, frozen=True):
    reason: Reason
    text: str = ""


class Escalate(Value, frozen=True):
    text: str


class Reopen(Value, frozen=True):
    text: str


class SignOff(Value, frozen=True):
    pass


class Ask(Value, frozen=True):
    """To see what was redacted."""

    why: str


class Approve(Value, frozen=True):
    pass


class Refuse(Value, frozen=True):
    text: str


class See(Value, frozen=True):
    """What somebody else has approved; once."""


type Order = Assign | Note | Dismiss | Escalate | Reopen | SignOff | Ask | Approve | Refuse | See


class Step(Value, frozen=True):
    """What was done: the case as it is then, and what goes on record."""

    case: Case
    operation: str  # as the log has it
    detail: str = ""
    people: tuple[str, ...] = ()  # who else has a part in it


class Refusal(Value, frozen=True):
    """Nothing was done. `forbidden`: whoever it is may not."""

    why: str
    forbidden: bool = False


def step(case: Case, order: Order, person: Person, now: datetime) -> Step | Refusal:
    """What comes of an order."""
    if not person.may(_deed(order)):
        return Refusal(why=f"this is not for a {person.duty}", forbidden=True)
    done = _done(case, order, person, now)
    if isinstance(done, Step):
        return replace(done, case=replace(done.case, changed=now.isoformat(timespec="seconds")))
    return done


def _deed(order: Order) -> Deed:
    match order:
        case Ask() | See():
            return Deed.ASK
        case Approve() | Refuse():
            return Deed.APPROVE
        case _:
            return Deed.REVIEW


def _done(case: Case, order: Order, person: Person, now: datetime) -> Step | Refusal:
    match order:
        case Note(text=text):
            words = _words(text)
            return Step(case=replace(case, notes=case.notes + 1), operation="noted", detail=words) if words else _SAY
        case Ask() | Approve() | Refuse() | See():
            return _unmasked(case, order, person, now)
        case SignOff():
            return _signed(case, person)
        case Reopen(text=text):
            return _reopened(case, _words(text))
        case Assign() | Dismiss() | Escalate() if case.is_closed:
            return Refusal(why="this case is closed; reopen it first")
        case Assign(to=to):
            return _assigned(case, to, person)
        case Dismiss(reason=reason, text=text):
            case = replace(case, state=State.DISMISSED, reason=reason, signed=(), assignee=case.assignee or person.name)
            return Step(case=case, operation="dismissed", detail=": ".join(filter(None, (reason, _words(text)))))
        case Escalate(text=text):
            if not (words := _words(text)):
                return _SAY
            case = replace(case, state=State.ESCALATED, reason=None, signed=(), assignee=case.assignee or person.name)
            return Step(case=case, operation="escalated", detail=words)
        case _:
            assert_never(order)


_SAY = Refusal(why="say why in a few words")


def _words(text: str) -> str:
    return text.strip()[:TEXT_LIMIT_CHARACTERS]


def _assigned(case: Case, to: str, person: Person) -> Step | Refusal:
    if to and not is_name(to):
        return Refusal(why="that is no account's name")
    state = case.state
    if state in (State.OPEN, State.IN_REVIEW):
        state = State.IN_REVIEW if to else State.OPEN
    case = replace(case, assignee=to, state=state)
    return Step(case=case, operation="taken" if to == person.name else "assigned", detail=to or "nobody")


def _reopened(case: Case, text: str) -> Step | Refusal:
    if case.state not in (State.DISMISSED, State.ESCALATED):
        return Refusal(why="this case is open")
    if not text:
        return _SAY
    return Step(case=replace(case, state=State.IN_REVIEW, reason=None, signed=()), operation="reopened", detail=text)


def _signed(case: Case, person: Person) -> Step | Refusal:
    if case.state not in (State.DISMISSED, State.ESCALATED):
        return Refusal(why="dismiss or escalate it first")
    if case.is_closed:
        return Refusal(why="everybody who must has signed it off")
    if person.name in case.signed:
        return Refusal(why="you have signed it off; the second signature is somebody else's")
    case = replace(case, signed=(*case.signed, person.name))
    return Step(case=case, operation="signed_off", detail=f"{len(case.signed)} of {case.people}", people=case.signed)


def _unmasked(case: Case, order: Ask | Approve | Refuse | See, person: Person, now: datetime) -> Step | Refusal:
    asked = case.unmask
    match order:
        case Ask(why=why):
            if asked is not None and asked.state in (Showing.ASKED, Showing.APPROVED) and not _is_late(asked, now):
                return Refusal(why=f"{asked.asked_by} has asked already")
            if not (words := _words(why)):
                return _SAY
            unmask = Unmask(asked_by=person.name, why=words)
            return Step(case=replace(case, unmask=unmask), operation="unmask_asked", detail=words)
        case _ if asked is None:
            return Refusal(why="nobody has asked")
        case Approve() | Refuse():
            return _judged(case, asked, order, person, now)
        case See():
            if asked.asked_by != person.name:
                return Refusal(why=f"it was approved for {asked.asked_by}, and is for nobody else", forbidden=True)
            if asked.state is not Showing.APPROVED:
                return Refusal(why="it is not approved" if asked.state is not Showing.SEEN else "it was shown, once")
            if _is_late(asked, now):
                return Refusal(why="the approval is too old; ask again")
            seen = replace(case, unmask=replace(asked, state=Showing.SEEN))
            people = (asked.asked_by, asked.decided_by)
            return Step(case=seen, operation="unmasked", detail=asked.why, people=people)
        case _:
            assert_never(order)


def _judged(case: Case, asked: Unmask, order: Approve | Refuse, person: Person, now: datetime) -> Step | Refusal:
    if asked.state is not Showing.ASKED:
        return Refusal(why="nobody waits for that any more")
    if asked.asked_by == person.name:
        return Refusal(why="somebody else must decide on what you have asked for", forbidden=True)
    said = "" if isinstance(order, Approve) else _words(order.text)
    if isinstance(order, Refuse) and not said:
        return _SAY
    state = Showing.APPROVED if isinstance(order, Approve) else Showing.REFUSED
    at = now.isoformat(timespec="seconds")
    case = replace(case, unmask=replace(asked, state=state, decided_by=person.name, decided_at=at))
    return Step(case=case, operation=f"unmask_{state}", detail=said or asked.why, people=(asked.asked_by,))


def _is_late(asked: Unmask, now: datetime) -> bool:
    """Also where it is of a time to come: a clock that was put back opens nothing."""
    if asked.state is not Showing.APPROVED:
        return False
    return not timedelta(0) <= now - datetime.fromisoformat(asked.decided_at) <= APPROVED_FOR
