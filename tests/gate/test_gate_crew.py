"""Workers: who gets a flow, who may speak of it, and what a death means."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import Any

import pytest
from gate_house import WAIT_S, on_loop

from mitmsec.audit.event import FaultSeen
from mitmsec.channel import Channel, pair
from mitmsec.core.messages import FlowEnded, HandOver, Plaintext, Taken, Upgrading, UpstreamAnswer, UpstreamQuestion
from mitmsec.core.model import Action, Decision, Endpoint
from mitmsec.gate import crew as module
from mitmsec.gate.crew import AWAKE_STEP_S, HANGS_S, QUIET_S, Crew
from mitmsec.gate.faults import Faults
from mitmsec.gate.signals import AnyEvent, Staffed, Unstaffed, WorkerDied, WorkerSaid, WorkerUpgrades

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
        self.hung: list[int] = []
        self.now_s = 5000.0
        self.loop = asyncio.get_running_loop()
        self.crew = Crew(self.loop, Faults(self.faults.append, "s"), self.hung.append)
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


# --- workers that hang ------------------------------------------------------------------------------------------------
def awake(bench: Bench, seconds: float) -> None:
    """The gate's heart beats for so long."""
    for _ in range(round(seconds / AWAKE_STEP_S)):
        bench.now_s += AWAKE_STEP_S
        bench.crew.check(bench.now_s)


async def heard(bench: Bench, worker: Channel, flow: str) -> None:
    """The gate has read that `flow` is taken: a question right after it has reached its flow."""
    worker.send(Taken(flow=flow))
    worker.send(UpstreamQuestion(flow="?", number=1))
    assert (await answer_of(bench, worker))[0].error


@on_loop
async def test_a_worker_that_takes_nothing_counts_as_dead_and_the_supervisor_is_to_end_it() -> None:
    bench = Bench()
    bench.up(4)
    member = Member("f")
    awake(bench, 1)
    bench.hand(4, member)
    awake(bench, HANGS_S - AWAKE_STEP_S)
    assert (bench.hung, len(bench.crew)) == ([], 1)
    awake(bench, AWAKE_STEP_S)
    assert (bench.hung, len(bench.crew)) == ([4], 0)
    assert await member.next() == WorkerDied()
    assert [(fault.what, fault.detail) for fault in bench.faults] == [("worker_hangs", "worker 4, 1 flows untaken")]
    awake(bench, HANGS_S)
    assert bench.hung == [4]
    bench.close()


@on_loop
async def test_a_worker_that_has_taken_all_it_was_handed_may_be_silent() -> None:
    bench = Bench()
    worker = bench.up(0)
    bench.hand(0, Member("f"))
    awake(bench, HANGS_S - AWAKE_STEP_S)
    await heard(bench, worker, "f")
    awake(bench, 100)
    bench.hand(0, Member("g"))  # its time begins now
    awake(bench, HANGS_S - AWAKE_STEP_S)
    assert bench.hung == []
    bench.close()


@on_loop
async def test_a_busy_worker_that_takes_one_flow_of_many_is_alive() -> None:
    bench = Bench()
    worker = bench.up(0)
    for number in range(5):
        bench.hand(0, Member(f"f{number}"))
    for number in range(4):
        awake(bench, HANGS_S - AWAKE_STEP_S)
        await heard(bench, worker, f"f{number}")
    assert bench.hung == []
    awake(bench, HANGS_S)
    assert bench.hung == [0]
    bench.close()


@on_loop
async def test_a_gate_that_was_itself_stopped_holds_that_against_nobody() -> None:
    bench = Bench()
    bench.up(0)
    bench.hand(0, Member("f"))
    awake(bench, AWAKE_STEP_S)
    bench.now_s += 3600
    bench.crew.check(bench.now_s)
    assert bench.hung == []
    bench.close()


@on_loop
async def test_a_quiet_worker_gets_no_new_flows_until_it_speaks() -> None:
    bench = Bench()
    worker = bench.up(0)
    awake(bench, AWAKE_STEP_S)
    bench.hand(0, Member("f"))
    awake(bench, QUIET_S)
    waiting = Member("w")
    bench.crew.staff(waiting)
    assert await waiting.next() == Unstaffed()
    other = bench.up(1)
    assert await waiting.next() == Staffed(1)
    other.close()
    while len(bench.crew) > 1:
        await asyncio.sleep(0)
    late = Member("l")
    bench.crew.staff(late)
    assert await late.next() == Unstaffed()
    bench.crew.staff(late)
    assert late.told.empty()  # it waits already, and its deadline is not to begin anew
    worker.send(Taken(flow="f"))
    assert await late.next() == Staffed(0)
    bench.close()


def test_room_for_one_is_given_to_the_one_that_has_waited_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        bench = Bench()
        waiting = [Member(f"w{number}") for number in range(3)]
        for member in waiting:
            bench.crew.staff(member)
            assert await member.next() == Unstaffed()
        room = iter([True, True])  # for the first: asked by `_staff_waiting`, and by `staff`
        monkeypatch.setattr(Crew, "_is_able", lambda self, worker, flow="": next(room, False))
        bench.up(0)
        assert await waiting[0].next() == Staffed(0)
        assert all(member.told.empty() for member in waiting)
        bench.close()

    asyncio.run(scenario())


def test_a_flow_that_could_not_be_handed_over_is_not_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.up(0)

        def no_descriptors(self: Channel, message: object, *fds: int) -> None:
            raise OSError(errno.EMFILE, "too many open files")

        monkeypatch.setattr(Channel, "send", no_descriptors)
        with pytest.raises(OSError, match="too many"):
            bench.hand(0, Member("f"))
        worker = bench.crew._workers[0]
        bench.crew.part(0, "f")
        assert not worker.flows
        assert not worker.parted
        bench.close()

    asyncio.run(scenario())


@on_loop
async def test_taking_a_flow_that_is_not_its_own_is_a_fault() -> None:
    bench = Bench()
    worker = bench.up(0)
    await heard(bench, worker, "x")
    assert [(fault.what, fault.detail) for fault in bench.faults] == [("foreign_flow", "worker 0 speaks of 'x'")]
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


@on_loop
async def test_a_worker_that_is_preferred_is_taken_if_it_can_take_more() -> None:
    bench = Bench()
    bench.up(0), bench.up(1)
    member = Member("f")
    for preferred in (0, 1):
        bench.crew.staff(member, preferred)
        assert await member.next() == Staffed(preferred)
    bench.crew.keep_only([0])
    bench.crew.staff(member, 1)
    assert await member.next() == Staffed(0)
    bench.close()


@on_loop
async def test_a_worker_that_lets_go_of_a_dialogue_has_it_no_more() -> None:
    bench = Bench()
    worker = bench.up(0)
    member = Member("f")
    bench.hand(0, member)
    upgrading = Upgrading(flow="f", bytes_sent=1, bytes_received=2)
    worker.send(upgrading)
    assert await member.next() == WorkerUpgrades(upgrading)
    worker.send(upgrading)
    worker.send(UpstreamQuestion(flow="x", number=1))
    await answer_of(bench, worker)
    assert [fault.what for fault in bench.faults] == ["foreign_flow"]  # equal ones are added up
    bench.close()
