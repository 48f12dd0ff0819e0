"""Orders about content on their way to the recorder: whose they are, and what comes back when nothing does."""

from __future__ import annotations

import asyncio
import os
from typing import Any, cast

import pytest

from mitmsec.core.content_orders import (
    ContentErased,
    ContentOrder,
    ContentRefused,
    EraseContent,
    RequestUnmasking,
    Unmask,
    Unmasked,
)
from mitmsec.core.unmasking import Person
from mitmsec.service import content_line
from mitmsec.service.children import ChildProcess
from mitmsec.service.content_line import ContentLine

ROOT, ALICE, BOB = Person(name="root", uid=0), Person(name="alice", uid=1000), Person(name="bob", uid=1001)


class Recorder:
    """Keeps what it is told; `answers` it at once where it is to."""

    def __init__(self, answer: Any = None) -> None:
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.channel, self.answer = self, answer
        self.told: list[ContentOrder] = []
        self.line: ContentLine | None = None

    def send(self, order: ContentOrder, *fds: int) -> None:
        self.told.append(order)
        for fd in fds:
            os.fstat(fd)
        if self.answer is not None and self.line is not None:
            self.line.heard(type(self.answer)(**{**_fields(self.answer), "number": order.number}))


def _fields(answer: Any) -> dict[str, Any]:
    return {name: getattr(answer, name) for name in answer.__struct_fields__}


def line_to(recorder: Recorder | None) -> ContentLine:
    made = ContentLine(lambda: cast("ChildProcess | None", recorder))
    if recorder is not None:
        recorder.line = made
    return made


@pytest.mark.parametrize(
    ("client", "said", "by"),
    [(ALICE, None, ALICE), (ALICE, BOB, ALICE), (ROOT, None, ROOT), (ROOT, BOB, BOB)],
)
def test_who_orders_is_who_the_kernel_says_and_root_alone_may_say_another(
    client: Person, said: Person | None, by: Person
) -> None:
    async def story() -> None:
        recorder = Recorder(ContentErased(count=3))
        answer = await line_to(recorder).order(EraseContent(by=said, user="joe"), client, [])
        assert answer == ContentErased(count=3, number=1)
        assert recorder.told == [EraseContent(by=by, user="joe", number=1)]

    asyncio.run(story())


def test_what_is_shown_goes_into_the_descriptor_that_came_and_none_is_left_open() -> None:
    async def story() -> None:
        recorder = Recorder(Unmasked(approved_by=BOB))
        line = line_to(recorder)
        reading, writing = os.pipe()
        assert isinstance(await line.order(Unmask(event="e"), ALICE, [writing]), Unmasked)
        with pytest.raises(OSError):
            os.fstat(writing)
        for order, fds in ((Unmask(event="e"), []), (RequestUnmasking(event="e", reason="r"), [reading])):
            refused = await line.order(order, ALICE, fds)
            assert isinstance(refused, ContentRefused)
            assert refused.error == "descriptors are missing"
        with pytest.raises(OSError):
            os.fstat(reading)
        assert len(recorder.told) == 1

    asyncio.run(story())


def test_without_a_recorder_or_when_it_ends_or_says_nothing_that_is_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        nobody = await line_to(None).ask(EraseContent(user="joe"))
        assert isinstance(nobody, ContentRefused)
        assert (nobody.error, nobody.status) == ("no recorder runs just now", 3)
        dies = Recorder()
        asking = asyncio.create_task(line_to(dies).ask(EraseContent(user="joe")))
        await asyncio.sleep(0)
        dies.ended.set_result(9)
        died = await asking
        assert isinstance(died, ContentRefused)
        assert died.error == "the recorder has ended"
        monkeypatch.setattr(content_line, "DEADLINE_S", 0.01)
        silent = line_to(Recorder())
        late = await silent.ask(EraseContent(user="joe"))
        assert isinstance(late, ContentRefused)
        assert late.error == "the audit log does not take the event"
        silent.heard(ContentErased(count=1, number=1))  # nobody waits for it any more
        silent.heard("something else")

    asyncio.run(story())
