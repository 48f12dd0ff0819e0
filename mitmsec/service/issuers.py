"""Issuers, as a worker may ask them: through the broker, or from what they said before."""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from collections import OrderedDict
from collections.abc import Callable

from mitmsec.channel import Channel, ChannelFull, close_all
from mitmsec.core.model import Revocation
from mitmsec.core.origin_proof import Standing, Status
from mitmsec.service.broker_messages import RevocationAnswer, RevocationQuestion, ServerLent
from mitmsec.service.lent_servers import LentServers
from mitmsec_certs.revocation_sources import sources_of

DEADLINE_S = {Revocation.SOFT: 3.0, Revocation.HARD: 12.0, Revocation.OFF: 0.0}  # a handshake waits no longer
KEPT_LIMIT = 1024  # chains
UNASKED, UNKNOWN = Standing.UNASKED, Standing.UNKNOWN


class Issuers:
    """The broker at the other end of `sock`."""

    def __init__(
        self,
        sock: socket.socket,
        loop: asyncio.AbstractEventLoop,
        *,
        clock_s: Callable[[], float] = time.time,
    ) -> None:
        self._channel = Channel(sock, [RevocationAnswer, ServerLent])
        self._clock_s = clock_s
        self._loop = loop
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[tuple[Status, ...]]] = {}
        self._kept: OrderedDict[tuple[bytes, ...], tuple[Status, ...]] = OrderedDict()
        self.servers = LentServers(self._channel, loop)
        """Connections come over the same channel."""
        self._channel.attach(loop, self._told, self._drop)

    async def ask(self, chain: tuple[bytes, ...], mode: Revocation) -> tuple[Status, ...]:
        """What they say about each certificate (DER) of `chain` but the last. Never raises."""
        if not any(map(sources_of, chain[:-1])):
            return self._all(chain, UNASKED)
        kept = self._kept.get(chain)
        if kept is not None and all(one.standing is UNASKED or self._clock_s() < one.until_s for one in kept):
            return kept
        answer = await self._answer(chain, DEADLINE_S[mode])
        if len(answer) != len(chain) - 1:
            return self._all(chain, UNKNOWN, "the broker answered something else")
        self._kept[chain] = answer
        self._kept.move_to_end(chain)
        if len(self._kept) > KEPT_LIMIT:
            self._kept.popitem(last=False)
        return answer

    async def _answer(self, chain: tuple[bytes, ...], deadline_s: float) -> tuple[Status, ...]:
        if self._channel.closed:
            return self._all(chain, UNKNOWN, "the broker has gone")
        number = next(self._numbers)
        future: asyncio.Future[tuple[Status, ...]] = self._loop.create_future()
        self._asked[number] = future
        try:
            self._channel.send(RevocationQuestion(number=number, chain=chain))
            async with asyncio.timeout(deadline_s):
                return await future
        except (ChannelFull, TimeoutError, ValueError):  # the last: a chain that fits in no packet
            return self._all(chain, UNKNOWN, f"no answer within {deadline_s:g} s")
        finally:
            del self._asked[number]

    @staticmethod
    def _all(chain: tuple[bytes, ...], standing: Standing, text: str = "") -> tuple[Status, ...]:
        return (Status(standing=standing, text=text),) * (len(chain) - 1)

    def _told(self, answer: RevocationAnswer | ServerLent, fds: list[int]) -> None:
        if isinstance(answer, ServerLent):
            return self.servers.told(answer, fds)
        close_all(fds)
        future = self._asked.get(answer.number)
        if future is not None and not future.done():
            future.set_result(answer.statuses)

    def _drop(self) -> None:
        self.servers.drop()
        for future in self._asked.values():
            if not future.done():
                future.set_result(())

    def close(self) -> None:
        self._channel.close()
        self._drop()
