"""The reviewers' work over HTTP: each order is on record, in the history, and shown; unmasking takes two people."""

from __future__ import annotations

import pytest
from console_stage import Browser, Stage, done
from test_web import a_finding

from mitmsec.audit.console.desk import APPROVED_FOR, Case, State
from mitmsec.audit.console.review_pages import DEEDS, ORDERS


@pytest.fixture
def finding(the: Stage) -> str:
    return a_finding(the, 0)


def test_a_finding_is_taken_noted_dismissed_and_signed_off_by_two(the: Stage, rosa: Browser, finding: str) -> None:
    page = f"/case/{finding}"
    assert "pro…ion" in rosa.get(page).text
    for order, fields in (
        ("take", {}),
        ("note", {"text": "a <b>test</b> word"}),
        ("assign", {"to": "rosa"}),
        ("dismiss", {"reason": "expected", "text": "agreed with the owner"}),
        ("sign_off", {}),
    ):
        assert rosa.send(page, order=order, **fields).status_code == 303, order
    again = rosa.send(page, order="sign_off")
    assert (again.status_code, "somebody else" in again.text) == (409, True)
    axel = the.browser("axel")
    assert axel.send(page, order="sign_off").status_code == 303
    shown = axel.get(page).text
    assert "Closed: signed off by rosa and axel." in shown
    assert "a &lt;b&gt;test&lt;/b&gt; word" in shown
    assert done(the.reviews) == [
        ("rosa", "finding_taken"), ("rosa", "finding_noted"), ("rosa", "finding_taken"), ("rosa", "finding_dismissed"),
        ("rosa", "finding_signed_off"), ("axel", "finding_signed_off"),
    ]  # fmt: skip
    assert the.reviews[-2].people == ("rosa", "axel")
    assert [entry.operation for entry in the.desk.history(finding)][:2] == ["signed_off", "signed_off"]
    assert rosa.send(page, order="reopen", text="once more").status_code == 303
    known = the.desk.case(finding)
    assert known is not None
    assert known.state is State.IN_REVIEW


def test_what_was_redacted_is_seen_once_by_who_asked_once_somebody_else_has_approved(the: Stage) -> None:
    page = f"/case/{a_finding(the, 1)}"
    rosa, rita, axel = (the.browser(name) for name in ("rosa", "rita", "axel"))
    assert "promotion-4711" not in rosa.get(page).text
    assert rosa.send(page, order="see").status_code == 409
    assert rosa.send(page, order="ask", text="is it a customer's?").status_code == 303
    assert rosa.send(page, order="approve").status_code == 403
    assert "is it a customer&#39;s?" in axel.get("/approvals").text
    assert axel.send(page, order="approve").status_code == 303
    assert rita.send(page, order="see").status_code == 403
    shown = rosa.send(page, order="see")
    assert (shown.status_code, "promotion-4711-in-full" in shown.text) == (200, True)
    assert shown.headers["cache-control"] == "no-store"
    assert rosa.send(page, order="see").status_code == 409
    assert the.vault.opened_for == [("rosa", "axel")]
    assert done(the.reviews)[-3:] == [
        ("rosa", "finding_unmask_asked"), ("axel", "finding_unmask_approved"), ("rosa", "finding_unmasked"),
    ]  # fmt: skip
    assert the.reviews[-1].people == ("rosa", "axel") or the.reviews[-1].operation.endswith("_opened")
    assert rosa.send(page, order="ask", text="again").status_code == 303
    assert axel.send(page, order="refuse", text="no").status_code == 303
    assert rosa.send(page, order="ask", text="third").status_code == 303
    axel.send(page, order="approve")
    the.now += APPROVED_FOR * 1.1
    assert rosa.send(page, order="see").status_code == 409


def test_the_queue_shows_what_is_to_do_and_the_rest_by_state(the: Stage, rosa: Browser) -> None:
    name = a_finding(the, 2)
    assert f"/case/{name}" in rosa.get("/queue").text
    assert f"/case/{name}" in rosa.get("/queue?state=open").text
    assert f"/case/{name}" not in rosa.get("/queue?state=dismissed").text
    assert f"/case/{name}" not in rosa.get("/queue?severity=low").text
    rosa.send(f"/case/{name}", order="take")
    assert f"/case/{name}" not in rosa.get("/queue?state=open").text
    assert f"/case/{name}" in rosa.get("/queue?assignee=rosa").text
    assert (
        rosa.send("/queue", chosen=[name], reason="false_positive", text="bulk").headers["location"]
        == "/queue?said=dismissed"
    )
    assert f"/case/{name}" not in rosa.get("/queue").text
    assert f"/case/{name}" in rosa.get("/queue?state=dismissed").text
    assert rosa.get("/queue?state=nonsense").status_code == 200


def test_what_is_no_order_does_nothing(the: Stage, rosa: Browser, finding: str) -> None:
    page = f"/case/{finding}"
    before = the.desk.case(finding)
    assert rosa.send(page, order="delete").status_code == 400
    assert rosa.send(page, order="dismiss", reason="because").status_code == 400
    assert rosa.send("/queue", reason="test").status_code == 400
    assert rosa.send("/queue", chosen=["0"], reason="test").status_code == 404
    assert rosa.get("/case/0").status_code == 404, "an event's number is no finding's id"
    assert the.desk.case(finding) == before
    assert the.browser("vera").send(page, order="note", text="x").status_code == 403
    assert set(DEEDS) == set(ORDERS)


def test_a_finding_that_matters_less_needs_one_signature(the: Stage, rosa: Browser) -> None:
    name = a_finding(the, 1)
    rosa.send(f"/case/{name}", order="escalate", text="look")
    rosa.send(f"/case/{name}", order="sign_off")
    known = the.desk.case(name)
    assert isinstance(known, Case)
    assert (known.people, known.is_closed) == (1, True)
