"""What the console asks of evidence, and that no answer is taken for another's."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

import pytest

from mitmsec.audit.console.desk import Unmask
from mitmsec.core.messages import Message
from mitmsec.service import console_evidence_desk as module
from mitmsec.service.console_evidence_desk import EvidenceDesk
from mitmsec.service.console_messages import EvidenceHeld, EvidenceOrder, EvidenceSaid

FINDING = {"id": "event-1", "content": {"id": "c", "sha256": "00", "size": 40}}
ASKED = Unmask(asked_by="rosa", why="ticket 7", decided_by="axel")


def played(story: Callable[[EvidenceDesk, list[Message]], Awaitable[None]]) -> None:
    async def play() -> None:
        sent: list[Message] = []
        await story(EvidenceDesk(sent.append), sent)

    asyncio.run(play())


def pipe_with(content: bytes) -> int:
    reading, writing = os.pipe()
    os.write(writing, content)
    os.close(writing)
    return reading


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def test_of_a_finding_without_content_nobody_is_asked() -> None:
    async def story(desk: EvidenceDesk, sent: list[Message]) -> None:
        assert not await desk.holds({"id": "event-1"})
        assert sent == []

    played(story)


def test_each_answer_is_its_own_questions() -> None:
    async def story(desk: EvidenceDesk, sent: list[Message]) -> None:
        held = [asyncio.create_task(desk.holds({**FINDING, "id": f"event-{number}"})) for number in (1, 2)]
        await asyncio.sleep(0)
        assert sent == [EvidenceHeld(number=1, event="event-1"), EvidenceHeld(number=2, event="event-2")]
        desk.heard(EvidenceSaid(number=2, is_there=True), [])
        desk.heard(EvidenceSaid(number=1, is_there=False), [])
        assert await asyncio.gather(*held) == [False, True]

    played(story)


def test_what_is_shown_comes_through_the_pipe() -> None:
    async def story(desk: EvidenceDesk, sent: list[Message]) -> None:
        shown = asyncio.create_task(desk.opened(FINDING, ASKED))
        await asyncio.sleep(0)
        (order,) = sent
        assert order == EvidenceOrder(number=1, event="event-1", reason="ticket 7", asked_by="rosa", approved_by="axel")
        desk.heard(EvidenceSaid(number=1, is_there=True), [pipe := pipe_with(b"ghp_secret\xff")])
        assert await shown == "ghp_secret\\xff"
        assert not is_open(pipe)

    played(story)


@pytest.mark.parametrize("is_there", [True, False])
def test_what_is_not_shown_is_none(is_there: bool) -> None:
    async def story(desk: EvidenceDesk, sent: list[Message]) -> None:
        shown = asyncio.create_task(desk.opened(FINDING, ASKED))
        await asyncio.sleep(0)
        pipes = [] if is_there else [pipe_with(b"not to be read")]
        desk.heard(EvidenceSaid(number=1, is_there=is_there), pipes)
        assert await shown is None
        assert not any(map(is_open, pipes))

    played(story)


def test_an_answer_that_comes_too_late_is_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWERED_S", 0.01)

    async def story(desk: EvidenceDesk, sent: list[Message]) -> None:
        assert await desk.opened(FINDING, ASKED) is None
        desk.heard(EvidenceSaid(number=1, is_there=True), [pipe := pipe_with(b"late")])
        assert not is_open(pipe)

    played(story)
