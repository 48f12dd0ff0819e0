"""The console in a real browser: words of attackers in every field, and one review case by two people.

Chromium is Debian's, driven by Playwright; where one of them is missing, these are skipped.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from audit_events import SIGNER
from console_stage import NOW, PASSWORD, Stage, later
from test_review_pages import a_finding

from mitmsec.audit.bundle import Sound, check
from mitmsec.audit.bundle_file import read
from mitmsec.audit.criteria import Filter
from mitmsec.audit.event import Kind
from mitmsec.audit.review import opened
from mitmsec.seal import checks

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is in requirements/dev.txt")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed (apt-get install chromium)")

HOSTILE = {
    "script": "<script>document.title='pwned'</script>",
    "handler": "\"'><img src=x onerror=\"document.title='pwned'\">",
    "scheme": "javascript:document.title='pwned'",
    "template": "{{ 7*7 }}{% raw %}${7*7}",
    "escape": "\x1b]0;pwned\x07\x1b[2J\x1b[31mred",
    "bidi": "invoice\u202egpj.exe\u2066x\u2069",
    "unseen": "a\u200bdmin\ufeff\u00ad",
    "formula": "=HYPERLINK(\"http://evil.example\",\"x\")",
    "lines": "one\r\ntwo\x00three",
    "long": "A" * 5000 + "/" + "é" * 300,
}  # fmt: skip
TEXT = " ".join(HOSTILE.values())  # all in each field: pages take their time
PAGES = ("/overview", "/events", "/queue", "/export", "/views")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )  # the suite is root
        yield browser
        browser.close()


type Opened = Callable[[str], Any]


@pytest.fixture
def as_person(chromium: Any, the: Stage) -> Iterator[Opened]:
    """A page of a browser of its own, in which that person has signed in by hand."""
    contexts, said = [], []

    def signed_in(name: str) -> Any:
        context = chromium.new_context(base_url=f"http://{the.host}", accept_downloads=True)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if the.host not in request.url else None)
        page.goto("/sign-in")
        page.get_by_label("Name").fill(name)
        page.get_by_label("Password").fill(PASSWORD)
        page.keyboard.press("Enter")
        page.wait_for_url("**/overview")
        return page

    yield signed_in
    for context in contexts:
        context.close()
    assert said == [], "nothing was blocked by the pages' own policy, failed, or went elsewhere"


def hostile_events(the: Stage, text: str, number: int) -> None:
    """One of each kind, with the same words in every field that holds words, and more."""
    flow = f"hostile-{number}-{text[:200]}".replace("/", "_")
    named = dict.fromkeys(("name", "user", "unit", "container", "sha256", "started", "source"), text)
    process = {**named, "pid": 7, "exe": f"/opt/{text}", "parent": {"pid": 6, "exe": text, "parent": None}}
    leg = dict.fromkeys(("version", "cipher", "group", "alpn", "sni", "ja4", "error", "note", "refusal"), text)
    common = {"connection": flow, "process": process, "host": text}
    rows: dict[Kind, dict[str, Any]] = {
        Kind.CONNECTION: {
            **common, "id": flow, "direction": text, "protocol": text, "action": text, "rule": text, "reason": text,
            "outcome": text, "policy": text, "error": text, "through": text, "duration_ms": 1,
            "bytes": {"sent": 1, "received": text}, "local": {"address": text, "port": 1},
            "remote": {"address": text, "port": 2, "host": text, "named_by": text},
            "tls": {"client": {**leg, "offers": [text]}, "server": leg},
        },
        Kind.REQUEST: {**common, "method": text, "url": text, "status": 200, "content_type": text, "answered_by": text},
        Kind.FINDING: {**common, "id": f"finding-{number}", "detector": text, "severity": text, "confidence": 1,
                       "summary": text,
                       "evidence": text, "location": text, "verdict": text, "item": text},
        Kind.CERTIFICATE: {"connection": flow, "names": [text], "serial": text, "not_after": text, "flaw": text},
        Kind.FAULT: {"connection": flow, "what": text, "detail": text, "failed": text, "count": 1},
        Kind.POLICY: {"path": text, "rules": 1, "on_failure": text, "policy": text},
        Kind.CA: {"operation": text, "subject": text, "detail": text},
        Kind.SERVICE: {"operation": text, "detail": text, "command": [text], "connection": flow},
        Kind.REVIEW: {"operation": text, "item": text, "user": text, "detail": text, "people": [text]},
    }  # fmt: skip
    for kind, fields in rows.items():
        the.log.append_fields(kind, dict(fields), NOW - later(number))


def test_words_of_attackers_are_shown_and_do_nothing(the: Stage, as_person: Opened) -> None:
    hostile_events(the, TEXT, 0)
    page = as_person("axel")
    with opened(the.log.folder) as review:
        hostile = [event for event in review.events(Filter()) if "hostile-" in str(event.get("connection"))]
        events = [*hostile, *review.events(Filter(kind=Kind.REVIEW, limit=3))]
    seqs = {kind: [event["seq"] for event in events if event["kind"] == kind] for kind in Kind}
    shown = ""
    where = [*PAGES, *(f"/event/{seq}" for kind in Kind for seq in seqs[kind])]
    where.append("/case/finding-0")
    for address in where:
        page.goto(address)
        look(page)
        shown += page.locator("main").inner_text()
    page.goto("/events?kind=connection")
    page.locator("table.events tbody a").first.click()
    look(page)
    shown += page.locator("main").inner_text()
    for text in ("<script>document.title='pwned'</script>", "onerror=", "{{ 7*7 }}", "=HYPERLINK(",
                 "ESC]0;pwnedU+0007ESC[2J",
                 "invoiceU+202Egpj.exeU+2066x", "aU+200BdminU+FEFFU+00AD", "oneU+000D⏎twoU+0000three"):  # fmt: skip
        assert text in shown, text
    page.goto("/overview")
    page.locator(".bars a").filter(has_text="<script>").first.click()
    look(page)
    assert "<script>document" in page.locator(".chips").first.inner_text()


def look(page: Any) -> None:
    """It is a page of ours, nothing ran on it, and it is no wider than its window."""
    assert page.title().endswith(" · mitmsec audit"), page.url
    assert page.locator("main img, main script, main iframe").count() == 0, page.url
    found = page.evaluate("() => [document.documentElement.scrollWidth, innerWidth, document.body.innerText]")
    assert found[0] <= found[1], page.url
    assert not set("\u202e\u2066\u200b\ufeff\x1b\x00") & set(found[2]), page.url
    links = page.evaluate(
        "() => [...document.querySelectorAll('main a[href], header a')].filter(a => a.protocol).map(a => a.protocol)"
    )
    assert set(links) <= {"http:"}, page.url


def test_a_case_from_finding_to_a_bundle_that_verifies(the: Stage, as_person: Opened, tmp_path: Path) -> None:
    """Two people; each step by keyboard or mouse as they would do it."""
    finding = a_finding(the, 0)
    rosa, axel = as_person("rosa"), as_person("axel")
    rosa.get_by_role("link", name="Findings").click()
    rosa.locator(f"a[href='/case/{finding}']").click()
    assert "pro…ion" in rosa.locator(".evidence").inner_text()
    rosa.get_by_role("button", name="Take it").click()
    rosa.get_by_label("Note", exact=True).fill("asked the owner of the repository")
    rosa.get_by_role("button", name="Add the note").click()
    rosa.get_by_label("Why must you see").fill("to know whether it is a customer's")
    rosa.get_by_role("button", name="Ask to see it").click()
    rosa.get_by_text("An approver who is somebody else must decide.").wait_for()

    axel.goto("/overview")
    axel.get_by_role("link", name="Approvals 1").click()
    axel.get_by_role("link", name="a word that must not leave").click()
    axel.get_by_role("button", name="Approve").click()
    axel.get_by_text("Who asked may see it once").wait_for()

    rosa.reload()
    rosa.get_by_role("button", name="Show it now").click()
    assert "promotion-4711-in-full" in rosa.locator(".revealed").inner_text()
    rosa.goto(f"/case/{finding}")
    assert rosa.locator(".revealed").count() == 0
    rosa.get_by_label("Escalate: what").fill("the team lead must know")
    rosa.get_by_role("button", name="Escalate").click()
    rosa.get_by_role("button", name="Sign off").click()
    rosa.get_by_text("1 of 2 signatures: rosa").wait_for()
    axel.goto(f"/case/{finding}")
    axel.get_by_role("button", name="Sign off").click()
    axel.get_by_text("Closed: signed off by rosa and axel.").wait_for()

    rosa.goto("/export?kind=review")
    with rosa.expect_download() as download:
        rosa.get_by_role("button", name="Export the bundle").click()
    download.value.save_as(tmp_path / "case.zip")
    files = read(tmp_path / "case.zip")
    assert isinstance(check(files, checks, [SIGNER.key]), Sound)
    told = [operation for operation in the.reviews if operation.item == finding]
    assert [(one.user, one.operation) for one in told if one.operation != "finding_opened"] == [
        ("rosa", "finding_taken"), ("rosa", "finding_noted"), ("rosa", "finding_unmask_asked"),
        ("axel", "finding_unmask_approved"), ("rosa", "finding_unmasked"), ("rosa", "finding_escalated"),
        ("rosa", "finding_signed_off"), ("axel", "finding_signed_off"),
    ]  # fmt: skip
    for one in told:
        assert one.operation.encode() in files["events.jsonl"]


def test_the_keyboard_alone_is_enough_and_what_has_the_focus_shows(the: Stage, as_person: Opened) -> None:
    page = as_person("rosa")
    page.goto("/events")
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.className") == "skip"
    assert page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    page.keyboard.press("/")
    assert page.evaluate("() => document.activeElement.id") == "find"
    page.keyboard.type("paste.example")
    page.keyboard.press("Enter")
    page.wait_for_url("**/events?text=paste.example")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_url("**/connection/flow-2")
    page.goto("/overview")
    steps = page.locator(".chart a[tabindex='-1']").count(), page.locator(".chart a:not([tabindex])").count()
    assert steps[1] >= 2, "only steps in which something was can be tabbed to"
    assert (
        page.locator(".chart a").first.get_attribute("aria-label").endswith(("block", "bypass", "decrypt", "finding"))
    )


def test_text_stands_out_from_what_is_behind_it_light_and_dark(the: Stage, chromium: Any) -> None:
    """WCAG AA: 4.5 to 1, of each text on a page with everything on it; and it fits a narrow window."""
    context = chromium.new_context(base_url=f"http://{the.host}", viewport={"width": 400, "height": 800})
    context.add_cookies([{"name": "mitmsec", "value": the.browser("axel").token, "url": f"http://{the.host}"}])
    page = context.new_page()
    for address in ("/overview", "/queue", f"/case/{a_finding(the, 1)}", "/connection/flow-1"):
        page.goto(address)
        look(page)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # no colour on its way to another
            assert page.evaluate(CONTRAST) == [], f"{address}: {scheme}"
    context.close()


CONTRAST = """() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => { const f = v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
    return .2126 * f(r) + .7152 * f(g) + .0722 * f(b); };
  const behind = node => { for (let at = node; at; at = at.parentElement) {
    const c = rgb(getComputedStyle(at).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c; }
    return [255, 255, 255]; };
  const weak = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text = walk.nextNode(); text; text = walk.nextNode()) {
    const node = text.parentElement;
    if (!text.data.trim() || !node.checkVisibility({checkOpacity: true})) continue;
    if (node.closest(".skip, .unseen, option, :disabled")) continue;
    const [a, b] = [light(rgb(getComputedStyle(node).color)), light(behind(node))].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < 4.5) weak.push([text.data.trim().slice(0, 30), node.className, ratio.toFixed(2)]);
  }
  return weak;
}"""
