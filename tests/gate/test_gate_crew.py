"""Workers: who gets a flow, who may speak of it, and what a death means."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

import pytest
from gate_house import WAIT_S, on_loop

from mitmsec.audit.event import FaultSeen
from mitmsec.channel import Channel, pair
from mitmsec.core.messages import FlowEnded, HandOver, Plaintext, UpstreamAnswer, UpstreamQuestion
from mitmsec.core.model import Action, Decision, Endpoint
from mitmsec.gate import crew as module
from mitmsec.gate.crew import Crew
from mitmsec.gate.faults import Faults
from mitmsec.gate.signals import AnyEvent, Staffed, Unstaffed, WorkerDied, WorkerSaid

HERE = Endpoint(address="127.0.0.1", port=1)
DECISION = Decision(action=Action.DECRYPT, rule="r", reason="")


def hand_over(flow: str) -> HandOver:
    return HandOver(flow=flow, kind=Plaintext.TLS, name="a.test", origin=HERE, client=HERE, decision=DECISION)


def ended(flow: str) -> FlowEnded:
    return FlowEnded(flow=flow, bytes_sent=0, bytes_received=0, outcome="completed")


class Member:
    """A flow that remembers what it is told."""

    def __init__(self, identity: str) -> None:
        self.id = identity
        self.told: asyncio.Queue[Any] = asyncio.Queue()

    def tell(self, event: AnyEvent) -> None:
        self.told.put_nowait(event)

    def dial_more(self, number: int) -> None:
        self.told.put_nowait(number)

    async def next(self) -> Any:
        return await asyncio.wait_for(self.told.get(), WAIT_S)


class Bench:
    """A crew, and the far ends of its workers' channels."""

    def __init__(self) -> None:
        self.faults: list[FaultSeen] = []
        self.loop = asyncio.get_running_loop()
        self.crew = Crew(self.loop, Faults(self.faults.append, "s"))
        self.workers: list[Channel] = []

    def up(self, number: int) -> Channel:
        mine, theirs = pair()
        self.crew.up(number, mine.detach())
        self.workers.append(Channel(theirs, [HandOver, UpstreamAnswer]))
        return self.workers[-1]

    async def hear(self, worker: Channel) -> tuple[Any, list[int]]:
        async with asyncio.timeout(WAIT_S):
            while True:
                try:
                    received = worker.receive()
                except BlockingIOError:
                    await asyncio.sleep(0.001)
                    continue
                assert received is not None
                return received

    def hand(self, number: int, member: Member) -> None:
        one, other = socket.socketpair()
        with one, other:
            self.crew.hand(number, member, hand_over(member.id), one.fileno(), other.fileno())

    def close(self) -> None:
        self.crew.close()
        for worker in self.workers:
            worker.close()


@on_loop
async def test_a_flow_gets_the_worker_with_the_fewest_flows_and_both_sockets() -> None:
    bench = Bench()
    workers = [bench.up(0), bench.up(1)]
    got = []
    for number in range(4):
        member = Member(f"f{number}")
        bench.crew.staff(member)
        staffed = await member.next()
        got.append(staffed.worker)
        bench.hand(staffed.worker, member)
    assert sorted(got) == [0, 0, 1, 1]
    message, fds = await bench.hear(workers[got[0]])
    assert message == hand_over("f0")
    assert len(fds) == 2
    for fd in fds:
        os.close(fd)
    bench.close()


@on_loop
async def test_without_a_worker_a_flow_waits_for_the_next() -> None:
    bench = Bench()
    member, gone = Member("f"), Member("g")
    bench.crew.staff(member)
    bench.crew.staff(gone)
    assert await member.next() == await gone.next() == Unstaffed()
    bench.crew.part(-1, "g")
    bench.up(2)
    assert await member.next() == Staffed(2)
    assert gone.told.empty()
    bench.close()


@on_loop
async def test_a_death_is_told_to_the_flows_of_that_worker_only() -> None:
    bench = Bench()
    dying, _ = bench.up(0), bench.up(1)
    mine, others = Member("mine"), Member("others")
    bench.hand(0, mine)
    bench.hand(1, others)
    dying.close()
    assert await mine.next() == WorkerDied()
    assert others.told.empty()
    assert len(bench.crew) == 1
    late = Member("late")
    bench.hand(0, late)
    assert await late.next() == WorkerDied()
    bench.crew.answer(0, UpstreamAnswer(flow="mine", number=1))  # to nobody
    bench.close()


@on_loop
async def test_a_new_worker_of_the_same_number_replaces_the_old_one() -> None:
    bench = Bench()
    bench.up(0)
    member = Member("f")
    bench.hand(0, member)
    bench.up(0)
    assert await member.next() == WorkerDied()
    assert len(bench.crew) == 1
    bench.close()


@on_loop
async def test_an_end_is_told_once() -> None:
    bench = Bench()
    worker = bench.up(0)
    member = Member("f")
    bench.hand(0, member)
    worker.send(ended("f"))
    assert await member.next() == WorkerSaid(ended("f"))
    worker.send(ended("f"))
    worker.send(UpstreamQuestion(flow="x", number=1))
    assert (await answer_of(bench, worker))[0].error
    assert [fault.what for fault in bench.faults] == ["foreign_flow"]
    bench.close()


async def answer_of(bench: Bench, worker: Channel) -> tuple[Any, list[int]]:
    """The next UpstreamAnswer, whatever was handed over before it."""
    while True:
        message, fds = await bench.hear(worker)
        if isinstance(message, UpstreamAnswer):
            return message, fds
        for fd in fds:
            os.close(fd)


@on_loop
async def test_a_worker_may_ask_only_about_flows_that_it_has() -> None:
    bench = Bench()
    worker, other = bench.up(0), bench.up(1)
    member = Member("f")
    bench.hand(0, member)
    other.send(UpstreamQuestion(flow="f", number=7))
    message, fds = await answer_of(bench, other)
    assert (message.flow, message.number, message.error, fds) == ("f", 7, "not your flow", [])
    assert [fault.what for fault in bench.faults] == ["foreign_flow"]
    assert member.told.empty()
    worker.send(UpstreamQuestion(flow="f", number=8))
    assert await member.next() == 8
    bench.close()


@on_loop
async def test_a_flow_that_the_gate_has_ended_is_not_held_against_its_worker() -> None:
    bench = Bench()
    worker = bench.up(0)
    member = Member("f")
    bench.hand(0, member)
    bench.crew.part(0, "f")
    worker.send(UpstreamQuestion(flow="f", number=1))
    worker.send(ended("f"))
    assert (await answer_of(bench, worker))[0].error
    worker.send(UpstreamQuestion(flow="f", number=2))  # its end was told: now it is nobody's
    assert (await answer_of(bench, worker))[0].error
    assert [fault.what for fault in bench.faults] == ["foreign_flow"]
    assert member.told.empty()
    bench.close()


@on_loop
async def test_a_worker_that_says_what_a_worker_does_not_say_is_ended() -> None:
    bench = Bench()
    worker = bench.up(0)
    member = Member("f")
    bench.hand(0, member)
    worker.send(UpstreamAnswer(flow="f", number=1))
    assert await member.next() == WorkerDied()
    bench.close()


@pytest.mark.parametrize("limit", ["hangs", "is full"])
def test_a_worker_that_does_not_read_gets_no_more_and_then_counts_as_dead(
    limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.up(0)
        monkeypatch.setattr(module, "QUEUED_LIMIT", 1)
        if limit == "is full":
            monkeypatch.setattr("mitmsec.channel.QUEUE_LIMIT", 1)
        members = [Member(f"f{number}") for number in range(600)]
        for member in members:
            bench.hand(0, member)
        if limit == "hangs":
            waiting = Member("w")
            bench.crew.staff(waiting)
            assert await waiting.next() == Unstaffed()
        else:
            assert await members[0].next() == WorkerDied()
            assert not len(bench.crew)
        bench.close()

    asyncio.run(scenario())
