"""A process's end of its channel to the recorder.

    record(seen) ──► [ window: sent, not yet committed ] ──► socket ──► recorder ──► disk
                              ▲                                            │
                              └───────────── Committed(count) ◄────────────┘

The window holds what is not yet on disk, wherever it waits (here, in the kernel, in the recorder). If it is full, by
number or by bytes, the recorder or its disk is too slow: the event is then counted and given up, never waited for, and
one fault says how many once half of the window is free. So memory is bounded, the traffic's loop never stalls for the
log, and the log says where it has a hole. A policy that would rather stop traffic hears of it at once, and of a disk
that takes nothing (`failing`) long before the window is full.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter, deque
from collections.abc import Callable

from mitmsec.audit.event import BytesSeen, FaultSeen, FindingSeen, RequestSeen, SealedSeen, SecretsSeen, Seen
from mitmsec.channel import Channel
from mitmsec.core.messages import Committed

WINDOW_EVENTS = 4096
WINDOW_BYTES = 8 << 20
EVENT_SIZE_BYTES = 1024  # what an event without payload is counted as

EVENTS_LOST = "events_lost"
CAPTURE_LOST = "capture_lost"
EVENT_UNSENDABLE = "event_unsendable"


class Producer:
    """Reports events to the recorder at the other end of `sock`, which it owns. Belongs to one loop.

    `limit` and `limit_bytes` bound what may be sent and not yet committed. `on_overflow(n)` is called for each event
    that had to be given up, with the number since the last report; `on_gone()` once if the recorder goes away first.
    """

    def __init__(
        self,
        sock: socket.socket,
        loop: asyncio.AbstractEventLoop,
        *,
        limit: int = WINDOW_EVENTS,
        limit_bytes: int = WINDOW_BYTES,
        on_overflow: Callable[[int], None] | None = None,
        on_gone: Callable[[], None] | None = None,
    ) -> None:
        self.sent = 0  # events that were handed to the channel, our own faults included
        self.committed = 0  # of these, from the first, so many are on disk
        self.lost = 0  # events that were given up
        self.failing = False  # the disk takes nothing for now, as far as the recorder has told
        self._limit, self._limit_bytes = limit, limit_bytes
        self._on_overflow, self._on_gone = on_overflow, on_gone
        self._sizes_bytes: deque[int] = deque()  # of the events in the window
        self._window_bytes = 0
        self._unreported: Counter[str] = Counter()
        self._waiting: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._loop = loop
        self._channel = Channel(sock, [Committed], queue_limit=limit + 1)  # never full: the window is smaller
        self._channel.attach(loop, self._on_message, self._on_end)

    @property
    def gone(self) -> bool:
        """Nobody takes events any more: the recorder has ended, or `close` was called."""
        return self._channel.closed

    @property
    def congested(self) -> bool:
        """More than half of the window is in use. Whoever can pause its source (a capture) should, until `relieved`."""
        return len(self._sizes_bytes) * 2 > self._limit or self._window_bytes * 2 > self._limit_bytes

    def record(self, seen: Seen) -> None:
        """Report `seen`. Never blocks and never raises: what cannot be sent is counted and reported as a fault."""
        size_bytes = EVENT_SIZE_BYTES + _payload_bytes(seen)
        if self._has_room(size_bytes):
            self._send(seen, size_bytes)
        else:
            self._lose(CAPTURE_LOST if isinstance(seen, BytesSeen | SecretsSeen) else EVENTS_LOST)
        self._report_losses()

    async def flushed(self) -> None:
        """Return once everything recorded so far is committed, or the recorder is gone."""
        await self._until(lambda: not self._sizes_bytes and not self._unreported)

    async def flushed_while_it_moves(self, *, quiet_s: float, limit_s: float) -> None:
        """As `flushed`; but not when nothing was committed for `quiet_s`, and no longer than `limit_s`."""
        until_s = self._loop.time() + limit_s
        while self._loop.time() < until_s:
            before = self.committed
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(self.flushed(), min(quiet_s, until_s - self._loop.time()))
            if self.committed == before:
                return

    async def relieved(self) -> None:
        """Return once the window is no longer `congested`, or the recorder is gone."""
        await self._until(lambda: not self.congested)

    def close(self) -> None:
        """End the channel. What the kernel has not taken yet is dropped: await `flushed` first. Idempotent."""
        self._channel.close()
        self._wake()

    # -- the window ----------------------------------------------------------------------------------------------------
    def _has_room(self, size_bytes: int) -> bool:
        return (
            not self.gone
            and len(self._sizes_bytes) < self._limit
            and (self._window_bytes + size_bytes <= self._limit_bytes or not self._sizes_bytes)
        )

    def _send(self, seen: Seen, size_bytes: int) -> None:
        try:
            self._channel.send(seen)
        except ValueError:  # more than a packet, or text that is no Unicode: must not cost the caller its flow
            return self._lose(EVENT_UNSENDABLE)
        self.sent += 1
        self._sizes_bytes.append(size_bytes)
        self._window_bytes += size_bytes

    def _lose(self, what: str) -> None:
        self.lost += 1
        self._unreported[what] += 1
        if self._on_overflow is not None:
            self._on_overflow(self._unreported.total())

    def _report_losses(self) -> None:
        """Only with half of the window free again: one fault for a time of trouble, not one for each gap in it."""
        if not self._unreported or self.congested or self.gone:
            return
        unreported, self._unreported = self._unreported, Counter()
        for what, count in unreported.items():
            self._send(FaultSeen(what=what, count=count), EVENT_SIZE_BYTES)

    # -- the channel ---------------------------------------------------------------------------------------------------
    def _on_message(self, message: Committed, fds: list[int]) -> None:
        del fds
        self.failing = message.failing
        for _ in range(min(message.count - self.committed, len(self._sizes_bytes))):
            self.committed += 1
            self._window_bytes -= self._sizes_bytes.popleft()
        self._report_losses()
        self._wake()

    def _on_end(self) -> None:
        self._wake()
        if self._on_gone is not None:
            self._on_gone()

    async def _until(self, holds: Callable[[], bool]) -> None:
        if self.gone or holds():
            return
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append((holds, waiter))
        await waiter

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for holds, waiter in waiting:
            if waiter.done():  # its task was cancelled
                continue
            if self.gone or holds():
                waiter.set_result(None)
            else:
                self._waiting.append((holds, waiter))


def _payload_bytes(seen: Seen) -> int:
    match seen:
        case BytesSeen() | SealedSeen():
            return len(seen.data)
        case SecretsSeen():
            return len(seen.lines)
        case RequestSeen():
            return len(seen.url)
        case FindingSeen():
            return len(seen.clear.value)
        case _:
            return 0
