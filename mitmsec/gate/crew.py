"""The workers that flows are handed to, one channel each.

gate ── HandOver + client, origin ──► worker ── FlowEnded ──► gate
     ◄─ UpstreamQuestion(flow) ──────           (only of flows that it has; dialled is only that flow's origin)
     ── UpstreamAnswer + socket ────►
the channel's end is the worker's death: its flows are told, and the gate's own copy of each client is reset
"""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol

from mitmsec.channel import Channel, ChannelFull, close_all
from mitmsec.core.messages import FlowEnded, HandOver, UpstreamAnswer, UpstreamQuestion
from mitmsec.gate.faults import Faults
from mitmsec.gate.signals import AnyEvent, Staffed, Unstaffed, WorkerDied, WorkerSaid

QUEUED_LIMIT = 64  # messages that a worker has not taken: beyond it, it hangs, and gets nothing more


class Member(Protocol):
    """A flow, as the crew knows it."""

    @property
    def id(self) -> str: ...

    def tell(self, event: AnyEvent) -> None: ...

    def dial_more(self, number: int) -> None:
        """The worker asks for another connection to this flow's origin; answered with Crew.answer."""


class Worker:
    """One worker, and who is with it."""

    def __init__(self, number: int, channel: Channel) -> None:
        self.number, self.channel = number, channel
        self.flows: dict[str, Member] = {}
        self.parted: set[str] = set()
        """Flows that the gate ended itself: the worker will still speak of them, once."""


class Crew:
    """All workers of a run."""

    def __init__(self, loop: asyncio.AbstractEventLoop, faults: Faults) -> None:
        self._loop, self._faults = loop, faults
        self._workers: dict[int, Worker] = {}
        self._waiting: dict[str, Member] = {}

    def __len__(self) -> int:
        return len(self._workers)

    def up(self, number: int, fd: int) -> None:
        """A worker lives; `fd` is our end of its channel. Whoever has waited for one gets it."""
        stale = self._workers.get(number)
        if stale is not None:
            self._died(stale)
        channel = Channel(socket.socket(fileno=fd), [UpstreamQuestion, FlowEnded])
        worker = self._workers[number] = Worker(number, channel)
        channel.attach(self._loop, lambda message, fds: self._said(worker, message, fds), lambda: self._died(worker))
        waiting, self._waiting = self._waiting, {}
        for member in waiting.values():
            self.staff(member)

    def staff(self, member: Member) -> None:
        """Tell `member` its worker: the one with the fewest flows. Without any, tell that, and the worker later."""
        able = [worker for worker in self._workers.values() if worker.channel.queued < QUEUED_LIMIT]
        if able:
            member.tell(Staffed(min(able, key=lambda worker: len(worker.flows)).number))
        else:
            self._waiting[member.id] = member
            member.tell(Unstaffed())

    def hand(self, number: int, member: Member, message: HandOver, client_fd: int, origin_fd: int) -> None:
        """Send both sockets. A worker that died in between tells so, like one that dies later."""
        worker = self._workers.get(number)
        if worker is None:
            return member.tell(WorkerDied())
        worker.flows[member.id] = member
        self._send(worker, message, client_fd, origin_fd)

    def answer(self, number: int, answer: UpstreamAnswer, *fds: int) -> None:
        worker = self._workers.get(number)
        if worker is not None:
            self._send(worker, answer, *fds)

    def part(self, number: int, flow: str) -> None:
        """The gate is done with `flow`: whatever its worker says of it from now on counts for nothing."""
        self._waiting.pop(flow, None)
        worker = self._workers.get(number)
        if worker is not None and worker.flows.pop(flow, None) is not None:
            worker.parted.add(flow)

    def close(self) -> None:
        for worker in list(self._workers.values()):
            worker.channel.close()
        self._workers.clear()

    def _send(self, worker: Worker, message: HandOver | UpstreamAnswer, *fds: int) -> None:
        try:
            worker.channel.send(message, *fds)
        except ChannelFull:  # it has not read for thousands of messages
            self._died(worker)

    def _said(self, worker: Worker, message: UpstreamQuestion | FlowEnded, fds: list[int]) -> None:
        close_all(fds)
        member = worker.flows.get(message.flow)
        match message:
            case FlowEnded():
                if member is not None:
                    del worker.flows[message.flow]
                    member.tell(WorkerSaid(message))
                elif message.flow in worker.parted:
                    worker.parted.discard(message.flow)
                else:
                    self._foreign(worker, message.flow)
            case UpstreamQuestion():
                if member is not None:
                    return member.dial_more(message.number)
                if message.flow not in worker.parted:
                    self._foreign(worker, message.flow)
                self._send(worker, UpstreamAnswer(flow=message.flow, number=message.number, error="not your flow"))

    def _foreign(self, worker: Worker, flow: str) -> None:
        """An honest worker never does this."""
        self._faults.saw("foreign_flow", detail=f"worker {worker.number} speaks of {flow[:64]!r}")

    def _died(self, worker: Worker) -> None:
        worker.channel.close()
        if self._workers.get(worker.number) is worker:
            del self._workers[worker.number]
        flows, worker.flows = worker.flows, {}
        for member in flows.values():
            member.tell(WorkerDied())
