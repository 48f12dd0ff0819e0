"""What the console asks of evidence that lies beside the log: of who began it, who asks the recorder.

The value comes through a pipe from the recorder straight to here; nobody in between reads it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mitmsec.audit.console.desk import Unmask
from mitmsec.audit.envelope import Fields
from mitmsec.channel import close_all
from mitmsec.core.messages import Message
from mitmsec.service.console_messages import EvidenceHeld, EvidenceOrder, EvidenceSaid

ANSWERED_S = 60.0
VALUE_LIMIT_BYTES = 1 << 16


class EvidenceDesk:
    """A `Vault` for the pages (mitmsec.audit.console.ground). `send` is to who began the console."""

    def __init__(self, send: Callable[[Message], None]) -> None:
        self._send, self._number = send, 0
        self._waiting: dict[int, asyncio.Future[tuple[bool, list[int]]]] = {}

    async def holds(self, event: Fields) -> bool:
        """Whether there is something of this finding to be shown."""
        if not event.get("content"):
            return False
        is_there, fds = await self._asked(lambda number: EvidenceHeld(number=number, event=str(event["id"])))
        close_all(fds)
        return is_there

    async def opened(self, event: Fields, asked: Unmask) -> str | None:
        """What was redacted; None: it has gone, or the recorder does not agree that it may be shown."""
        order: Callable[[int], Message] = lambda number: EvidenceOrder(  # noqa: E731
            number=number,
            event=str(event["id"]),
            reason=asked.why,
            asked_by=asked.asked_by,
            approved_by=asked.decided_by,
        )
        is_there, fds = await self._asked(order)
        if not is_there or not fds:
            close_all(fds)
            return None
        with open(fds[0], "rb") as pipe:
            return pipe.read(VALUE_LIMIT_BYTES).decode(errors="backslashreplace")

    def heard(self, message: EvidenceSaid, fds: list[int]) -> None:
        """An answer. Owns `fds`."""
        waiting = self._waiting.pop(message.number, None)
        if waiting is None or waiting.done():
            close_all(fds)
            return
        waiting.set_result((message.is_there, fds))

    async def _asked(self, order: Callable[[int], Message]) -> tuple[bool, list[int]]:
        self._number += 1
        number = self._number
        waiting: asyncio.Future[tuple[bool, list[int]]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = waiting
        self._send(order(number))
        try:
            async with asyncio.timeout(ANSWERED_S):
                return await waiting
        except TimeoutError:
            self._waiting.pop(number, None)
            return False, []
