"""Every page refuses who may not see it; every form wants its token; sessions end; nothing is shown unrecorded."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from datetime import timedelta

import pytest
from console_stage import Browser, Stage

from mitmsec.audit.console.desk_store import ABSOLUTE, IDLE
from mitmsec.audit.console.duty import PERMITS, Deed, Duty
from mitmsec.audit.console.rendering import STATIC
from mitmsec.audit.console.web import LOOKS_LIMIT, Looks, Place

WHO = {Duty.VIEWER: "vera", Duty.REVIEWER: "rosa", Duty.APPROVER: "axel", Duty.ADMINISTRATOR: "anna"}


def address(place: Place, finding: str) -> str:
    path = place.path.replace("{number}", "0").replace("{connection}", "flow-1").replace("{event}", finding)
    assert "{" not in path
    return path


@pytest.fixture
def finding(the: Stage) -> str:
    return a_finding(the)


def a_finding(the: Stage, number: int = 0) -> str:
    """The id of a finding in the log."""
    from mitmsec.audit.criteria import Filter
    from mitmsec.audit.event import Kind
    from mitmsec.audit.review import opened

    with opened(the.log.folder) as review:
        return str(list(review.events(Filter(kind=Kind.FINDING)))[number]["id"])


@pytest.mark.parametrize("duty", Duty)
def test_each_page_is_for_those_who_may_and_for_nobody_else(the: Stage, finding: str, duty: Duty) -> None:
    """A form without its fields is answered with 400 where one may send it, and changes nothing."""
    browser, checked = the.browser(WHO[duty]), 0
    for place in the.console.places:
        if place.deed is None or (place.path == "/health" and place.method == "POST"):
            continue
        where = address(place, finding)
        found = browser.get(where) if place.method == "GET" else browser.send(where)
        if place.deed in PERMITS[duty]:
            assert found.status_code in (200, 400) if place.method == "POST" else found.status_code == 200, where
        else:
            assert found.status_code == 403, where
            assert "Not for this role" in found.text
        checked += 1
    assert checked > 18


def test_who_has_not_signed_in_gets_nothing_but_the_notice_and_the_way_in(the: Stage, finding: str) -> None:
    stranger = the.browser()
    for place in the.console.places:
        where = address(place, finding)
        found = stranger.get(where) if place.method == "GET" else stranger.send(where)
        if not place.signed_in:
            assert found.status_code in (200, 303, 403), where
        elif place.method == "GET":
            assert (found.status_code, found.headers["location"]) == (303, "/sign-in"), where
        else:
            assert found.status_code == 403, where
        assert "example.com" not in found.text
    assert stranger.get("/").headers["location"] == "/sign-in"
    assert [place.path for place in the.console.places if not place.signed_in] == [
        "/",
        "/notice",
        "/sign-in",
        "/sign-in",
    ]


def test_a_form_without_the_sessions_token_does_nothing(the: Stage, rosa: Browser, finding: str) -> None:
    other = the.browser("rosa")
    for csrf in ("", "x", other.csrf):
        found = rosa.client.post(f"/case/{finding}", data={"csrf": csrf, "order": "note", "text": "forged"})
        assert found.status_code == 400
    assert rosa.client.post(f"/case/{finding}", content=b"\xff=%ff").status_code == 400
    assert rosa.client.post("/queue", content=b"a=" + b"x" * (200 << 10)).status_code == 400
    assert rosa.client.post("/queue", content=b"a=1&" * 700).status_code == 400
    assert the.desk.case(finding) is None
    elsewhere = rosa.client.post("/sign-out", data={"csrf": rosa.csrf}, headers={"origin": "http://evil.example"})
    assert elsewhere.status_code == 403
    assert rosa.get("/overview").status_code == 200


def test_a_session_ends_when_it_is_idle_and_when_it_is_old(the: Stage) -> None:
    browser, began = the.browser("vera"), the.now
    the.now = began + IDLE - timedelta(seconds=1)
    assert browser.get("/events").status_code == 200
    the.now += IDLE + timedelta(seconds=1)
    assert browser.get("/events").status_code == 303
    assert the.desk.session(browser.token, began) is None
    kept, the.now = the.browser("vera"), the.now
    began = the.now
    while the.now - began < ABSOLUTE - timedelta(minutes=20):
        the.now += timedelta(minutes=20)
        assert kept.get("/views").status_code == 200
    the.now += timedelta(minutes=21)
    assert kept.get("/views").status_code == 303


def test_a_page_that_looks_by_itself_keeps_no_session_alive(the: Stage) -> None:
    browser, began = the.browser("vera"), the.now
    while the.now - began < IDLE:
        the.now += timedelta(minutes=5)
        assert browser.get("/events/newer?after=0").status_code == 200
    the.now += timedelta(minutes=1)
    assert browser.get("/events/newer?after=0").status_code == 303


def test_who_sends_a_form_is_judged_when_it_is_here(the: Stage, finding: str) -> None:
    """Not when its head came: by then he may be nobody any more."""
    vera = the.browser("vera")

    def slowly() -> Iterator[bytes]:
        yield f"csrf={vera.csrf}&order=".encode()
        the.desk.end_sessions("vera")
        yield b"ask&text=mine"

    headers = {"content-type": "application/x-www-form-urlencoded"}
    assert vera.client.post(f"/case/{finding}", content=slowly(), headers=headers).status_code == 403


def test_a_number_that_no_event_has_is_told(the: Stage, rosa: Browser) -> None:
    for number in ("9" * 5000, "x", "-1"):
        assert rosa.get(f"/event/{number}").status_code == 404


def test_what_is_typed_in_place_of_a_name_is_on_no_record(the: Stage) -> None:
    the.browser().send("/sign-in", name="my password", password="x")
    assert "my password" not in str(the.reviews)


def test_only_the_hash_of_a_sessions_token_is_kept(the: Stage) -> None:
    token = the.browser("rosa").token
    content = (the.log.folder.parent / "review" / "desk.db").read_bytes()
    assert token.encode() not in content
    assert hashlib.sha256(token.encode()).hexdigest().encode() in content


def test_what_cannot_be_recorded_is_not_shown_and_not_done(the: Stage, finding: str) -> None:
    browser = the.browser("rita")
    the.takes = False
    for where in ("/event/0", "/connection/flow-1", f"/case/{finding}", "/events?text=example"):
        found = browser.get(where)
        assert (found.status_code, "api.example.com" in found.text) == (503, False), where
    assert browser.send(f"/case/{finding}", order="note", text="lost").status_code == 503
    assert browser.send("/export").status_code == 503
    assert the.desk.history(finding) == []
    the.takes = True
    assert browser.get("/event/0").status_code == 200
    assert [(one.user, one.operation) for one in the.reviews] == [("rita", "event_opened")]
    browser.get("/event/0")
    assert len(the.reviews) == 1, "a second look of the same session is the same look"


def test_looks_of_long_ago_are_recorded_again() -> None:
    looks = Looks()
    for number in range(LOOKS_LIMIT + 1):
        looks.note(("s", str(number)))
    assert not looks.knows(("s", "0"))
    assert looks.knows(("s", "1"))


def test_pages_run_and_load_nothing_that_did_not_come_from_here(the: Stage, rosa: Browser, finding: str) -> None:
    for where in ("/overview", "/events", "/queue", f"/case/{finding}", "/connection/flow-1", "/health", "/notice"):
        found = rosa.get(where)
        assert found.headers["content-security-policy"].startswith("default-src 'none'")
        text = found.text
        assert not re.search(r"<script(?! src=\"/static/)|<style|\son\w+=|\sstyle=|javascript:", text), where
        assert set(re.findall(r"(?:src|href|action)=\"(\w+:|//)", text)) == set(), where


def test_htmx_is_the_file_that_was_published(the: Stage) -> None:
    """As mitmsec/audit/console/static/THIRD-PARTY.md says."""
    content = (STATIC / "htmx.min.js").read_bytes()
    noted = (STATIC / "THIRD-PARTY.md").read_text()
    assert hashlib.sha256(content).hexdigest() in noted
    served = the.browser().get("/static/htmx.min.js")
    assert served.content == content
    assert served.headers["content-type"].startswith("text/javascript")


@pytest.mark.parametrize(
    "path", ["/static/none.js", "/static/THIRD-PARTY.md", "/static/..%2fweb.py", "/nothing", "/event/x"]
)
def test_what_is_not_there_is_told(the: Stage, path: str) -> None:
    assert the.browser("vera").get(path).status_code == 404


def test_a_page_that_takes_no_form_takes_none(the: Stage) -> None:
    assert the.browser("vera").send("/overview").status_code == 405


def test_a_log_that_cannot_be_read_is_told_on_the_page(the: Stage) -> None:
    browser, folder = the.browser("vera"), the.ground.log
    the.ground.log = folder / "elsewhere"
    try:
        found = browser.get("/overview")
    finally:
        the.ground.log = folder
    assert found.status_code == 503
    assert "The log cannot be read" in found.text


def test_no_page_is_for_a_deed_that_nobody_has() -> None:
    assert set(Deed) == set().union(*PERMITS.values())
