"""Connections to inspectors' servers, as a worker may have them: the broker makes them, and lends them."""

from __future__ import annotations

import asyncio
import itertools
import socket

from mitmsec.channel import Channel, ChannelFull, close_all
from mitmsec.service.broker_messages import ServerLent, ServerWanted

DEADLINE_S = 10.0  # the first question begins a broker


class LentServers:
    """The broker is at the other end of `channel`; whoever reads that hands over what it says."""

    def __init__(self, channel: Channel, loop: asyncio.AbstractEventLoop) -> None:
        self._channel, self._loop = channel, loop
        self._numbers = itertools.count(1)
        self._wanted: dict[int, asyncio.Future[socket.socket]] = {}

    async def connect(self, address: str) -> socket.socket:
        """A connection to a server that the policy names. Raises OSError, of which TimeoutError is one."""
        if self._channel.closed:
            raise ConnectionRefusedError("the broker has gone")
        number = next(self._numbers)
        future: asyncio.Future[socket.socket] = self._loop.create_future()
        self._wanted[number] = future
        try:
            self._channel.send(ServerWanted(number=number, address=address))
            async with asyncio.timeout(DEADLINE_S):
                return await future
        except ChannelFull:
            raise ConnectionRefusedError("the broker reads nothing") from None
        finally:
            del self._wanted[number]

    def told(self, lent: ServerLent, fds: list[int]) -> None:
        """What the broker says to a question. What nobody waits for is closed."""
        future = self._wanted.get(lent.number)
        if future is None or future.done():
            return close_all(fds)
        if len(fds) != 1:
            close_all(fds)
            return future.set_exception(ConnectionRefusedError(lent.error or "the broker lent no connection"))
        made = socket.socket(fileno=fds[0])
        made.setblocking(False)
        future.set_result(made)

    def drop(self) -> None:
        """The broker has gone."""
        for future in self._wanted.values():
            if not future.done():
                future.set_exception(ConnectionRefusedError("the broker has gone"))
