"""The log's health, the public notice, saved views, accounts."""

from __future__ import annotations

import re
import time

import pytest
from console_stage import PASSWORD, Browser, Stage, done
from test_entry_pages import sign_in

from mitmsec.audit.console.duty import Duty
from mitmsec.core.notice import NO_NOTICE, Notice, Section


def test_the_log_can_be_verified_from_its_page(the: Stage, rosa: Browser) -> None:
    assert "Nobody has verified it" in rosa.get("/health").text
    assert rosa.send("/health").headers["location"] == "/health"
    until_s = time.monotonic() + 10
    while "Whole" not in (text := rosa.get("/health/progress").text) and time.monotonic() < until_s:
        time.sleep(0.05)
    assert "each as the tree over them has it, and every checkpoint signed" in text
    assert "hx-get" not in text, "it is over: nothing asks again"
    assert done(the.reviews) == [("rosa", "verification_begun")]
    shown = rosa.get("/health").text
    assert "mitmsec.log/test" in shown
    assert "to be kept elsewhere" in shown


def test_a_verification_that_fails_says_so(the: Stage, rosa: Browser) -> None:
    folder = the.ground.log
    the.ground.verification = None
    the.ground.log = folder / "none"
    try:
        rosa.send("/health")
        until_s = time.monotonic() + 10
        while "could not be verified" not in (text := rosa.get("/health/progress").text) and time.monotonic() < until_s:
            time.sleep(0.05)
    finally:
        the.ground.log, the.ground.verification = folder, None
    assert "there is no log at" in text


def test_everybody_may_read_what_is_inspected(the: Stage) -> None:
    the.ground.notice = Notice(sections=(Section(title="Which", lines=("These:", "<b>curl</b>")),), policy="ab" * 32)
    try:
        found = the.browser().get("/notice")
    finally:
        the.ground.notice = NO_NOTICE
    assert "<li><bdi>&lt;b&gt;curl&lt;/b&gt;</bdi></li>" in found.text
    assert "abababababababab…" in found.text


def test_views_are_ones_own_and_lead_nowhere_else(the: Stage, rosa: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mitmsec.audit.console.desk_store.VIEWS_LIMIT", 5)
    for address in (
        "https://evil.example/events?x",
        "//evil.example/events",
        "/sign-out?",
        "javascript:1",
        "http://[",
        "",
    ):
        assert rosa.send("/views", title="t", address=address).status_code == 400
    assert rosa.send("/views", title=" ", address="/events?kind=fault").status_code == 400
    rosa.send("/views", title="<i>faults</i>", address="/events?kind=fault")
    shown = rosa.get("/views").text
    assert 'href="/events?kind=fault"' in shown
    assert "&lt;i&gt;faults&lt;/i&gt;" in shown
    assert "kind=fault" not in the.browser("rita").get("/views").text
    (number,) = re.findall(r'name="remove" value="(\d+)"', shown)
    the.browser("rita").send("/views", remove=number)
    assert "kind=fault" in rosa.get("/views").text
    for index in range(4):
        the.desk.save_view("rosa", str(index), "/events?")
    assert rosa.send("/views", title="one more", address="/events?kind=ca").status_code == 400
    for view in the.desk.views("rosa"):
        rosa.send("/views", remove=str(view.number))
    rosa.send("/views", remove="x")
    assert the.desk.views("rosa") == []


def test_an_administrator_makes_changes_and_removes_accounts(the: Stage) -> None:
    anna = the.browser("anna")
    found = anna.send("/administration", order="add", name="otto", role="reviewer")
    (password,) = re.findall(r"<pre>(\w{5}-\w{5}-\w{5}-\w{5})</pre>", found.text)
    otto = the.browser()
    assert sign_in(otto, "otto", password).status_code == 303
    assert otto.get("/overview").headers["location"] == "/password"
    assert anna.send("/administration", order="role", name="otto", role="viewer").status_code == 303
    assert otto.get("/overview").headers["location"] == "/sign-in", "its sessions have ended"
    known = the.desk.account("otto")
    assert known is not None
    assert known.duty is Duty.VIEWER
    assert anna.send("/administration", order="password", name="otto").status_code == 200
    session = the.browser("otto")
    (token,) = [one.token for one in the.desk.sessions() if one.name == "otto"]
    assert anna.send("/administration", order="end_session", name="otto", session=token).status_code == 303
    assert session.get("/views").headers["location"] == "/sign-in"
    assert anna.send("/administration", order="remove", name="otto").status_code == 303
    assert the.desk.account("otto") is None
    assert [operation for user, operation in done(the.reviews) if user == "anna"] == [
        "account_added", "role_changed", "password_reset", "session_ended", "account_removed",
    ]  # fmt: skip


def test_what_is_wrong_in_administration_changes_nothing(the: Stage) -> None:
    anna, before = the.browser("anna"), the.desk.accounts()
    for order, fields, status in (
        ("add", {"name": "a b", "role": "viewer"}, 400),
        ("add", {"name": "rosa", "role": "viewer"}, 409),
        ("add", {"name": "otto", "role": "god"}, 400),
        ("password", {"name": "nobody"}, 409),
        ("role", {"name": "anna", "role": "approver"}, 403),
        ("remove", {"name": "anna"}, 403),
        ("explode", {"name": "rosa"}, 400),
    ):
        assert anna.send("/administration", order=order, **fields).status_code == status, order
    assert the.desk.accounts() == before
    assert PASSWORD not in anna.get("/administration").text
