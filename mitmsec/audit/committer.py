"""Group commit: while one batch is on its way to the disk, the next one gathers.

    add(draft) ─► gathering ──(LINGER_S)──► batch ─► writer thread: append + fsync ─► Committed to each producer
                                              ▲               │ LogUnwritable: every producer is told, once
                                              └── RETRY_S ────┘  (the same batch, until the disk takes it)

About once a second a batch takes a signed checkpoint along, and so does the end. The index follows by itself
(mitmsec.audit.following). Producers are acknowledged only for
what is on disk. While the disk takes nothing, reading stops at GATHERED_LIMIT
events, but for a share of each producer (mitmsec.audit.inlet); then the producers' own windows fill, and they say so.
A gate does not wait for that: from the first refusal on it lets nothing pass that its policy wants on record.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from mitmsec.audit.envelope import Draft
from mitmsec.audit.following import Following
from mitmsec.audit.inlet import Inlet
from mitmsec.audit.store import LogUnwritable, Store

LINGER_S = 0.05  # events that come close together share a sync and their index pages; `drained` does not wait for it
RETRY_S = 0.5
SIGN_S = 1.0  # between two checkpoints, while there is something new
GATHERED_LIMIT = 4096


class Committer:
    """Appends to `store`, in the order of `add`, and has `following` index that; it owns both.

    `settled()` says how far each producer's messages have been judged; `on_committed(drafts)` is called after each
    round; `on_refused()` when the disk begins to take nothing, `on_recovered(tries, why)` when it takes events again.
    """

    def __init__(
        self,
        store: Store,
        following: Following,
        settled: Callable[[], Sequence[tuple[Inlet, int]]],
        on_committed: Callable[[Sequence[Draft]], None],
        on_refused: Callable[[], None],
        on_recovered: Callable[[int, str], None],
    ) -> None:
        self._store = store
        self.failing = False  # the disk took nothing when it was last tried
        self._settled, self._on_committed = settled, on_committed
        self._on_refused, self._on_recovered = on_refused, on_recovered
        self._gathered: list[Draft] = []
        self._signed_s = -math.inf
        self._work, self._hurry, self._idle = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._idle.set()
        self._thread = ThreadPoolExecutor(1, "log")
        self._thread.submit(int).result()  # it runs now: later the process may start none
        self._following = following
        following.wake()  # it may be behind
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._task.add_done_callback(_die_of_bugs)

    @property
    def full(self) -> bool:
        """No more should be read until a round has ended, of who has much under way already."""
        return len(self._gathered) >= GATHERED_LIMIT

    def index_died(self) -> bool:
        """Whether nobody makes the index any more; said once."""
        return self._following.died()

    def add(self, draft: Draft) -> None:
        self._gathered.append(draft)
        self.poke()

    def poke(self) -> None:
        """Have one more round, be it only to acknowledge."""
        self._idle.clear()
        self._work.set()

    def holds(self, session: str) -> bool:
        """Some event of `session` is not on its way to the disk yet."""
        return any(draft.session == session for draft in self._gathered)

    async def drained(self) -> None:
        """Return once everything added is on disk and acknowledged."""
        self._hurry.set()
        await self._idle.wait()

    async def close(self) -> int:
        """End, whatever is left. Returns how many events never reached the disk."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown()
        if self._store.signed_size < self._store.tree.size:
            with contextlib.suppress(LogUnwritable):
                self._store.append([], signs=True)
        self._following.close()
        self._store.close()
        return len(self._gathered)

    async def _run(self) -> None:
        while True:
            await self._work.wait()
            await self._linger()
            self._work.clear()
            batch, self._gathered = self._gathered, []
            settled = self._settled()
            try:
                await self._append(batch)
            except asyncio.CancelledError:
                self._gathered = batch + self._gathered
                raise
            for inlet, count in settled:
                inlet.acknowledge(count)
            self._on_committed(batch)
            if not self._work.is_set():
                self._idle.set()

    async def _linger(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                await self._hurry.wait()
        self._hurry.clear()

    async def _append(self, batch: Sequence[Draft]) -> None:
        tries, why, loop = 0, "", asyncio.get_running_loop()
        signs = self._is_signing_due(len(batch), loop.time())
        while batch or signs:
            try:
                await loop.run_in_executor(self._thread, partial(self._store.append, batch, signs=signs))
                self._signed_s = loop.time() if signs else self._signed_s
                self._following.wake()
                break
            except LogUnwritable as error:
                if not batch:
                    return  # who has the next events says so
                tries, why = tries + 1, str(error)
                if tries == 1:
                    print(f"mitmsec recorder: the log takes no events ({why}); trying again", file=sys.stderr)
                    self.failing = True
                    self._on_refused()
                await asyncio.sleep(RETRY_S)
        if tries:
            self.failing = False
            self._on_recovered(tries, why)

    def _is_signing_due(self, events: int, now_s: float) -> bool:
        return self._store.signed_size < self._store.tree.size + events and now_s - self._signed_s >= SIGN_S


def _die_of_bugs(task: asyncio.Task[None]) -> None:
    """A recorder that no longer commits must not look alive: its end is what the supervisor can see."""
    if not task.cancelled() and (error := task.exception()) is not None:
        traceback.print_exception(error)
        os._exit(1)
