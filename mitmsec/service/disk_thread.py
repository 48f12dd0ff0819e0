"""One thread for what waits for the disk, beside a loop that must not.

It is started with this: later a child may start none (mitmsec.service.seccomp).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


class DiskThread:
    """Does one thing after the other. Belongs to the running loop."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, name)
        self._thread.submit(int).result()  # it runs now
        self._under_way: set[asyncio.Future[None]] = set()

    def __call__(self, work: Callable[[], None], done: Callable[[OSError | None], None]) -> None:
        """Have `work` done there; then `done` is called on the loop, with what it raised."""

        def over(future: asyncio.Future[None]) -> None:
            self._under_way.discard(future)
            if future.cancelled():
                return
            error = future.exception()
            if error is not None and not isinstance(error, OSError):
                raise error
            done(error)

        future = asyncio.get_running_loop().run_in_executor(self._thread, work)
        self._under_way.add(future)
        future.add_done_callback(over)

    async def idle(self, deadline_s: float) -> None:
        """All of it is done, or so much time has passed."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=deadline_s)

    def close(self) -> None:
        """What is not begun is left."""
        self._thread.shutdown(wait=False, cancel_futures=True)
