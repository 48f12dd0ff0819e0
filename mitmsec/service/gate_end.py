"""How long the end of a gate is waited for: as long as it gets on with it, within a bound."""

from __future__ import annotations

import asyncio
import time

QUIET_S = 13.0  # for a gate to end its flows and see them recorded, or to have more of them there than before
LIMIT_S = 140.0  # more than it takes itself


class GateEnd:
    """Of one gate, from when it was told to end its flows. Belongs to the running loop."""

    def __init__(self) -> None:
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._begun_s = self._heard_s = time.monotonic()

    def goes_on(self) -> None:
        """More of its flows are on record than before."""
        self._heard_s = time.monotonic()

    def is_over(self) -> None:
        """All are."""
        if not self._over.done():
            self._over.set_result(None)

    async def came(self, gone: asyncio.Future[int]) -> bool:
        """Whether it came, or the gate has `gone`, in time."""
        while (now_s := time.monotonic()) < (until_s := min(self._heard_s + QUIET_S, self._begun_s + LIMIT_S)):
            ends = self._over, gone
            done, _ = await asyncio.wait(ends, timeout=until_s - now_s, return_when=asyncio.FIRST_COMPLETED)
            if done:
                return True
        return False

    @property
    def waited_s(self) -> float:
        return time.monotonic() - self._begun_s
