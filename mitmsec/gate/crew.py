"""The workers that flows are handed to, one channel each.

gate ── HandOver + client[, origin] ► worker ── Taken, soon ────► gate  (unless it has said more by then)
                                             ── FlowEnded, at last ──►
             ── or Upgrading: it has let go, and the flow may be handed over again ──►
     ◄─ UpstreamQuestion(flow) ──────           (only of flows that it has; dialled is only that flow's origin)
     ── UpstreamAnswer + socket ────►
the channel's end is the worker's death: its flows are told, and the gate's own copy of each client is reset

A worker that hangs keeps its channel open. It is known by its silence: while it has flows that it has not taken, every
word of it counts as a sign of life, whichever flow it is about, because a healthy worker's loop takes some flows in
every round however much it has to do. Silent for `QUIET_S`, it gets no new flows; silent for `HANGS_S`, it counts as
dead, and the supervisor ends it. Only time counts in which the gate itself was awake: after a stop of the whole
machine, or of the gate, a worker has its full time to answer.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Collection
from typing import Protocol

from mitmsec.channel import Channel, ChannelFull, close_all
from mitmsec.core.messages import FlowEnded, HandOver, Taken, Upgrading, UpstreamAnswer, UpstreamQuestion
from mitmsec.gate.faults import Faults
from mitmsec.gate.signals import AnyEvent, Staffed, Unstaffed, WorkerDied, WorkerSaid, WorkerUpgrades

QUEUED_LIMIT = 64  # messages that a worker has not taken: beyond it, it gets nothing more
QUIET_S = 1.0  # `on_failure` is to hold within about a second more (Terms.staff_deadline_s)
HANGS_S = 10.0  # far beyond a turn of its loop (mitmsec.engine.turns), so that no origin gets a worker killed
AWAKE_STEP_S = 0.5  # time between two checks counts up to this much: they come with every heartbeat


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
        self.untaken: set[str] = set()
        """Flows that it was handed and has not said anything of."""
        self.silent_since_s = 0.0
        """Its last word, or the first hand-over after a time in which none was untaken."""
        self.retired = False
        """It gets no new flows, and ends with its last one."""
        self.parted: set[str] = set()
        """Flows that the gate ended itself: the worker will still speak of them, once."""
        self.may_return: set[str] = set()
        """Dialogues that it has let go of, and that are not decided anew yet."""

    def handed(self, flow: str, now_s: float) -> None:
        if not self.untaken:
            self.silent_since_s = now_s
        self.untaken.add(flow)

    def spoke(self, flow: str, now_s: float) -> None:
        self.untaken.discard(flow)
        self.silent_since_s = now_s

    def silent_s(self, now_s: float) -> float:
        """For how long it has left flows untaken without a word."""
        return now_s - self.silent_since_s if self.untaken else 0.0


class Crew:
    """All workers of a run."""

    def __init__(self, loop: asyncio.AbstractEventLoop, faults: Faults, hangs: Callable[[int], None]) -> None:
        self._loop, self._faults, self._hangs = loop, faults, hangs
        self._awake_s = 0.0
        self._checked_s: float | None = None
        self._workers: dict[int, Worker] = {}
        self._waiting: dict[str, Member] = {}

    def __len__(self) -> int:
        return len(self._workers)

    def up(self, number: int, fd: int, *, reserve: bool = False) -> None:
        """A worker lives; `fd` is our end of its channel. Whoever has waited for one gets it, unless in `reserve`."""
        stale = self._workers.get(number)
        if stale is not None:
            self._died(stale)
        channel = Channel(socket.socket(fileno=fd), [Taken, UpstreamQuestion, Upgrading, FlowEnded])
        worker = self._workers[number] = Worker(number, channel)
        worker.retired = reserve
        channel.attach(self._loop, lambda message, fds: self._said(worker, message, fds), lambda: self._died(worker))
        self._staff_waiting()

    def keep_only(self, numbers: Collection[int]) -> None:
        """New flows go to these workers only; the others may go once they have none."""
        for worker in list(self._workers.values()):
            worker.retired = worker.number not in numbers
            self._leave_if_done(worker)
        self._staff_waiting()

    def staff(self, member: Member, preferred: int = -1) -> None:
        """Tell `member` its worker: the preferred one, else that with the fewest flows. Without any, tell that, once,
        and it later.

        A dialogue returns to the worker that let go of it, retired or not: that one knows the policy that decides it.
        """
        able = [worker for worker in self._workers.values() if self._is_able(worker, member.id)]
        if any(worker.number == preferred for worker in able):
            member.tell(Staffed(preferred))
        elif able:
            member.tell(Staffed(min(able, key=lambda worker: len(worker.flows)).number))
        elif member.id not in self._waiting:
            self._waiting[member.id] = member
            member.tell(Unstaffed())

    def check(self, now_s: float) -> None:
        """Give up workers that hang. To be called with every heartbeat."""
        if self._checked_s is not None:
            self._awake_s += min(now_s - self._checked_s, AWAKE_STEP_S)
        self._checked_s = now_s
        for worker in list(self._workers.values()):
            if worker.silent_s(self._awake_s) >= HANGS_S:
                self._faults.saw("worker_hangs", detail=f"worker {worker.number}, {len(worker.untaken)} flows untaken")
                self._died(worker)
                self._hangs(worker.number)

    def hand(self, number: int, member: Member, message: HandOver, *fds: int) -> None:
        """Send the sockets, `fds`. A worker that died in between tells so, like one that dies later."""
        worker = self._workers.get(number)
        if worker is None:
            return member.tell(WorkerDied())
        worker.flows[member.id] = member
        try:
            self._send(worker, message, *fds)
        except OSError:  # no descriptor to be had: the worker never hears of the flow
            worker.flows.pop(member.id, None)
            raise
        self._returned(member.id)
        worker.handed(member.id, self._awake_s)

    def answer(self, number: int, answer: UpstreamAnswer, *fds: int) -> None:
        worker = self._workers.get(number)
        if worker is not None:
            self._send(worker, answer, *fds)

    def part(self, number: int, flow: str) -> None:
        """The gate needs no worker for `flow`: whatever its worker says of it from now on counts for nothing."""
        self._waiting.pop(flow, None)
        self._returned(flow)
        worker = self._workers.get(number)
        if worker is not None and worker.flows.pop(flow, None) is not None:
            worker.parted.add(flow)
            self._loop.call_soon(self._leave_if_done, worker)

    def _returned(self, flow: str) -> None:
        """Nobody needs to stay for it any more: it was handed over again, to whomever, or goes on without a worker."""
        for worker in self._workers.values():
            if flow in worker.may_return:
                worker.may_return.discard(flow)
                self._loop.call_soon(self._leave_if_done, worker)

    def close(self) -> None:
        for worker in list(self._workers.values()):
            worker.channel.close()
        self._workers.clear()

    def _is_able(self, worker: Worker, flow: str = "") -> bool:
        if worker.retired and flow not in worker.may_return:
            return False
        return worker.channel.queued < QUEUED_LIMIT and worker.silent_s(self._awake_s) < QUIET_S

    def _staff_waiting(self) -> None:
        for member in list(self._waiting.values()):
            if not any(map(self._is_able, self._workers.values())):
                return
            if self._waiting.pop(member.id, None) is not None:  # else it was parted meanwhile
                self.staff(member)

    def _leave_if_done(self, worker: Worker) -> None:
        """It sees the end of its channel, and ends."""
        if worker.retired and not worker.flows and not worker.may_return and self._workers.get(worker.number) is worker:
            worker.channel.close()
            del self._workers[worker.number]

    def _send(self, worker: Worker, message: HandOver | UpstreamAnswer, *fds: int) -> None:
        try:
            worker.channel.send(message, *fds)
        except ChannelFull:  # it has not read for thousands of messages
            self._died(worker)

    def _said(self, worker: Worker, message: Taken | UpstreamQuestion | Upgrading | FlowEnded, fds: list[int]) -> None:
        close_all(fds)
        worker.spoke(message.flow, self._awake_s)
        if self._waiting and self._is_able(worker):
            self._staff_waiting()
        member = worker.flows.get(message.flow)
        match message:
            case Taken():
                if member is None and message.flow not in worker.parted:
                    self._foreign(worker, message.flow)
            case FlowEnded() | Upgrading():
                if member is not None:
                    del worker.flows[message.flow]
                    if isinstance(message, Upgrading):
                        worker.may_return.add(message.flow)
                    member.tell(WorkerSaid(message) if isinstance(message, FlowEnded) else WorkerUpgrades(message))
                    self._leave_if_done(worker)
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
