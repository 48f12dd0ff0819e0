"""`yara`: content is kept until all of it is there, and scanned by somebody else."""

from __future__ import annotations

import asyncio
import io
import random
import tracemalloc
import zipfile
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core.inspecting import Guarded, Inspected
from mitmsec.core.inspection import AwaitedInspector, Part, PartKind, Unread
from mitmsec.core.model import Clear, Finding, Severity
from mitmsec.core.rule_hits import Hit, Hits
from mitmsec.engine.awaiting import Awaited
from mitmsec_addons import yara as module
from mitmsec_addons.archives import Archives
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


def test_a_hit_is_a_finding_and_its_first_place_is_the_only_content_beside_it() -> None:
    (finding,) = read(Yara(("own.yar",), Scanner(Hits(hits=(HIT,)))), [b"some evil-bytes"])
    assert finding == Finding(
        detector="yara",
        severity=Severity.HIGH,
        confidence=0.8,
        summary="YARA rule Evil: is evil",
        evidence="$a, 9 bytes",
        location="request.body+5",
        clear=Clear(value=b"evil-byte"),
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


def test_bodies_that_wait_are_bounded_each_and_all_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART_LIMIT_BYTES", 2 << 20)
    monkeypatch.setattr(module, "HELD_LIMIT_BYTES", 3 << 20)
    too_much = [Unread(why="3 MiB of other content wait to be scanned", location="request.body")]

    async def story() -> None:
        scanner = Scanner()
        yara = Yara(("own.yar",), scanner)
        stalled, honest, small, long = (yara.begin(PART) for _ in range(4))
        assert not await stalled.feed(bytes(2 << 20))
        assert not await small.feed(b"s")
        assert not await honest.feed(b"x")
        assert not await honest.feed(bytes(1 << 20))  # the largest makes room
        assert yara.held_bytes == (1 << 20) + 2
        assert await stalled.feed(b"goes on") == too_much
        assert not await stalled.feed(b"and on")
        assert not await stalled.close()
        assert not await long.feed(bytes(1 << 20))
        assert await long.feed(bytes((1 << 20) + 1)) == [
            Unread(why="longer than 2097152 bytes, which is all that is scanned", location="request.body")
        ]
        assert not await small.close()
        assert not await honest.close()
        assert [len(content) for _, content in scanner.asked] == [1, (1 << 20) + 1]
        assert yara.held_bytes == 0

    asyncio.run(story())


def test_what_grows_too_large_is_the_one_to_go_and_one_that_is_complete_hears_of_it_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "HELD_LIMIT_BYTES", 1 << 20)
    too_much = [Unread(why="1 MiB of other content wait to be scanned", location="request.body")]

    async def story() -> None:
        yara = Yara(("own.yar",), Scanner())
        first, second, third = (yara.begin(PART) for _ in range(3))
        assert not await first.feed(bytes(1 << 18))
        assert not await second.feed(bytes(1 << 19))
        assert await third.feed(bytes((1 << 19) + 1)) == too_much
        assert not await first.feed(bytes(1 << 18))
        fourth = yara.begin(PART)
        assert not await fourth.feed(b"x")
        assert await first.close() == too_much  # as large, and older
        assert not await second.close()
        fourth.abandon()
        fourth.abandon()
        assert (yara.held_bytes, yara.unfinished) == (0, {})

    asyncio.run(story())


def test_what_is_being_scanned_does_not_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_LIMIT_BYTES", 1 << 20)

    async def story() -> None:
        asked, answer = asyncio.Event(), asyncio.Event()

        async def scan(_flow: str, _content: bytes) -> Hits:
            asked.set()
            await answer.wait()
            return Hits()

        yara = Yara(("own.yar",), scan)
        complete, late = yara.begin(PART), yara.begin(PART)
        await complete.feed(bytes(1 << 20))
        scanning = asyncio.create_task(complete.close())
        await asked.wait()
        assert [type(one) for one in await late.feed(b"x")] == [Unread]
        answer.set()
        assert await scanning == []
        assert yara.held_bytes == 0

    asyncio.run(story())


def test_pieces_of_single_bytes_take_no_more_memory_than_what_they_come_to() -> None:
    async def story() -> None:
        inspection = Yara(("own.yar",), Scanner()).begin(PART)
        tracemalloc.start()
        for number in range(1 << 12):
            inspection._whole.add(b"%d" % (number % 100 + 100))
        size_bytes, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert size_bytes < (1 << 12) * 3 * 1.2 + 4000

    asyncio.run(story())


def unpacked(yara: Yara, content: bytes, slice_bytes: int = 1 << 16) -> list[Finding | Unread]:
    """As the engine reads a body under a rule with `archives`."""

    async def ask() -> list[Finding | Unread]:
        awaited = Awaited([yara], PART)
        guarded = Guarded([Archives(), *awaited.within], PART, clock=lambda: 0.0, budget_s=1.0)
        told: list[Inspected] = []
        for at in range(0, len(content), slice_bytes):
            piece = content[at : at + slice_bytes]
            told += [guarded.feed(piece), await awaited.feed(piece)]
        told += [guarded.close(), await awaited.close()]
        assert awaited.idle
        faults = [Unread(why=fault.detail, location=fault.location) for one in told for fault in one.faults]
        return [*(finding for one in told for finding in one.findings), *faults]

    return asyncio.run(ask())


def zipped(entries: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return made.getvalue()


@pytest.mark.parametrize("slice_bytes", [7, 1 << 16])
def test_each_file_in_an_archive_is_scanned_by_itself_and_the_archive_too(slice_bytes: int) -> None:
    inner = zipped({"deep": b"deep"})
    outer = zipped({"a": b"first", "empty": b"", "inner.zip": inner, "b": b"x" * 200_000})
    scanner = Scanner()
    yara = Yara(("own.yar",), scanner)
    assert unpacked(yara, outer, slice_bytes) == []
    assert sorted(scanner.asked) == sorted(("f1", one) for one in (b"first", inner, b"deep", b"x" * 200_000, outer))
    assert yara.held_bytes == 0


def test_what_is_found_in_an_archive_names_the_way_there() -> None:
    yara = Yara(("own.yar",), Scanner(Hits(hits=(HIT,))))
    found = [one.location for one in unpacked(yara, zipped({"a": zipped({"b": b"some evil-bytes"})}))]
    assert found == ["request.body!a!b+5", "request.body!a+5", "request.body+5"]


def test_of_an_archive_that_is_too_large_the_files_are_scanned_and_of_a_file_that_is_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PART_LIMIT_BYTES", 500)
    scanner = Scanner()
    yara = Yara(("own.yar",), scanner)
    noise = random.Random(1).randbytes(1000)
    told = unpacked(yara, zipped({"a": b"first", "noise": noise, "b": b"last"}))
    assert [one.location for one in told] == ["request.body!noise", "request.body"]
    assert scanner.asked == [("f1", b"first"), ("f1", b"last")]
    assert yara.held_bytes == 0


def test_where_the_scanner_has_gone_nothing_of_an_archive_is_kept() -> None:
    yara = Yara(("own.yar",), Scanner(OSError("gone")))
    (failed,) = unpacked(yara, zipped({"a": b"first", "b": b"second"}))
    assert isinstance(failed, Unread)
    assert failed.why == "OSError"
    assert yara.held_bytes == 0


def test_what_is_over_keeps_nothing_that_comes_later() -> None:
    yara = Yara(("own.yar",), Scanner())
    inspection = yara.begin(PART)
    within = Part(flow="f1", kind=PartKind.BODY, sent=True, host="h", path="a.zip!a")
    opened, late = inspection.within.open(within), inspection.within.open(within)
    assert opened is not None
    assert late is not None
    opened.feed(b"kept")
    opened.close()
    late.feed(b"kept too")
    assert yara.held_bytes == 12
    inspection.abandon()
    assert yara.held_bytes == 0
    late.feed(b"more")
    late.close()
    assert inspection.within.open(within) is None
    assert (yara.held_bytes, len(inspection.within.complete)) == (0, 0)


def test_it_is_awaited_and_needs_rules() -> None:
    assert isinstance(Yara(("own.yar",)), AwaitedInspector)
    with pytest.raises(ValueError, match="needs rules"):
        Yara()
