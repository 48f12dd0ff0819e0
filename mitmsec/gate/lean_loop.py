"""What connections wait for, sockets and moments: on asyncio's loop, but without what that costs for each of them.

    asyncio's loop ──► one epoll of ours ──► whoever waits for a socket
                   └─► a timer for each delay ──► whoever waits for so long

A relayed connection waits for a socket or a moment ten times, and stops waiting twenty times. asyncio makes a handle
and a context for each, keeps the moments in a heap, and asks for transports first. Here a socket is one call into the
kernel and one entry; and as moments of the same delay come in the order in which they were set, they are a queue, of
which hardly any ever comes. There are few delays.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections import deque
from collections.abc import Callable
from typing import Protocol

EVENTS_LIMIT = 256  # sockets that are told of before others, timers among them, have their turn

type Told = Callable[[], None]


class Timer(Protocol):
    """A moment that is waited for."""

    def cancel(self) -> None:
        """It is not to be told. Idempotent."""


class Loop(Protocol):
    """What a connection needs of a loop; asyncio's has it, too."""

    def time(self) -> float: ...
    def call_soon(self, told: Told, /) -> Timer: ...
    def call_later(self, delay_s: float, told: Told, /) -> Timer: ...
    def add_reader(self, sock: socket.socket, told: Told, /) -> None: ...
    def add_writer(self, sock: socket.socket, told: Told, /) -> None: ...
    def remove_reader(self, sock: socket.socket, /) -> object: ...
    def remove_writer(self, sock: socket.socket, /) -> object: ...


class _Moment:
    __slots__ = ("at_s", "told")

    def __init__(self, at_s: float, told: Told) -> None:
        self.at_s = at_s
        self.told: Told | None = told

    def cancel(self) -> None:
        self.told = None


class _Delay:
    """All moments that come so long after they were set."""

    def __init__(self, loop: asyncio.AbstractEventLoop, delay_s: float) -> None:
        self._loop, self._delay_s = loop, delay_s
        self._moments: deque[_Moment] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, told: Told) -> _Moment:
        moments = self._moments
        while moments and moments[0].told is None:
            moments.popleft()
        moment = _Moment(self._loop.time() + self._delay_s, told)
        moments.append(moment)
        if self._timer is None:
            self._timer = self._loop.call_at(moment.at_s, self._due)
        return moment

    def _due(self) -> None:
        moments, now_s = self._moments, self._loop.time()
        try:
            while moments and (moments[0].told is None or moments[0].at_s <= now_s):
                told = moments.popleft().told
                if told is not None:
                    told()
        finally:
            self._timer = self._loop.call_at(moments[0].at_s, self._due) if moments else None

    def close(self) -> None:
        self._moments.clear()
        if self._timer is not None:
            self._timer.cancel()


class _Watched:
    __slots__ = ("reader", "writer")

    def __init__(self, reader: Told | None, writer: Told | None) -> None:
        self.reader, self.writer = reader, writer


class LeanLoop:
    """As asyncio's loop, for `Loop`. One that is told and raises ends the turn; the others are told in the next."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.time = loop.time
        self._epoll = select.epoll()
        self._watched: dict[int, _Watched] = {}
        self._delays: dict[float, _Delay] = {}
        loop.add_reader(self._epoll.fileno(), self._turn)

    def __len__(self) -> int:
        """Sockets that are waited for."""
        return len(self._watched)

    def call_soon(self, told: Told) -> asyncio.Handle:
        """In the loop's next turn."""
        return self._loop.call_soon(told)

    def call_later(self, delay_s: float, told: Told) -> _Moment:
        """In so many seconds."""
        delay = self._delays.get(delay_s)
        if delay is None:
            delay = self._delays[delay_s] = _Delay(self._loop, delay_s)
        return delay.add(told)

    def add_reader(self, sock: socket.socket, told: Told) -> None:
        """Whenever there is something to read, until `remove_reader`, which has to come before the socket's end."""
        fd = sock.fileno()
        watched = self._watched.get(fd)
        if watched is None:
            self._epoll.register(fd, select.EPOLLIN)
            self._watched[fd] = _Watched(told, None)
            return
        if watched.reader is None:
            self._epoll.modify(fd, select.EPOLLIN | select.EPOLLOUT)
        watched.reader = told

    def add_writer(self, sock: socket.socket, told: Told) -> None:
        """Whenever there is room for something to be sent; likewise."""
        fd = sock.fileno()
        watched = self._watched.get(fd)
        if watched is None:
            self._epoll.register(fd, select.EPOLLOUT)
            self._watched[fd] = _Watched(None, told)
            return
        if watched.writer is None:
            self._epoll.modify(fd, select.EPOLLIN | select.EPOLLOUT)
        watched.writer = told

    def remove_reader(self, sock: socket.socket) -> None:
        """Idempotent."""
        fd = sock.fileno()
        watched = self._watched.get(fd)
        if watched is not None and watched.reader is not None:
            watched.reader = None
            self._watch_less(fd, watched.writer is not None, select.EPOLLOUT)

    def remove_writer(self, sock: socket.socket) -> None:
        """Idempotent."""
        fd = sock.fileno()
        watched = self._watched.get(fd)
        if watched is not None and watched.writer is not None:
            watched.writer = None
            self._watch_less(fd, watched.reader is not None, select.EPOLLIN)

    def _watch_less(self, fd: int, has_rest: bool, rest: int) -> None:
        if has_rest:
            self._epoll.modify(fd, rest)
        else:
            del self._watched[fd]
            self._epoll.unregister(fd)

    def _turn(self) -> None:
        """By entry, not by descriptor: it may be another socket's by the time that its turn comes."""
        events_of = self._epoll.poll(0, EVENTS_LIMIT)
        ready = [(watched, events) for fd, events in events_of if (watched := self._watched.get(fd)) is not None]
        for watched, events in ready:  # an error or a hang-up is for both
            if events & ~select.EPOLLOUT and watched.reader is not None:
                watched.reader()
            if events & ~select.EPOLLIN and watched.writer is not None:
                watched.writer()

    def close(self) -> None:
        """Wait for nothing any more. Idempotent."""
        if self._epoll.closed:
            return
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._watched.clear()
        for delay in self._delays.values():
            delay.close()
