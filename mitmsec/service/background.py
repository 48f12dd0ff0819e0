"""Work that nobody waits for, and that ends with its owner."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine

PAUSE_S = 0.1


async def for_ever(look: Callable[[], Awaitable[None]], failed: Callable[[Exception], None]) -> None:
    """`look`, again and again. What it raises is told once for each kind, and a moment later it has another try."""
    told: set[type[Exception]] = set()
    while True:
        try:
            await look()
        except Exception as error:
            if type(error) not in told:
                told.add(type(error))
                failed(error)
            await asyncio.sleep(PAUSE_S)


class Background:
    """Tasks that are kept alive until they end, or all are cancelled."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def cancel(self) -> None:
        """All that still run."""
        for task in self._tasks:
            task.cancel()
