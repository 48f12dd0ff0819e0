"""The broker's composition root: for workers, who have no network, it asks issuers whether certificates were revoked.

    worker ── RevocationQuestion(chain) ──► certified by a root of ours? ─► desk, in a thread ─► RevocationAnswer ──►
    worker ── ServerWanted(address) ──► one that the policy's inspectors ask? ─► connect ─► ServerLent ──►

A worker is what an attacker gets, and could ask anything: so it does not say whom to ask and what. Both stand in
certificates, and one that no trusted CA has signed is asked about nowhere. What a responder answers never goes to the
worker, only what it means. Threads are started before the process is sealed; with all of them busy, questions wait, and
those that have no place to wait in are answered `unknown` at once. Each worker has places of its own, for questions and
for connections: one that fills its own, or whose server answers nobody, takes none of another's.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import msgspec

from mitmsec.channel import Channel, ChannelFull, close_all
from mitmsec.core.messages import Message, ProducerUp, Role
from mitmsec.core.origin_proof import Standing, Status
from mitmsec.engine.links import read_all
from mitmsec.service import child
from mitmsec.service.broker_messages import (
    BrokerSettings,
    RevocationAnswer,
    RevocationQuestion,
    ServerLent,
    ServerWanted,
)
from mitmsec.service.revocation_desk import RevocationDesk
from mitmsec_addons.dialling import dial, dial_clamd
from mitmsec_certs.bundle import certificates_in
from mitmsec_certs.revocation_sources import is_certified

THREADS = 4
WAITING_LIMIT = 256  # questions of one worker
CONNECTING_LIMIT = 64  # connections of one worker that are being made
CHAIN_LIMIT = 10
CONNECT_S = 5.0


type Tasks = set[asyncio.Task[None]]


class Waiting(msgspec.Struct):
    """What one worker waits for."""

    questions: Tasks = msgspec.field(default_factory=set)
    connections: Tasks = msgspec.field(default_factory=set)


class Broker:
    """Program of the broker process."""

    def __init__(self, control: Channel) -> None:
        self._control = control
        self._roots: frozenset[bytes] = frozenset()
        self._servers: frozenset[str] = frozenset()
        self._clamds: frozenset[str] = frozenset()
        self._desk = RevocationDesk()
        self._threads = ThreadPoolExecutor(THREADS)
        self._workers: dict[Channel, Waiting] = {}

    async def start(self, settings: BrokerSettings, fds: list[int]) -> Message | None:
        """Take the roots; start every thread now."""
        self._roots = frozenset(certificates_in(read_all(fds[0])))
        self._servers, self._clamds = frozenset(settings.servers), frozenset(settings.clamds)
        close_all(fds[1:])
        together = Barrier(THREADS)
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(self._threads, together.wait) for _ in range(THREADS)))
        return None

    def told(self, message: ProducerUp, fds: list[int]) -> None:
        """A worker to listen to."""
        if message.role is not Role.WORKER or len(fds) != 1:
            return close_all(fds)
        channel = Channel(socket.socket(fileno=fds[0]), [RevocationQuestion, ServerWanted])
        waiting = self._workers[channel] = Waiting()
        channel.attach(
            asyncio.get_running_loop(),
            lambda question, more: self._asked(channel, waiting, question, more),
            lambda: self._let_go(channel),
        )

    def _asked(
        self, channel: Channel, waiting: Waiting, question: RevocationQuestion | ServerWanted, fds: list[int]
    ) -> None:
        close_all(fds)
        if isinstance(question, ServerWanted):
            if len(waiting.connections) >= CONNECTING_LIMIT:
                return self._say(
                    channel, ServerLent(number=question.number, error="too many connections are being made")
                )
            return _begin(waiting.connections, self._lend(channel, question))
        if len(waiting.questions) >= WAITING_LIMIT or len(question.chain) > CHAIN_LIMIT:
            return self._answer(channel, question, _unknown(question, "too many questions"))
        _begin(waiting.questions, self._find_out(channel, question))

    def _let_go(self, channel: Channel) -> None:
        """It has gone, and waits for nothing more."""
        channel.close()
        for task in [*self._workers.pop(channel, Waiting()).connections]:
            task.cancel()

    async def _lend(self, channel: Channel, wanted: ServerWanted) -> None:
        """A worker that was taken over may ask for anything: it gets what the policy names, and of a clamd no more than
        a stream's beginning."""
        if wanted.address not in self._servers:
            return self._say(channel, ServerLent(number=wanted.number, error="no inspector's server has this address"))
        try:
            async with asyncio.timeout(CONNECT_S):
                made = await (dial_clamd if wanted.address in self._clamds else dial)(wanted.address)
        except OSError as error:  # TimeoutError is one
            why = os.strerror(error.errno) if error.errno else f"no connection within {CONNECT_S:g} s"
            return self._say(channel, ServerLent(number=wanted.number, error=why))
        with made:
            self._say(channel, ServerLent(number=wanted.number), made.fileno())

    async def _find_out(self, channel: Channel, question: RevocationQuestion) -> None:
        loop = asyncio.get_running_loop()
        self._answer(channel, question, await loop.run_in_executor(self._threads, self._statuses, question))

    def _answer(self, channel: Channel, question: RevocationQuestion, statuses: tuple[Status, ...]) -> None:
        self._say(channel, RevocationAnswer(number=question.number, statuses=statuses))

    def _say(self, channel: Channel, answer: RevocationAnswer | ServerLent, *fds: int) -> None:
        try:
            channel.send(answer, *fds)
        except (ChannelFull, OSError):  # it asks and never reads
            self._let_go(channel)

    def _statuses(self, question: RevocationQuestion) -> tuple[Status, ...]:
        if not is_certified(question.chain, self._roots):
            return _unknown(question, "not a chain of a root that is trusted")
        try:
            return self._desk.statuses(question.chain)
        except Exception as error:  # a bug of ours must not leave the worker without an answer
            return _unknown(question, f"the broker failed ({type(error).__name__})")

    async def stop(self) -> None:
        """Nobody waits for what threads still ask."""
        for channel in self._workers:
            channel.close()
        self._threads.shutdown(wait=False, cancel_futures=True)


def _begin(tasks: Tasks, work: Coroutine[None, None, None]) -> None:
    task = asyncio.get_running_loop().create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


def _unknown(question: RevocationQuestion, why: str) -> tuple[Status, ...]:
    return (Status(standing=Standing.UNKNOWN, text=why),) * max(0, len(question.chain) - 1)


def main() -> None:
    """Serve on the control channel whose descriptor is the first argument."""
    child.main([BrokerSettings, ProducerUp], Broker)
