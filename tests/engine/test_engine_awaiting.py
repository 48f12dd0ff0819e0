from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from mitmsec.core.inspecting import FaultKind, Inspected
from mitmsec.core.inspection import AwaitedInspection, AwaitedInspector, Part, PartKind
from mitmsec.core.model import Finding, Severity
from mitmsec.engine.awaiting import Awaited

PART = Part(flow="f", kind=PartKind.BODY, sent=True, host="h")
FINDING = Finding(detector="d", severity=Severity.LOW, confidence=1.0, summary="s", evidence="", location="x")


class Far:
    """Somebody who answers by a script; an inspector and its inspection in one."""

    limit_s = 5.0
    limit_bytes = 100

    def __init__(self, name: str, feed: Callable[[bytes], Awaitable[Any]] | None = None) -> None:
        self.name, self._feed = name, feed
        self.calls: list[bytes | None] = []
        self.abandoned = 0

    def begin(self, part: Part) -> AwaitedInspection | None:
        return self

    async def feed(self, data: bytes) -> Sequence[Finding]:
        self.calls.append(data)
        return () if self._feed is None else await self._feed(data)

    async def close(self) -> Sequence[Finding]:
        self.calls.append(None)
        return [FINDING]

    def abandon(self) -> None:
        self.abandoned += 1


async def raises(data: bytes) -> Any:
    raise LookupError("the password is hunter2")


async def no_findings(data: bytes) -> Any:
    return ["text"]


async def cancels_itself(data: bytes) -> Any:
    raise asyncio.CancelledError


async def hangs(data: bytes) -> Any:
    await asyncio.Event().wait()


async def hangs_on(data: bytes) -> Any:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await asyncio.sleep(0.01)
        raise LookupError from None


def test_what_is_awaited_has_an_inspectors_shape_of_its_own() -> None:
    assert isinstance(Far("far"), AwaitedInspector)


def test_findings_come_from_feed_and_close_and_then_nobody_is_asked_again() -> None:
    async def main() -> None:
        far = Far("far")
        parts = Awaited([far], PART)
        assert await parts.feed(b"one") == Inspected()
        assert await parts.close() == Inspected(findings=(FINDING,))
        assert parts.idle
        parts.abandon()
        assert (far.calls, far.abandoned) == ([b"one", None], 0)

    asyncio.run(main())


@pytest.mark.parametrize("kind", [PartKind.HEADERS, PartKind.URL])
def test_heads_and_urls_wait_for_nobody(kind: PartKind) -> None:
    assert Awaited([Far("far")], Part(flow="f", kind=kind, sent=True, host="h")).idle


@pytest.mark.parametrize(
    ("feed", "detail"), [(raises, "LookupError"), (no_findings, "TypeError"), (cancels_itself, "CancelledError")]
)
def test_what_goes_wrong_is_a_fault_without_content_and_others_go_on(
    feed: Callable[[bytes], Awaitable[Any]], detail: str
) -> None:
    async def main() -> None:
        bad, good = Far("bad", feed), Far("good")
        parts = Awaited([bad, good], PART)
        [fault] = (await parts.feed(b"1")).faults
        assert (fault.inspector, fault.kind, fault.detail) == ("bad", FaultKind.ERROR, detail)
        assert (await parts.feed(b"2")).faults == ()
        assert (bad.calls, bad.abandoned) == ([b"1"], 1)
        assert (await parts.close()).findings == (FINDING,)

    asyncio.run(main())


@pytest.mark.parametrize("feed", [hangs, hangs_on])
def test_who_takes_longer_than_said_is_not_waited_for(feed: Callable[[bytes], Awaitable[Any]]) -> None:
    async def main() -> None:
        slow = Far("slow", feed)
        slow.limit_s = 0.02
        [fault] = (await Awaited([slow], PART).feed(b"1")).faults
        assert (fault.kind, fault.detail) == (FaultKind.TIMEOUT, "took longer than 0.020 s")
        assert slow.abandoned == 1
        await asyncio.sleep(0.03)  # what it still raises is nobody's business

    asyncio.run(main())


def test_time_adds_up_over_a_part() -> None:
    async def sleeps(data: bytes) -> Any:
        await asyncio.sleep(0.06)
        return ()

    async def main() -> None:
        slow = Far("slow", sleeps)
        slow.limit_s = 0.1
        parts = Awaited([slow], PART)
        assert (await parts.feed(b"1")).faults == ()
        assert [fault.kind for fault in (await parts.feed(b"2")).faults] == [FaultKind.TIMEOUT]

    asyncio.run(main())


def test_a_part_that_is_larger_than_an_inspector_takes_is_a_fault() -> None:
    async def main() -> None:
        far = Far("far")
        parts = Awaited([far], PART)
        assert (await parts.feed(b"x" * 100)).faults == ()
        [fault] = (await parts.feed(b"x")).faults
        assert (fault.kind, fault.detail) == (FaultKind.SIZE, "takes 100 bytes of a part, which has more")
        assert far.abandoned == 1

    asyncio.run(main())


def test_a_fault_while_beginning_is_told_by_the_first_call() -> None:
    class Unwilling(Far):
        def begin(self, part: Part) -> AwaitedInspection | None:
            raise ConnectionError

    async def main() -> None:
        parts = Awaited([Unwilling("unwilling")], PART)
        assert not parts.idle
        assert [fault.detail for fault in (await parts.close()).faults] == ["ConnectionError"]
        assert parts.idle

    asyncio.run(main())


def test_what_breaks_off_is_abandoned_with_the_call_that_goes_on() -> None:
    async def main() -> None:
        far = Far("far", hangs)
        parts = Awaited([far], PART)
        task = asyncio.create_task(parts.feed(b"1"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        parts.abandon()
        await asyncio.wait({task}, timeout=5)
        assert task.done()
        assert far.abandoned == 1

    asyncio.run(main())
