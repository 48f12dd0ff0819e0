"""What a finding puts under quarantine: kept while it is read, sealed here, and sent to the recorder, which writes it.

    part ── as it travels ──► Kept ── no finding ──► forgotten
                                └──── finding ─────► Sealing ── pieces, as recorder takes them ──► STATE/quarantine

A worker may write nothing, and the recorder cannot read it: the content is sealed to people before it leaves. What
waits for an inspector's word is kept in memory, within CONTENT_LIMIT_BYTES a part and LIMIT_BYTES in all: of what is
longer the last, in which it was found; the item says where that begins. Where there is no more room for all, whoever
has most gives way, so that one upload that never ends keeps nobody else's content from being kept.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import deque
from collections.abc import Iterator

from msgspec.structs import replace

from mitmsec.audit.event import SealedSeen
from mitmsec.core.quarantine import CONTENT_LIMIT_BYTES, About, about_line, in_pieces
from mitmsec.engine.seams import Recorder, Sealing

LIMIT_BYTES = 64 << 20  # of a worker
MESSAGE_BYTES = 128 << 10
JOIN_BYTES = 16 << 10  # small pieces are kept joined up to this: each would cost 50 bytes more than it counts
SMALL_BYTES = 4 << 10


class Quarantine:
    """One worker's. Belongs to one loop."""

    def __init__(self, sealing: Sealing, recorder: Recorder, limit_bytes: int = LIMIT_BYTES) -> None:
        self._sealing, self._recorder, self._limit_bytes = sealing, recorder, limit_bytes
        self._used_bytes = 0
        self._reading: dict[Kept, None] = {}  # those that hold something, and may still lose it
        self._sending: set[asyncio.Task[None]] = set()

    def kept(self) -> Kept:
        """For one part that is about to be read."""
        return Kept(self)

    def room(self, kept: Kept, size_bytes: int) -> bool:
        """Whether `kept` may have so much more; it is counted then. Larger ones give way, or older equals."""
        while self._used_bytes + size_bytes > self._limit_bytes:
            largest = max(self._reading, key=lambda one: one.size_bytes, default=kept)
            if largest is kept or largest.size_bytes < kept.size_bytes + size_bytes:
                return False
            largest.lose_first()
        self._used_bytes += size_bytes
        self._reading[kept] = None
        return True

    def free(self, size_bytes: int) -> None:
        """So much is kept no longer."""
        self._used_bytes -= size_bytes

    def settle(self, kept: Kept) -> None:
        """It loses nothing to others any more: it is on its way, or over."""
        self._reading.pop(kept, None)

    def put(self, about: About, kept: Kept) -> str:
        """Have it sealed and written; under which name. What becomes of that is on record."""
        item = f"{about.flow}-{os.urandom(4).hex()}"
        task = asyncio.get_running_loop().create_task(self._send(item, about, kept))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)
        return item

    async def settled(self) -> None:
        """All that was put there has been handed to the recorder."""
        while self._sending:
            await asyncio.wait(self._sending)

    async def _send(self, item: str, about: About, kept: Kept) -> None:
        """A message that the recorder never gets leaves a gap, by which it knows."""
        is_whole = kept.is_whole
        try:
            at = 0
            for data, is_last in self._messages(item, about, kept, is_whole=is_whole):
                if self._recorder.congested:
                    await self._recorder.relieved()
                self._recorder.record(
                    SealedSeen(flow=about.flow, item=item, at=at, data=data, is_last=is_last, is_whole=is_whole)
                )
                at += len(data)
                await asyncio.sleep(0)
        finally:
            kept.drop()

    def _messages(self, item: str, about: About, kept: Kept, *, is_whole: bool) -> Iterator[tuple[bytes, bool]]:
        one = self._sealing.begin(item, kept.size_bytes, is_whole=is_whole)
        waiting = one.preamble
        for piece, is_last in in_pieces(itertools.chain([about_line(about)], kept.taken())):
            waiting += one.sealed(piece, is_last=is_last)
            if is_last or len(waiting) >= MESSAGE_BYTES - (1 << 16):
                yield waiting, is_last
                waiting = b""


class Kept:
    """One part, as far as it has travelled and there is room."""

    __slots__ = ("_quarantine", "begins_at", "chunks", "is_ended", "is_over", "item", "size_bytes")

    def __init__(self, quarantine: Quarantine) -> None:
        self._quarantine = quarantine
        self.chunks = deque[bytes | bytearray]()
        self.size_bytes = 0
        self.begins_at = 0
        """So many bytes of the part came before, for which there is no more room."""
        self.is_over = False
        self.is_ended = False
        """All of the part has come."""
        self.item = ""
        """Its name, once it is under quarantine: nothing is added any more."""

    @property
    def is_whole(self) -> bool:
        """Nothing of the part is missing."""
        return self.is_ended and not self.begins_at

    def add(self, data: bytes) -> None:
        """The next of it, in place of the first where there is no room: what is found is at the end of what came."""
        if self.item or self.is_over:
            return
        while data and not self._has_room(len(data)):
            if self.chunks:
                self.lose_first()
            else:
                half = (len(data) + 1) // 2
                self.begins_at, data = self.begins_at + half, data[half:]
        if data:
            self._join(data)
            self.size_bytes += len(data)

    def _join(self, data: bytes) -> None:
        last = self.chunks[-1] if self.chunks else b""
        if isinstance(last, bytearray) and len(last) + len(data) <= JOIN_BYTES:
            last += data
        else:
            self.chunks.append(bytearray(data) if len(data) < SMALL_BYTES else data)

    def _has_room(self, size_bytes: int) -> bool:
        return self.size_bytes + size_bytes <= CONTENT_LIMIT_BYTES and self._quarantine.room(self, size_bytes)

    def lose_first(self) -> None:
        """What came first is kept no longer."""
        self.begins_at += len(self._take())

    def taken(self) -> Iterator[bytes]:
        """All that is kept, in order. There is room for other things as it is taken."""
        while self.chunks:
            yield bytes(self._take())

    def _take(self) -> bytes | bytearray:
        data = self.chunks.popleft()
        self._quarantine.free(len(data))
        self.size_bytes -= len(data)
        return data

    def put(self, about: About) -> str:
        """Under quarantine, once; under which name."""
        if not self.item:
            self._quarantine.settle(self)
            self.item = self._quarantine.put(replace(about, begins_at=self.begins_at), self)
        return self.item

    def drop(self) -> None:
        """It is kept no longer. Idempotent."""
        self._quarantine.settle(self)
        self._quarantine.free(self.size_bytes)
        self.chunks.clear()
        self.size_bytes, self.is_over = 0, True

    def leave(self) -> None:
        """The part is over: what is not under quarantine is kept no longer."""
        if not self.item:
            self.drop()
