"""The relay and workers: what is handed over, what goes through the pairs, and every way in which that ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from test_gate_quic_relay import LATER, Stage, hello, is_empty, said, until

from mitmsec.audit.event import FlowHanded, Outcome
from mitmsec.channel import Channel, pair
from mitmsec.core.messages import FlowEnded, HandOver, Plaintext, Upgrading, UpstreamAnswer, UpstreamQuestion
from mitmsec.core.model import Action, OnFailure
from mitmsec.gate import quic_relay
from mitmsec.gate.terms import Terms


class Worker:
    """The far end of its channel."""

    def __init__(self, stage: Stage, number: int = 0) -> None:
        gate_end, ours = pair()
        self.told: asyncio.Queue[tuple[Any, list[socket.socket]]] = asyncio.Queue()
        self.channel = Channel(ours, [HandOver, UpstreamAnswer])
        self.channel.attach(asyncio.get_running_loop(), self._told, lambda: None)
        stage.crew.up(number, os.dup(gate_end.fileno()))
        gate_end.close()
        self.front, self.back = (socket.socket() for _ in range(2))

    def _told(self, message: Any, fds: list[int]) -> None:
        self.told.put_nowait((message, [socket.socket(fileno=fd) for fd in fds]))

    async def taken(self) -> HandOver:
        order, sockets = await asyncio.wait_for(self.told.get(), 10)
        assert isinstance(order, HandOver)
        self.front.close()
        self.back.close()
        self.front, self.back = sockets
        for sock in sockets:
            sock.setblocking(False)
        return order

    def ends(self, flow: str, outcome: str = "completed", *, was_heard: bool = True) -> None:
        ended = FlowEnded(flow=flow, bytes_sent=0, bytes_received=0, outcome=outcome, was_heard=was_heard)
        self.channel.send(ended)

    def leave(self) -> None:
        self.channel.close()
        self.front.close()
        self.back.close()


def played(story: Callable[[Stage, Worker], Awaitable[None]], workers: int = 1) -> None:
    async def run() -> None:
        with contextlib.ExitStack() as held:
            stage = Stage(held, "127.0.0.1")
            stage.terms = Terms(on_failure=OnFailure.OPEN, decrypts_quic=True)
            made = [Worker(stage, number) for number in range(workers)]
            try:
                await asyncio.wait_for(story(stage, made[0] if made else None), 30)  # type: ignore[arg-type]
            finally:
                stage.relay.close()
                stage.crew.close()
                for worker in made:
                    worker.leave()
                assert len(stage.relay) == 0

    asyncio.run(run())


async def packet(sock: socket.socket) -> bytes:
    return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 65535), 10)


async def origin_hears(stage: Stage, worker: Worker) -> Any:
    """Where the worker's words come from."""
    worker.back.send(b"to the origin")
    datagram, address = await said(stage.origin)
    assert datagram == b"to the origin"
    return address


def test_a_worker_has_the_flow_by_two_pairs_and_nothing_reaches_its_origin_but_what_the_worker_says() -> None:
    async def story(stage: Stage, worker: Worker) -> None:
        first = hello("origin.test")
        stage.send(*first, LATER)
        order = await worker.taken()
        assert (order.kind, order.name, order.origin) == (Plaintext.QUIC, "origin.test", stage.remote)
        assert [await packet(worker.front) for _ in (*first, LATER)] == [*first, LATER]
        assert is_empty(stage.origin)
        assert stage.minted == [(order.flow, "origin.test")]
        address = await origin_hears(stage, worker)
        stage.origin.sendto(b"from the origin", address)
        assert await packet(worker.back) == b"from the origin"
        worker.front.send(b"to the program")
        assert (await said(stage.program))[0] == b"to the program"
        assert (stage.relay.decrypted, stage.withdrawn) == (1, [])
        worker.front.send(b"and last")
        worker.front.close()
        worker.back.close()
        worker.ends(order.flow)
        await until(lambda: bool(stage.connections))
        (seen,) = stage.connections
        assert (seen.action, seen.outcome, seen.host) == (Action.DECRYPT, Outcome.COMPLETED, "origin.test")
        assert (seen.datagrams_received, seen.bytes_received) == (2, len(b"to the programand last"))
        assert (stage.relay.decrypted, stage.withdrawn) == (0, [order.flow])
        assert [event for event in stage.recorded if isinstance(event, FlowHanded)]

    played(story)


def test_without_a_worker_a_flow_is_refused_at_once() -> None:
    async def story(stage: Stage, _: Worker) -> None:
        stage.send(*hello("origin.test"))
        answer, _ = await said(stage.program)
        assert len(answer) < 200
        (seen,) = stage.connections
        assert (seen.action, seen.outcome) == (Action.BLOCK, Outcome.BLOCKED)
        assert "no worker is there" in seen.reason
        assert stage.minted == []

    played(story, workers=0)


def test_a_worker_that_dies_ends_its_flow() -> None:
    async def story(stage: Stage, worker: Worker) -> None:
        stage.send(*hello("origin.test"))
        await worker.taken()
        worker.channel.close()
        answer, _ = await said(stage.program)
        assert len(answer) < 200  # it has heard nothing, and is to use TCP
        (seen,) = stage.connections
        assert (seen.action, seen.outcome, seen.error) == (Action.DECRYPT, Outcome.FAULT, "worker_died")

    played(story)


def test_one_that_was_rejected_once_is_refused_the_next_time_by_tcp_it_may_be_let_pass() -> None:
    async def story(stage: Stage, worker: Worker) -> None:
        stage.exe = "/usr/bin/pins"
        stage.send(*hello("origin.test"))
        order = await worker.taken()
        worker.ends(order.flow, "client_rejected", was_heard=False)
        await until(lambda: bool(stage.connections))
        other = stage.another_program()
        other.sendto(hello("origin.test")[0], stage.at)
        await said(other)
        assert "client_rejected" in stage.connections[-1].reason

    played(story)


def test_a_program_that_has_gone_is_its_flows_end_with_the_workers_last_word_or_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quic_relay, "LEAVE_S", 0.5)

    async def story(stage: Stage, worker: Worker) -> None:
        for says in (True, False):
            stage.send(*hello("origin.test"))
            order = await worker.taken()
            stage.cookies[stage.program.getsockname()[1]] = 4711 + says  # another socket has its port
            draining = asyncio.ensure_future(stage.relay.drain(5.0))
            while await packet(worker.front):
                pass
            worker.front.send(b"goodbye")
            assert stage.connections[1 - says :] == []
            if says:
                worker.ends(order.flow)
            await draining
            seen = stage.connections[-1]
            assert (seen.action, seen.outcome) == (Action.DECRYPT, Outcome.COMPLETED)
            assert is_empty(stage.program)  # whoever has the port now hears nothing of it
        assert len(stage.connections) == 2

    played(story)


def test_switched_off_all_that_workers_have_is_cut_and_they_see_it() -> None:
    async def story(stage: Stage, worker: Worker) -> None:
        stage.send(*hello("origin.test"))
        await worker.taken()
        worker.front.send(b"an answer")
        await said(stage.program)
        stage.off = True
        assert stage.relay.switch_off() == 1
        (seen,) = stage.connections
        assert (seen.action, seen.outcome, seen.error) == (Action.DECRYPT, Outcome.CUT, "switched off")
        while await packet(worker.front):
            pass
        worker.front.send(b"goodbye")
        assert (await said(stage.program))[0] == b"goodbye"
        assert stage.relay.switch_off() == 0
        other = stage.another_program()
        first = hello("origin.test")
        for datagram in first:
            other.sendto(datagram, stage.at)
        assert (await said(stage.origin))[0] == first[0]

    played(story)


def test_a_worker_that_says_what_no_honest_one_says_loses_the_flow() -> None:
    async def story(stage: Stage, worker: Worker) -> None:
        stage.send(*hello("origin.test"))
        order = await worker.taken()
        worker.channel.send(Upgrading(flow=order.flow, bytes_sent=1, bytes_received=1))
        await until(lambda: bool(stage.connections))
        (seen,) = stage.connections
        assert (seen.outcome, seen.error) == (Outcome.FAULT, "foreign_upgrade")
        while await packet(worker.front):
            pass

    played(story)


def test_there_is_one_connection_over_quic() -> None:
    async def story(stage: Stage, worker: Worker) -> None:
        stage.send(*hello("origin.test"))
        order = await worker.taken()
        worker.channel.send(UpstreamQuestion(flow=order.flow, number=7))
        answer, sockets = await asyncio.wait_for(worker.told.get(), 10)
        assert (answer.number, sockets) == (7, [])
        assert answer.error

    played(story)


def test_more_than_so_many_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quic_relay, "DECRYPTED_LIMIT", 1)

    async def story(stage: Stage, worker: Worker) -> None:
        assert stage.relay.descriptors == stage.relay.limit + 2
        stage.send(*hello("origin.test"))
        await worker.taken()
        other = stage.another_program()
        other.sendto(hello("origin.test")[0], stage.at)
        await said(other)
        assert "too many are decrypted" in stage.connections[-1].reason

    played(story)


def test_those_that_still_say_goodbye_are_among_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quic_relay, "DECRYPTED_LIMIT", 1)

    async def story(stage: Stage, worker: Worker) -> None:
        stage.send(*hello("origin.test"))
        await worker.taken()
        assert stage.relay.switch_off() == 1
        assert stage.relay.decrypted == 0
        other = stage.another_program()
        other.sendto(hello("origin.test")[0], stage.at)
        await said(other)
        assert "too many are decrypted" in stage.connections[-1].reason

    played(story)


def test_without_a_descriptor_a_flow_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(stage: Stage, worker: Worker) -> None:
        def none(*_: object) -> None:
            raise OSError(24, "too many open files")

        monkeypatch.setattr(quic_relay, "Pairs", none)
        stage.send(*hello("origin.test"))
        await said(stage.program)
        assert "no descriptor is left" in stage.connections[-1].reason
        assert worker.told.empty()

    played(story)


def test_the_end_of_the_gate_is_on_record() -> None:
    async def story(stage: Stage, worker: Worker) -> None:
        stage.send(*hello("origin.test"))
        await worker.taken()
        await stage.relay.drain(0.05)
        stage.relay.end_all()
        (seen,) = stage.connections
        assert (seen.action, seen.outcome) == (Action.DECRYPT, Outcome.CUT)

    played(story)
