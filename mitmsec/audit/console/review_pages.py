"""The reviewers' work: the queue of findings, one case, and what others ask to see."""

from __future__ import annotations

from collections.abc import Callable

from starlette.responses import Response

from mitmsec.audit.console import desk
from mitmsec.audit.console.desk import Case, Reason, Refusal, State, Step
from mitmsec.audit.console.duty import Deed
from mitmsec.audit.console.look_pages import CHOICES, ROWS, flat
from mitmsec.audit.console.visits import BadForm, NotFound, Visit
from mitmsec.audit.envelope import Fields
from mitmsec.audit.event import Kind
from mitmsec.audit.overview import findings

SEARCHED_PAGES = 40  # for findings that nobody has dealt with, in one page of the queue
TODO = "todo"
STATES = (TODO, State.OPEN, State.IN_REVIEW, State.ESCALATED, State.DISMISSED)


class Row:
    """A finding and its case."""

    def __init__(self, event: Fields, case: Case) -> None:
        self.event, self.case = event, case


async def queue(visit: Visit) -> Response:
    """Findings by the state of their case: at first those that somebody must deal with."""
    state = visit.asked("state", TODO)
    state = state if state in STATES else TODO
    assignee = visit.asked("assignee") or None
    if state in (TODO, State.OPEN) and assignee is None:
        rows, next_before = await _unfinished(visit, state)
    else:
        kept = visit.ground.desk.in_state(None if state == TODO else State(state), assignee, 4 * ROWS)
        rows, next_before = await _begun(visit, kept), None
    return visit.page(
        "queue.html",
        asked=visit.query,
        rows=rows,
        state=state,
        states=STATES,
        assignee=assignee,
        counts=visit.ground.desk.counts(),
        next_before=next_before,
        reasons=tuple(Reason),
        choices=CHOICES,
    )


async def _unfinished(visit: Visit, state: str) -> tuple[list[Row], int | None]:
    """Those that are open, with TODO also those in review, newest first."""
    shows = {State.OPEN} if state == State.OPEN else {State.OPEN, State.IN_REVIEW}
    asked, before, rows = visit.query, visit.number("before"), list[Row]()
    wanted, among = asked.filter(visit.now), asked.among()
    for _ in range(SEARCHED_PAGES):
        found = await visit.ground.asked(lambda review, at=before: findings(review, wanted, at, 4 * ROWS, among))  # type: ignore[misc]
        known = visit.ground.desk.cases(str(one["id"]) for one in found.events)
        for one in found.events:
            case = known.get(str(one["id"])) or case_of(visit, one)
            if case.state in shows:
                rows.append(Row(one, case))
            if len(rows) == ROWS:
                return rows, int(one["seq"])
        before = found.next_before
        if before is None:
            break
    return rows, before


async def _begun(visit: Visit, cases: list[Case]) -> list[Row]:
    among = visit.query.among()
    names = [case.event for case in cases]
    found = await visit.ground.asked(lambda review: {name: review.event(name) for name in names})
    pairs = [(found[case.event], case) for case in cases]
    return [Row(event, case) for event, case in pairs if event is not None and among.meets(event)]


def case_of(visit: Visit, event: Fields) -> Case:
    """That of a finding that nobody has begun with."""
    people = 2 if event.get("severity") in visit.ground.two_people else 1
    return Case(event=str(event["id"]), people=people)


async def case(visit: Visit) -> Response:
    """One finding, what has become of it, and what may be done with it."""
    return await _case(visit, visit.part("event"))


async def _case(visit: Visit, name: str, status: int = 200, why: str = "", revealed: str | None = None) -> Response:
    event = await _finding(visit, name)
    await visit.record_look("finding_opened", name)
    known = visit.ground.desk.case(name) or case_of(visit, event)
    return visit.page(
        "case.html",
        status,
        event=event,
        case=known,
        history=visit.ground.desk.history(name),
        rows=flat(event),
        reasons=tuple(Reason),
        holds=await visit.ground.vault.holds(event),
        accounts=[one.name for one in visit.ground.desk.accounts() if one.duty in ("reviewer", "approver")],
        why=why,
        revealed=revealed,
    )


async def _finding(visit: Visit, name: str) -> Fields:
    event = await visit.ground.asked(lambda review: review.event(name)) if not name.isdecimal() else None
    if event is None or event.get("kind") != Kind.FINDING:
        raise NotFound("The log has no such finding.")
    return event


ORDERS: dict[str, Callable[[Visit], desk.Order]] = {
    "take": lambda visit: desk.Assign(to=visit.person.name),
    "assign": lambda visit: desk.Assign(to=visit.form.get("to", "")),
    "note": lambda visit: desk.Note(text=visit.form.get("text", "")),
    "dismiss": lambda visit: desk.Dismiss(reason=_reason(visit), text=visit.form.get("text", "")),
    "escalate": lambda visit: desk.Escalate(text=visit.form.get("text", "")),
    "reopen": lambda visit: desk.Reopen(text=visit.form.get("text", "")),
    "sign_off": lambda visit: desk.SignOff(),
    "ask": lambda visit: desk.Ask(why=visit.form.get("text", "")),
    "approve": lambda visit: desk.Approve(),
    "refuse": lambda visit: desk.Refuse(text=visit.form.get("text", "")),
    "see": lambda visit: desk.See(),
}
DEEDS = dict.fromkeys(ORDERS, Deed.REVIEW) | {"ask": Deed.ASK, "see": Deed.ASK, "approve": Deed.APPROVE}


def _reason(visit: Visit) -> Reason:
    try:
        return Reason(visit.form.get("reason", ""))
    except ValueError:
        raise BadForm("choose why it is dismissed") from None


async def ordered(visit: Visit) -> Response:
    """What somebody does with a case. It is on record before it holds, and before anything is shown for it."""
    name, order = visit.part("event"), ORDERS.get(visit.form.get("order", ""))
    if order is None:
        raise BadForm("that is nothing that can be done")
    event = await _finding(visit, name)
    done = await _done(visit, event, order(visit))
    if isinstance(done, Refusal):
        return await _case(visit, name, 403 if done.forbidden else 409, done.why)
    if visit.form["order"] != "see":
        return visit.go(f"/case/{name}?said={done.operation}")
    asked = done.case.unmask
    assert asked is not None
    revealed = await visit.ground.vault.opened(event, asked)
    why = "It is no longer kept." if revealed is None else ""
    return await _case(visit, name, 200 if revealed is not None else 410, why, revealed)


async def _done(visit: Visit, event: Fields, order: desk.Order) -> Step | Refusal:
    async with visit.ground.ordering:
        known = visit.ground.desk.case(str(event["id"])) or case_of(visit, event)
        done = desk.step(known, order, visit.person, visit.now)
        if isinstance(done, Step):
            await visit.record(f"finding_{done.operation}", known.event, done.detail, done.people)
            visit.ground.desk.keep(done, visit.person, visit.now)
        return done


async def dismissed(visit: Visit) -> Response:
    """Several at once, each on record by itself."""
    order = desk.Dismiss(reason=_reason(visit), text=visit.form.get("text", ""))
    if not visit.chosen:
        raise BadForm("choose at least one finding")
    for name in visit.chosen[: 4 * ROWS]:
        await _done(visit, await _finding(visit, name), order)
    return visit.go("/queue?said=dismissed")


async def approvals(visit: Visit) -> Response:
    """Where somebody waits to be allowed to see what was redacted."""
    return visit.page("approvals.html", rows=await _begun(visit, visit.ground.desk.waiting()))
