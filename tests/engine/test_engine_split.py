from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import Sequence
from typing import Any

import pytest
from engine_world import DECISION, Recorder, Word
from msgspec.structs import replace

from mitmsec.core.body_parts import PARTS_LIMIT
from mitmsec.core.inspection import AnyInspector, AwaitedInspection, Part, PartKind
from mitmsec.core.model import Finding, OnFailure, OnFinding
from mitmsec.engine import turns
from mitmsec.engine.split import SplitReading, open_body
from mitmsec.engine.watch import Blocked, Reading, Watch

FORM = "multipart/form-data; boundary=cut"
BODY = (
    b'--cut\r\nContent-Disposition: form-data; name="note"\r\n\r\nharmless\r\n'
    b'--cut\r\nContent-Disposition: form-data; name="f"; filename="report.txt"\r\n\r\na SECRET\r\n--cut--\r\n'
)


class Far(Word):
    """The same, awaited."""

    limit_s, limit_bytes = 5.0, 1 << 20

    def begin(self, part: Part) -> AwaitedInspection | None:
        opened = self.open(part)

        class Awaited:
            async def feed(self, data: bytes) -> Sequence[Finding]:
                return opened.feed(data)

            async def close(self) -> Sequence[Finding]:
                return opened.close()

            def abandon(self) -> None:
                pass

        return Awaited()


def opened(
    inspector: AnyInspector,
    content_type: str = FORM,
    codings: str = "",
    message_coding: str = "",
    on_finding: OnFinding = OnFinding.ALERT,
) -> tuple[Reading | SplitReading, Recorder]:
    async def make() -> Recorder:
        return Recorder()

    recorder = asyncio.run(make())
    decision = replace(DECISION, inspect=(inspector.name,), on_finding=on_finding)
    watch = Watch("flow-1", decision, {inspector.name: inspector}, OnFailure.OPEN, recorder)
    part = Part(flow="flow-1", kind=PartKind.BODY, sent=True, host="h", content_type=content_type)
    reading = open_body(watch, part, codings, message_coding)
    assert reading is not None
    return reading, recorder


@pytest.mark.parametrize("awaited", [False, True])
@pytest.mark.parametrize("codings", ["", "gzip"])
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_each_part_is_read_by_itself_and_a_finding_names_it(awaited: bool, codings: str, step: int) -> None:
    word = Far() if awaited else Word()
    reading, recorder = opened(word, codings=codings)
    data = gzip.compress(BODY) if codings else BODY
    pieces = [data[at : at + step] for at in range(0, len(data), step)]

    async def wait() -> None:
        for piece in pieces:
            await reading.read(piece, ends=False)
        await reading.read(b"", ends=True)

    if awaited:
        asyncio.run(wait())
    else:
        for piece in pieces:
            reading.feed(piece)
            reading.settle()
        reading.close()
    assert word.content("body", sent=True) == [b"harmless", b"a SECRET"]
    assert [seen.finding.location for seen in recorder.findings] == ["request.body in report.txt"]


def test_what_is_said_about_parts_is_read_too() -> None:
    word = Word(word=b"report.txt")
    reading, recorder = opened(word)
    reading.feed(BODY)
    reading.close()
    assert [seen.finding.location for seen in recorder.findings] == ["request.headers in report.txt"]


def test_messages_of_grpc_are_uncompressed_one_by_one() -> None:
    word = Word()
    reading, recorder = opened(word, "application/grpc", message_coding="gzip")
    packed = gzip.compress(b"a SECRET")
    reading.feed(b"\0\0\0\0\5plain" + b"\1" + len(packed).to_bytes(4) + packed)
    reading.close()
    assert word.content("body", sent=True) == [b"plain", b"a SECRET"]
    assert [seen.finding.location for seen in recorder.findings] == ["request.body in message 2"]


@pytest.mark.parametrize("codings", ["rot13", "gzip"])
def test_what_cannot_be_decoded_is_the_policys_on_failure(codings: str) -> None:
    reading, recorder = opened(Word(), codings=codings)
    reading.feed(b"no gzip at all")
    reading.feed(b"more")
    reading.close()
    reading.abandon()
    assert [seen.what for seen in recorder.faults] == ["not_inspected"]


def test_a_finding_stops_it() -> None:
    reading, _ = opened(Word(), on_finding=OnFinding.BLOCK)
    with pytest.raises(Blocked, match="the word"):
        reading.feed(BODY + b"x")


def test_a_mask_is_told_where_in_the_body_a_finding_is() -> None:
    class Placed(Word):
        def open(self, part: Part):  # type: ignore[no-untyped-def]
            made = super().open(part)

            class Placing:
                def feed(self, data: bytes) -> Sequence[Finding]:
                    return [replace(found, offset=data.index(b"SECRET"), size_bytes=6) for found in made.feed(data)]

                def close(self) -> Sequence[Finding]:
                    return ()

            return Placing()

    reading, recorder = opened(Placed(), on_finding=OnFinding.REDACT)
    masked = []
    reading.mask = lambda offset, size_bytes: masked.append(BODY[offset : offset + size_bytes]) or True
    reading.feed(BODY)
    reading.close()
    assert masked == [b"SECRET"]
    assert [seen.verdict for seen in recorder.findings] == [OnFinding.REDACT]


def small_messages(count: int) -> bytes:
    return b"\0\0\0\0\1x" * count


@pytest.mark.parametrize("codings", ["", "gzip"])
def test_behind_many_small_messages_everything_is_still_read(codings: str) -> None:
    body = small_messages(5000) + b"\0\0\0\0\x08a SECRET"
    word = Word()
    reading, recorder = opened(word, "application/grpc", codings)
    asyncio.run(reading.read(gzip.compress(body) if codings else body, ends=True))
    assert [seen.finding.location for seen in recorder.findings] == ["request.body in further messages"]
    assert len(word.parts) == PARTS_LIMIT + 1


class Dear(Word):
    """Takes a millisecond to say that it wants a part."""

    def open(self, part: Part) -> Any:
        end_s = time.process_time() + 0.001
        while time.process_time() < end_s:
            pass
        return super().open(part)


@pytest.mark.parametrize("awaited", [False, True])
def test_a_body_of_many_contents_lets_others_go_on_while_it_is_read(awaited: bool) -> None:
    class DearAndFar(Far, Dear):
        pass

    reading, _ = opened(DearAndFar() if awaited else Dear(), "application/grpc")

    async def main() -> None:
        longest_s, before_s = 0.0, time.process_time()
        task = asyncio.create_task(reading.read(small_messages(300), ends=True))
        while not task.done():
            await asyncio.sleep(0)
            longest_s = max(longest_s, time.process_time() - before_s)
            before_s = time.process_time()
        assert longest_s < 0.1  # of 0.3

    asyncio.run(main())


def test_a_body_that_takes_more_computing_than_its_size_allows_is_not_read_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "FREE_S", 0.05)
    word = Dear()
    reading, recorder = opened(word, "application/grpc")
    asyncio.run(reading.read(small_messages(500), ends=True))
    assert [(seen.what, seen.detail) for seen in recorder.faults] == [
        ("not_inspected", "takes more computing than its size allows")
    ]
    assert len(word.parts) < 200


def test_a_body_that_breaks_off_before_it_was_read_is_said_to_be_not_inspected() -> None:
    reading, recorder = opened(Dear(), "application/grpc")
    reading.feed(small_messages(100))
    assert reading.is_behind
    reading.close()
    assert [seen.detail for seen in recorder.faults] == ["broke off before all of it was read"]
