"""The engine's seams, spoken over channels: the gate's and the signer's.

gate   ── HandOver + client's and origin's sockets, of what is blocked the client's alone ──► flows
       ◄─ Taken, of what has not ended within TAKEN_AFTER_S
       ◄─ UpstreamQuestion ─ · ─ UpstreamAnswer + socket ──►
       ◄─ FlowEnded, or Upgrading
signer ◄─ MintQuestion ─ · ─ MintAnswer ──►
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import Callable

from mitmsec.channel import Channel, ChannelFull, close_all
from mitmsec.core.messages import (
    FlowEnded,
    HandOver,
    MintAnswer,
    MintQuestion,
    Taken,
    Upgrading,
    UpstreamAnswer,
    UpstreamQuestion,
)
from mitmsec.core.model import Action
from mitmsec.engine.seams import Leaf, LeafQuestion, Refused

ANSWER_DEADLINE_S = 35.0  # the gate's own deadline for a connection is 30 s
TAKEN_AFTER_S = 0.1  # most flows of a busy worker have ended by then, which says the same (mitmsec.gate.crew: QUIET_S)
Take = Callable[[HandOver, socket.socket, socket.socket | None], None]


class GateLink:
    """The gate at the other end of `sock`. `on_end` once when it has gone."""

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self._channel = Channel(sock, [HandOver, UpstreamAnswer])
        self._loop = loop
        self._numbers = itertools.count(1)
        self._asked: dict[int, tuple[str, asyncio.Future[socket.socket]]] = {}
        self._untold: dict[str, None] = {}
        """Flows that were handed over, of which nothing has been said."""
        self._take: Take | None = None
        self._end: Callable[[], None] | None = None

    def serve(self, take: Take, on_end: Callable[[], None]) -> None:
        """From now on flows that are handed over go to `take`."""
        self._take = take

        def end() -> None:
            self._drop()
            on_end()

        self._end = end
        self._channel.attach(self._loop, self._told, end)

    def _told(self, message: HandOver | UpstreamAnswer, fds: list[int]) -> None:
        if isinstance(message, UpstreamAnswer):
            return self._answered(message, fds)
        if not self._untold:
            self._loop.call_later(TAKEN_AFTER_S, self._tell_taken)
        self._untold[message.flow] = None
        due = 1 if message.decision.action is Action.BLOCK else 2
        if len(fds) != due or self._take is None:
            close_all(fds)
            return self.ended(
                FlowEnded(flow=message.flow, bytes_sent=0, bytes_received=0, outcome="fault", error="no sockets")
            )
        client, *origin = (socket.socket(fileno=fd) for fd in fds)
        self._take(message, client, origin[0] if origin else None)

    def _tell_taken(self) -> None:
        untold, self._untold = self._untold, {}
        for flow in untold:
            self._say(Taken(flow=flow))

    def _answered(self, answer: UpstreamAnswer, fds: list[int]) -> None:
        flow, future = self._asked.get(answer.number, ("", None))
        if future is None or future.done() or flow != answer.flow:
            return close_all(fds)
        if len(fds) == 1 and not answer.error:
            return future.set_result(socket.socket(fileno=fds[0]))
        close_all(fds)
        future.set_exception(Refused(answer.error or "the gate answered without a socket"))

    async def connect(self, flow: str) -> socket.socket:
        """Another connection to the origin that was decided for `flow`. Raises Refused."""
        number = next(self._numbers)
        future: asyncio.Future[socket.socket] = self._loop.create_future()
        self._asked[number] = flow, future
        try:
            self._channel.send(UpstreamQuestion(flow=flow, number=number))
            async with asyncio.timeout(ANSWER_DEADLINE_S):
                return await future
        except ChannelFull:
            raise Refused("the gate does not listen") from None
        except TimeoutError:
            raise Refused("the gate does not answer") from None
        finally:
            del self._asked[number]
            if future.done() and not future.cancelled() and future.exception() is None and self._channel.closed:
                future.result().close()

    def ended(self, flow: FlowEnded) -> None:
        """Both sockets of the flow are closed."""
        self._say(flow)

    def upgrading(self, flow: Upgrading) -> None:
        """Both sockets of the dialogue are closed here: the gate goes on with it."""
        self._say(flow)

    def _say(self, message: Taken | Upgrading | FlowEnded) -> None:
        self._untold.pop(message.flow, None)
        try:
            self._channel.send(message)
        except ChannelFull:
            self._channel.close()  # a gate that does not listen any more cannot be kept right
            if self._end is not None:
                self._loop.call_soon(self._end)

    def _drop(self) -> None:
        for _, future in self._asked.values():
            if not future.done():
                future.set_exception(Refused("the gate has gone"))

    def close(self) -> None:
        self._channel.close()
        self._drop()


class SignerLink:
    """The signer at the other end of `sock`."""

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self._channel = Channel(sock, [MintAnswer])
        self._loop = loop
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Leaf]] = {}
        self._channel.attach(loop, self._told, self._drop)

    async def leaf(self, question: LeafQuestion) -> Leaf:
        """The leaf, as `question` wants it. Raises Refused."""
        if self._channel.closed:
            raise Refused("the signer has gone")
        number = next(self._numbers)
        future: asyncio.Future[Leaf] = self._loop.create_future()
        self._asked[number] = future
        try:
            self._channel.send(
                MintQuestion(
                    number=number,
                    flow=question.flow,
                    key=question.key,
                    not_after_s=question.not_after_s,
                    flaw=question.flaw,
                )
            )
            async with asyncio.timeout(ANSWER_DEADLINE_S):
                return await future
        except (ChannelFull, TimeoutError):
            raise Refused("the signer does not answer") from None
        finally:
            del self._asked[number]

    def _told(self, answer: MintAnswer, fds: list[int]) -> None:
        close_all(fds)
        future = self._asked.get(answer.number)
        if future is None or future.done():
            return
        if answer.chain and not answer.error:
            future.set_result(Leaf(chain=answer.chain, key=answer.key))
        else:
            future.set_exception(Refused(answer.error or "the signer answered without a certificate"))

    def _drop(self) -> None:
        for future in self._asked.values():
            if not future.done():
                future.set_exception(Refused("the signer has gone"))

    def close(self) -> None:
        self._channel.close()
        self._drop()


def read_all(fd: int) -> bytes:
    """The whole content of a memory file; closes it."""
    try:  # other workers read the same open file, so its position is nobody's
        data = b""
        while piece := os.pread(fd, 1 << 20, len(data)):
            data += piece
        return data
    finally:
        os.close(fd)
