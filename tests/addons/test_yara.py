"""`yara`: content is kept until all of it is there, and scanned by somebody else."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core.inspection import AwaitedInspector, Part, PartKind, Unread
from mitmsec.core.model import Finding, Severity
from mitmsec.core.rule_hits import Hit, Hits
from mitmsec_addons import yara as module
from mitmsec_addons.yara import Yara

PART = Part(flow="f1", kind=PartKind.BODY, sent=True, host="h")
HIT = Hit(
    rule="Evil", severity=Severity.HIGH, confidence=0.8, description="is evil", offset=5, pattern="$a", size_bytes=9
)


class Scanner:
    """Remembers what it was asked, and answers."""

    def __init__(self, answer: Hits | OSError | None = None) -> None:
        self.answer = answer or Hits()
        self.asked: list[tuple[str, bytes]] = []

    async def __call__(self, flow: str, content: bytes) -> Hits:
        self.asked.append((flow, content))
        if isinstance(self.answer, OSError):
            raise self.answer
        return self.answer


def read(yara: Yara, slices: Sequence[bytes]) -> list[Finding | Unread]:
    async def ask() -> list[Finding | Unread]:
        inspection = yara.begin(PART)
        told = [one for piece in slices for one in await inspection.feed(piece)]
        return [*told, *await inspection.close()]

    return asyncio.run(ask())


@given(st.lists(st.binary(min_size=1), min_size=1))
def test_however_a_body_is_sliced_the_whole_of_it_is_scanned_once(slices: list[bytes]) -> None:
    scanner = Scanner()
    yara = Yara(("own.yar",), scanner)
    assert read(yara, slices) == []
    assert scanner.asked == [("f1", b"".join(slices))]
    assert yara.held_bytes == 0


def test_a_hit_is_a_finding_without_any_content() -> None:
    (finding,) = read(Yara(("own.yar",), Scanner(Hits(hits=(HIT,)))), [b"some evil-bytes"])
    assert finding == Finding(
        detector="yara",
        severity=Severity.HIGH,
        confidence=0.8,
        summary="YARA rule Evil: is evil",
        evidence="$a, 9 bytes",
        location="request.body+5",
    )


def test_a_rule_without_patterns_is_found_nowhere_in_particular_and_more_are_counted() -> None:
    first, more = read(Yara(("own.yar",), Scanner(Hits(hits=(Hit(rule="Short"),), more=2))), [b"x"])
    assert isinstance(first, Finding)
    assert (first.summary, first.evidence, first.location) == ("YARA rule Short", "", "request.body")
    assert isinstance(more, Finding)
    assert more.summary == "2 more YARA rules match"


def test_what_was_not_scanned_to_its_end_is_said() -> None:
    told = read(Yara(("own.yar",), Scanner(Hits(error="took longer than 10 s to scan"))), [b"x"])
    assert told == [Unread(why="took longer than 10 s to scan", location="request.body")]


def test_without_a_scanner_it_fails_and_keeps_nothing() -> None:
    for yara in (Yara(("own.yar",)), Yara(("own.yar",), Scanner(OSError("gone")))):
        with pytest.raises(OSError):
            read(yara, [b"x"])
        assert yara.held_bytes == 0


def test_nothing_is_scanned_where_there_is_nothing() -> None:
    scanner = Scanner()
    assert read(Yara(("own.yar",), scanner), []) == []
    assert scanner.asked == []


def test_bodies_that_wait_are_bounded_all_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_LIMIT_BYTES", 3 << 20)

    async def story() -> None:
        scanner = Scanner()
        yara = Yara(("own.yar",), scanner)
        first, second = yara.begin(PART), yara.begin(PART)
        assert await first.feed(bytes(2 << 20)) == ()
        assert await second.feed(b"x") == ()
        (unread,) = await second.feed(bytes(2 << 20))
        assert isinstance(unread, Unread)
        assert unread.why == "3 MiB of other content wait to be scanned"
        assert await second.feed(b"y") == await second.close() == ()
        assert yara.held_bytes == 2 << 20
        first.abandon()
        first.abandon()
        assert yara.held_bytes == 0
        assert scanner.asked == []

    asyncio.run(story())


def test_it_is_awaited_and_needs_rules() -> None:
    assert isinstance(Yara(("own.yar",)), AwaitedInspector)
    with pytest.raises(ValueError, match="needs rules"):
        Yara()
