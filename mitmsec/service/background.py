"""Work that nobody waits for, and that ends with its owner."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine


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
