"""A worker's way to the scanner: one content under way at a time, flows in turn.

    scan(flow, content) ──► waits for its turn ──► sent in pieces ──► ScanBegun ──► ScanAnswer ──► Hits
                                                        │                 └─ ScannerGone: ScannerDied, of this one
                                                        └─ ScannerGone: sent again, to the next scanner

So whoever sends much that takes long holds up only himself, and a content that ends the scanner fails alone. An answer
that gets lost, or word that the scanner has gone, holds up the others only while somebody waits for it, or OVERDUE_S.
"""

from __future__ import annotations

import asyncio
import itertools
import socket

import msgspec

from mitmsec.channel import Channel, close_all
from mitmsec.core.fair_queue import FairQueue
from mitmsec.core.rule_hits import Hits
from mitmsec.service.scanner_messages import ScanAnswer, ScanBegun, ScanContent, ScannerGone

PIECE_BYTES = 128 << 10
RETRY_S = 0.001
WAITING_LIMIT = 1024
OVERDUE_S = 30.0  # a scanner that does not answer anybody for so long is ended


class ScannerDied(OSError):
    """The scanner has ended, and what was asked of it is not known."""


class Scanning(msgspec.Struct, eq=False):
    """One content, and who waits for what is said about it."""

    flow: str
    content: bytes
    answer: asyncio.Future[Hits]
    number: int = 0
    sent_bytes: int = 0
    sent_s: float = 0.0
    begun: bool = False

    @property
    def is_sent(self) -> bool:
        return self.sent_bytes == len(self.content)


class ScanLine:
    """The scanner is at the other end of `sock`, or will be once something is sent."""

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self._channel = Channel(sock, [ScanBegun, ScanAnswer, ScannerGone])
        self._loop = loop
        self._numbers = itertools.count(1)
        self._waiting = FairQueue[Scanning]()
        self._under_way: Scanning | None = None
        self._channel.attach(loop, self._told, self._drop)

    async def scan(self, flow: str, content: bytes) -> Hits:
        """What the rules say about it. Raises ScannerDied, and OSError where too many wait."""
        if self._channel.closed:
            raise ScannerDied("the scanner has gone")
        if len(self._waiting) >= WAITING_LIMIT:
            raise BlockingIOError("too much waits for the scanner")
        one = Scanning(flow=flow, content=content, answer=self._loop.create_future())
        self._waiting.add(flow, one)
        self._go_on()
        try:
            return await one.answer
        finally:
            self._waiting.discard(flow, one)  # where nobody waits for it any more
            if one is self._under_way:
                self._loop.call_at(one.sent_s + OVERDUE_S, self._pass_over, one, one.number)

    def _pass_over(self, one: Scanning, number: int) -> None:
        """Nobody waits for it, and by now there would be an answer; one that comes later is nobody's."""
        if self._under_way is one and one.number == number and one.is_sent:
            self._next()

    def _go_on(self) -> None:
        while self._under_way is None and len(self._waiting):
            one = self._waiting.pop()
            if not one.answer.done():
                self._send(one)

    def _send(self, one: Scanning) -> None:
        self._under_way = one
        one.number, one.sent_bytes, one.begun = next(self._numbers), 0, False
        one.sent_s = self._loop.time()
        self._push(one, one.number)

    def _push(self, one: Scanning, number: int) -> None:
        """A piece in each round of the loop, and none while one waits: megabytes at once would hold up flows."""
        if self._under_way is not one or one.number != number:
            return  # it is sent anew, or over
        if one.answer.done():
            return self._next()  # nobody waits for it any more, and the next one says that it begins
        is_free = self._channel.queued == 0
        if is_free:
            piece = one.content[one.sent_bytes : one.sent_bytes + PIECE_BYTES]
            begins, one.sent_bytes = one.sent_bytes == 0, one.sent_bytes + len(piece)
            self._channel.send(ScanContent(number=number, data=piece, begins=begins, ends=one.is_sent))
        if not one.is_sent:
            self._loop.call_later(0 if is_free else RETRY_S, self._push, one, number)

    def _told(self, message: ScanBegun | ScanAnswer | ScannerGone, fds: list[int]) -> None:
        close_all(fds)
        one = self._under_way
        if one is None:
            return
        match message:
            case ScanBegun(number=number) if number == one.number:
                one.begun = True
            case ScanAnswer(number=number, hits=hits) if number == one.number:
                if not one.answer.done():
                    one.answer.set_result(hits)
                self._next()
            case ScannerGone(another_comes=another_comes):
                self._gone(one, another_comes=another_comes)
            case _:
                pass  # about one that was sent again since

    def _gone(self, one: Scanning, *, another_comes: bool) -> None:
        if not another_comes:
            self._fail_all("there is no scanner")
        elif one.begun:
            self._fail(one, "the scanner ended while it scanned this")
            self._next()
        elif one.answer.done():
            self._next()
        else:
            self._send(one)

    def _next(self) -> None:
        self._under_way = None
        self._go_on()

    def _fail(self, one: Scanning, why: str) -> None:
        if not one.answer.done():
            one.answer.set_exception(ScannerDied(why))

    def _fail_all(self, why: str) -> None:
        if self._under_way is not None:
            self._fail(self._under_way, why)
        self._under_way = None
        while len(self._waiting):
            self._fail(self._waiting.pop(), why)

    def _drop(self) -> None:
        """The supervisor has gone, and whoever scans with it."""
        self._fail_all("the scanner has gone")

    def close(self) -> None:
        self._channel.close()
        self._drop()
