"""The supervisor's line to the recorder about content beside the log: orders there, numbered, and the answers back.

What is shown goes into a descriptor that passes through here unread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from msgspec.structs import replace

from mitmsec.channel import close_all
from mitmsec.core.content_orders import ContentAnswer, ContentOrder, ContentRefused, Unmask
from mitmsec.core.unmasking import Person
from mitmsec.service.children import ChildProcess

DEADLINE_S = 45.0  # before who has ordered it gives up
MACHINE, FAULT = 3, 125


class ContentLine:
    """`recorder` is asked for whenever something is ordered: it may be another one by then."""

    def __init__(self, recorder: Callable[[], ChildProcess | None]) -> None:
        self._recorder = recorder
        self._number = 0
        self._waiting: dict[int, asyncio.Future[ContentAnswer]] = {}

    async def order(self, order: ContentOrder, by: Person, fds: list[int]) -> ContentAnswer:
        """As `ask`, of a client that is `by`, as the kernel says; root's word on who it is, is believed. Owns `fds`."""
        try:
            if len(fds) != isinstance(order, Unmask):
                return ContentRefused(error="descriptors are missing", remedy="", status=FAULT)
            said = order.by if by.uid == 0 and order.by is not None else by
            return await self.ask(replace(order, by=said), *fds)
        finally:
            close_all(fds)

    async def ask(self, order: ContentOrder, *fds: int) -> ContentAnswer:
        """The recorder's answer, or that there is none."""
        recorder = self._recorder()
        if recorder is None or recorder.ended.done():
            return ContentRefused(
                error="no recorder runs just now", remedy="nothing was done; try again", status=MACHINE
            )
        self._number += 1
        number = self._number
        waiting: asyncio.Future[ContentAnswer] = asyncio.get_running_loop().create_future()
        self._waiting[number] = waiting
        try:
            recorder.channel.send(replace(order, number=number), *fds)
            await asyncio.wait((waiting, recorder.ended), timeout=DEADLINE_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            del self._waiting[number]
        if waiting.done():
            return waiting.result()
        why = "the recorder has ended" if recorder.ended.done() else "the audit log does not take the event"
        return ContentRefused(
            error=why, remedy="whether it was done, the log will say: try again later", status=MACHINE
        )

    def heard(self, message: object) -> None:
        """What the recorder says, if it is an answer."""
        if isinstance(message, ContentAnswer) and (waiting := self._waiting.get(message.number)) and not waiting.done():
            waiting.set_result(message)
