"""The client's leg as the network sees it, for a capture file: never more than the recorder takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mitmsec.audit.event import BytesSeen
from mitmsec.engine.seams import Recorder

PIECE_BYTES = 1 << 16


class Wire:
    """`hold(True)`: the flow should read nothing until `hold(False)`; whether it does."""

    def __init__(
        self, flow: str, recorder: Recorder, loop: asyncio.AbstractEventLoop, hold: Callable[[bool], bool]
    ) -> None:
        self._flow, self._recorder, self._loop, self._hold = flow, recorder, loop, hold
        self._relief: asyncio.Task[None] | None = None

    def passed(self, sent: bool, data: bytes) -> None:
        """Raw bytes. What we send is what the program receives."""
        for at in range(0, len(data), PIECE_BYTES):
            self._recorder.record(BytesSeen(flow=self._flow, sent=not sent, data=data[at : at + PIECE_BYTES]))
        if self._relief is None and self._recorder.congested and self._hold(True):
            self._relief = self._loop.create_task(self._relieved())

    async def _relieved(self) -> None:
        await self._recorder.relieved()
        self._relief = None
        self._hold(False)

    def stop(self) -> None:
        if self._relief is not None:
            self._relief.cancel()
