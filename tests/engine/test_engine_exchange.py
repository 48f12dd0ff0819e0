"""One exchange in our own words."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from engine_world import DECISION, Recorder, Word
from msgspec.structs import replace

from mitmsec.audit.event import Outcome
from mitmsec.core.inspection import Inspection, Inspector, Part, PartKind
from mitmsec.core.messages import HandOver, Plaintext
from mitmsec.core.model import Decision, Endpoint, Finding, OnFailure, OnFinding, Severity
from mitmsec.engine.exchange import HOLD_BYTES, Exchange
from mitmsec.engine.watch import Blocked, Watch


def exchange(
    *, on_finding: OnFinding | None = None, inspector: Inspector | None = None, **facts: Any
) -> tuple[Exchange, Recorder]:
    """`facts` are of what was handed over."""

    async def make() -> Recorder:
        return Recorder()

    recorder = asyncio.run(make())
    decision = DECISION
    if on_finding is not None:
        decision = Decision(
            action=DECISION.action, rule="no words", reason="r", inspect=("word",), on_finding=on_finding
        )
    order = HandOver(
        flow="flow-1",
        kind=Plaintext.TLS,
        name="a.test",
        origin=Endpoint(address="192.0.2.1", port=443),
        client=Endpoint(address="192.0.2.2", port=1),
        decision=decision,
    )
    hand_over = replace(order, **facts)
    watch = Watch("flow-1", decision, {"word": inspector or Word()}, OnFailure.OPEN, recorder)
    return Exchange(hand_over, watch, recorder), recorder


def test_it_is_recorded_once_with_what_was_seen() -> None:
    made, recorder = exchange()
    assert made.begin(b"POST", b"/x?k=v", "HTTP/2.0", [b"a.test"], (), has_body=True) is None
    assert made.request_body(b"12345") == b"12345"
    made.request_body(b"")
    made.response_begin(204, ((b"Content-Type", b"text/css"),), has_body=True)
    assert made.response_body(b"123") == b"123"
    made.finish()
    made.finish()
    (seen,) = recorder.requests
    assert (seen.method, seen.url, seen.http_version, seen.status) == ("POST", "https://a.test/x?k=", "HTTP/2", 204)
    assert (seen.request_bytes, seen.response_bytes, seen.content_type) == (5, 3, "text/css")


@pytest.mark.parametrize(
    ("facts", "led_to", "url"),
    [
        ({"kind": Plaintext.TLS, "port": 443}, b"", "https://a.test/x"),
        ({"kind": Plaintext.TLS, "port": 8443}, b"", "https://a.test:8443/x"),
        ({"kind": Plaintext.HTTP, "port": 80}, b"", "http://a.test/x"),
        ({"kind": Plaintext.HTTP}, b"a.test", "http://a.test/x"),
        ({"kind": Plaintext.HTTP}, b"a.test:8080", "http://a.test:8080/x"),
        ({"kind": Plaintext.HTTP}, b"", "http://a.test:3128/x"),
    ],
)
def test_through_a_proxy_the_url_is_the_one_that_the_client_means(
    facts: dict[str, Any], led_to: bytes, url: str
) -> None:
    proxy = Endpoint(address="192.0.2.9", port=3128)
    made, recorder = exchange(origin=proxy, **facts)
    made.begin(b"GET", b"/x", "HTTP/1.1", [b"a.test"], (), has_body=False, led_to=led_to)
    made.finish()
    assert recorder.requests[0].url == url


def test_one_that_got_no_answer_has_no_status() -> None:
    made, recorder = exchange()
    made.begin(b"GET", b"/", "HTTP/1.1", [b"a.test"], (), has_body=False)
    made.finish()
    assert recorder.requests[0].status is None


@pytest.mark.parametrize(
    ("method", "version", "authorities", "status"),
    [
        (b"GET", "HTTP/1.1", [b"b.test"], 421),
        (b"CONNECT", "HTTP/1.1", [b"a.test"], 421),
        (b"GET", "HTTP/1.1", [], 400),
        (b"GET", "HTTP/3.0", [b"a.test"], 400),
    ],
)
def test_refusals_say_which_connection(method: bytes, version: str, authorities: list[bytes], status: int) -> None:
    made, recorder = exchange()
    page = made.begin(method, b"/", version, authorities, (), has_body=False)
    assert page is not None
    assert (page.status, b"flow-1" in page.body) == (status, True)
    assert made.refused is page
    made.response_begin(200, (), has_body=False)
    made.finish()
    assert recorder.requests[0].status == status
    assert recorder.faults[0].failed == "closed"


@pytest.mark.parametrize(
    ("size", "on_finding", "held"),
    [
        (b"%d" % HOLD_BYTES, OnFinding.BLOCK, True),
        (b"%d" % (HOLD_BYTES + 1), OnFinding.BLOCK, False),
        (b"%d" % HOLD_BYTES, OnFinding.ALERT, False),
        (b"99999999999999", OnFinding.BLOCK, False),
        (b"x", OnFinding.BLOCK, False),
    ],
)
def test_only_small_bodies_are_held_and_only_where_a_finding_blocks(
    size: bytes, on_finding: OnFinding, held: bool
) -> None:
    made, _ = exchange(on_finding=on_finding)
    made.begin(b"POST", b"/", "HTTP/1.1", [b"a.test"], ((b"Content-Length", size),), has_body=True)
    assert made.held is held


def test_a_finding_in_the_head_is_a_page_that_names_the_rule() -> None:
    made, recorder = exchange(on_finding=OnFinding.BLOCK)
    page = made.begin(b"GET", b"/?q=SECRET", "HTTP/1.1", [b"a.test"], (), has_body=False)
    assert page is not None
    assert page.status == 403
    assert b"no words" in page.body
    assert b"SECRET" not in page.body
    assert len(recorder.findings) == 1
    made.finish()
    assert (recorder.requests[0].outcome, recorder.requests[0].answered_by) == (Outcome.BLOCKED, "mitmsec")


def test_whose_answer_it_is_stands_in_the_record() -> None:
    misdirected, refused = exchange()
    misdirected.begin(b"GET", b"/", "HTTP/1.1", [b"b.test"], (), has_body=False)
    misdirected.finish()
    assert [(seen.status, seen.outcome, seen.answered_by) for seen in refused.requests] == [(421, None, "mitmsec")]
    made, recorder = exchange()
    made.begin(b"GET", b"/", "HTTP/1.1", [b"a.test"], (), has_body=False)
    made.response_begin(403, (), has_body=False)
    made.finish()
    assert [(seen.status, seen.outcome, seen.answered_by) for seen in recorder.requests] == [(403, None, None)]


def test_a_finding_in_a_body_raises() -> None:
    made, _ = exchange(on_finding=OnFinding.BLOCK)
    made.begin(b"POST", b"/", "HTTP/1.1", [b"a.test"], (), has_body=True)
    made.request_body(b"a SECRET")
    with pytest.raises(Blocked):
        made.request_body(b"")


@pytest.mark.parametrize("sent", [True, False])
def test_trailers_are_read_as_headers_are(sent: bool) -> None:
    word = Word()
    made, recorder = exchange(on_finding=OnFinding.BLOCK, inspector=word)
    made.begin(b"POST", b"/", "HTTP/1.1", [b"a.test"], (), has_body=True)
    with pytest.raises(Blocked):
        made.trailers([(b"x-key", b"a SECRET")], sent=sent)
    assert word.content("headers", sent=sent)[-1] == b"x-key: a SECRET\r\n"
    assert len(recorder.findings) == 1


class AtTheEnd:
    """Speaks when its part is over."""

    name = "word"

    def open(self, part: Part) -> Inspection | None:
        return _AtTheEnd() if part.kind is PartKind.BODY else None


class _AtTheEnd:
    def feed(self, data: bytes) -> Sequence[Finding]:
        return ()

    def close(self) -> Sequence[Finding]:
        return (
            Finding(
                detector="word", severity=Severity.HIGH, confidence=1.0, summary="x", evidence="x", location="body"
            ),
        )


def test_what_a_body_that_breaks_off_held_is_recorded() -> None:
    made, recorder = exchange(on_finding=OnFinding.BLOCK, inspector=AtTheEnd())
    made.begin(b"POST", b"/", "HTTP/1.1", [b"a.test"], (), has_body=True)
    made.request_body(b"half")
    made.finish()
    assert len(recorder.findings) == 1


@pytest.mark.checklist("C9")
@pytest.mark.parametrize("value", [b"a\rb", b"a\nb", b"a\0b"])
def test_a_field_with_a_line_break_or_a_nul_is_refused(value: bytes) -> None:
    made, _ = exchange()
    page = made.begin(b"GET", b"/", "HTTP/1.1", [b"a.test"], ((b"x", value),), has_body=False)
    assert page is not None
    assert page.status == 400
