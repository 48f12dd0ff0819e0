"""Our own answers."""

from __future__ import annotations

from mitmsec.core.model import Direction
from mitmsec.engine import pages


def test_each_page_names_the_connection_and_says_what_it_is() -> None:
    for page, status in (
        (pages.misdirected("flow-1"), 421),
        (pages.malformed("flow-1", "Because"), 400),
        (pages.unreadable("flow-1"), 400),
        (pages.too_large("flow-1"), 431),
        (pages.blocked("flow-1", "a rule", "keywords: a word"), 403),
    ):
        assert page.status == status
        assert page.body.startswith(str(status).encode())
        assert b"Connection: flow-1\n" in page.body
    assert b"Rule: a rule\n" in pages.blocked("flow-1", "a rule", "keywords: a word").body


def test_who_calls_from_outside_is_told_the_status_and_no_more() -> None:
    page = pages.blocked("flow-1", "a rule", "keywords: a word")
    assert pages.told(page, Direction.OUTBOUND) is page
    outside = pages.told(pages.misdirected("flow-1"), Direction.INBOUND)
    assert (outside.status, outside.fault) == (421, "misdirected_request")
    assert outside.body == b"421 Misdirected Request\n"
    assert pages.told(page, Direction.INBOUND).body == b"403 Forbidden\n"
