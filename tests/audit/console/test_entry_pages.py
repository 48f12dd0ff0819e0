"""Signing in: with a one-time password first, slowly when guessing, always on record."""

from __future__ import annotations

import httpx
from console_stage import PASSWORD, Browser, Stage, done

from mitmsec.audit.console.duty import Duty
from mitmsec.audit.console.entry_pages import Entry
from mitmsec.audit.console.throttle import FREE_TRIES, Throttle

NEW = "another four plain words"


def sign_in(browser: Browser, name: str, password: str) -> httpx.Response:
    return browser.send("/sign-in", name=name, password=password)


def test_the_first_sign_in_leads_to_a_password_of_ones_own(the: Stage) -> None:
    the.account("nora", Duty.REVIEWER, must_change=True)
    browser = the.browser()
    found = sign_in(browser, "nora", PASSWORD)
    assert (found.status_code, found.headers["location"]) == (303, "/overview")
    cookie = found.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    browser.token = browser.client.cookies["mitmsec"]
    assert browser.get("/overview").headers["location"] == "/password"
    assert browser.get("/events").headers["location"] == "/password"
    session = the.desk.session(browser.token, the.now)
    assert session is not None
    browser.csrf = session[0].csrf
    for old, new, again, why in (
        (PASSWORD, NEW, "other", "the two are not the same"),
        (PASSWORD, PASSWORD, PASSWORD, "that is the old one"),
        (PASSWORD, "short", "short", "a password has 12"),
        (PASSWORD, "nora nora nora", "nora nora nora", "too easy to guess"),
        ("not this one", NEW, NEW, "the old password is not this"),
    ):
        found = browser.send("/password", old=old, new=new, again=again)
        assert (found.status_code, why in found.text) == (400, True), why
    found = browser.send("/password", old=PASSWORD, new=NEW, again=NEW)
    assert found.headers["location"] == "/overview?said=password"
    assert browser.get("/overview").status_code == 200
    assert the.desk.session(browser.token, the.now) is None, "the session of before has ended"
    assert done(the.reviews) == [("nora", "signed_in"), ("nora", "password_changed")]


def test_guessing_is_slow_for_an_account_and_does_not_say_which_exist(the: Stage) -> None:
    the.account("hugo", Duty.VIEWER)
    browser = the.browser()
    wrong = [sign_in(browser, "hugo", f"wrong {number}") for number in range(FREE_TRIES)]
    nobody = sign_in(browser, "nobody", "x")
    assert {found.status_code for found in wrong} == {403}
    assert nobody.text == wrong[0].text
    late = sign_in(browser, "hugo", PASSWORD)
    assert late.status_code == 429
    assert int(late.headers["retry-after"]) > 5
    assert [(one.item, one.operation) for one in the.reviews] == [
        *[("hugo", "sign_in_refused")] * FREE_TRIES,
        ("unknown", "sign_in_refused"),
    ]


def test_one_address_cannot_guess_at_many_accounts(the: Stage) -> None:
    browser, entry = the.browser(), the.console.entry
    entry.by_address = Throttle(3)
    answers = [sign_in(browser, f"name-{number}", "x").status_code for number in range(4)]
    assert answers == [403, 403, 403, 429]
    assert Entry().by_address.waits_s("::1", 0.0) == 0


def test_signing_out_ends_the_session_on_both_sides(the: Stage) -> None:
    browser = the.browser("rita")
    assert browser.get("/sign-in").headers["location"] == "/overview"
    assert browser.get("/password").status_code == 200
    assert browser.get("/").headers["location"] == "/overview"
    found = browser.send("/sign-out")
    assert found.headers["location"] == "/sign-in"
    assert 'mitmsec=""' in found.headers["set-cookie"]
    assert the.desk.session(browser.token, the.now) is None
    assert done(the.reviews) == [("rita", "signed_out")]
