"""What is cheap to send may be dear to read: reading cut into turns, so that nobody gets the loop for long.

    feed ──► steps ──► as many as fit into TURN_S ──► done
                           └─ behind ──► catch_up ──► the others, a turn in each round of the loop, whoever they are of
                                                           │ the body's budget is used up
                                                           ▼
                                                        given up: its rest is not inspected

One step may take longer than a turn: it is one piece of at most STEP_BYTES, decoded and asked about. What an inspector
may compute in one call is limited where it is asked. Time is the process's own, not the clock's, so a busy machine
makes nobody fail.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from weakref import WeakKeyDictionary

TURN_S = 0.01
STEP_BYTES = 1 << 14
FREE_S = 10.0  # of computing, for any body
BYTES_PER_S = 32 << 10  # that came: each buys more

_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()


class UsedUp(Exception):
    """The rest of a body is not read; the text says why."""


class Paced(ABC):
    """A body being read. What methods raise beside UsedUp, which goes to `_give_up`, is what `steps` raise."""

    def __init__(self) -> None:
        self.is_behind = False
        """Some of what was fed has not been read."""
        self._to_come = deque[Iterator[None]]()  # side by side: nested, each step would go through all
        self._left_s = FREE_S
        self._is_given_up = False
        self._stopped: Exception | None = None

    @abstractmethod
    def steps(self, data: bytes) -> Iterator[None]:
        """The next bytes, as they travel, read in pieces that each take little time."""

    @abstractmethod
    def _give_up(self, error: Exception) -> None:
        """Nothing more is read."""

    def feed(self, data: bytes) -> None:
        """The next bytes, as they travel. Where it `is_behind` then, somebody has to let it `catch_up`."""
        if self._is_given_up:
            return
        self._left_s += len(data) / BYTES_PER_S
        self._to_come.append(self.steps(data))
        self._turn()

    async def catch_up(self) -> None:
        """Returns when all that was fed has been read."""
        while self.is_behind:
            async with _turns.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
                if self.is_behind:
                    self._turn()
                    await asyncio.sleep(0)
        if self._stopped is not None:  # by somebody else, meanwhile
            raise self._stopped

    def leave(self) -> None:
        """What has not been read is not going to be: there is nobody to wait for it."""
        if self.is_behind:
            self._stop("broke off before all of it was read")

    def _turn(self) -> None:
        self.is_behind, begun_s = False, time.process_time()
        while self._to_come and not self.is_behind:
            for _ in self._to_come[0]:
                if time.process_time() - begun_s > TURN_S:
                    self.is_behind = True
                    break
            else:
                self._to_come.popleft()
        self._left_s -= time.process_time() - begun_s
        if self._left_s < 0:
            self._stop("takes more computing than its size allows")

    def _stop(self, why: str) -> None:
        self.is_behind, self._is_given_up = False, True
        self._to_come.clear()
        try:
            self._give_up(UsedUp(why))
        except Exception as error:
            self._stopped = error
            raise
