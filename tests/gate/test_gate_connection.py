"""Flows that workers take: what they are handed, what they may ask for, and what programs see when one dies."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import Any

import pytest
from descriptors import descriptors
from gate_house import WAIT_S, House, Server, houses, linger_for, on_loop, wait_reset
from hellos import hello, server_name

from mitmsec.audit.event import FaultSeen, FlowHanded, Outcome
from mitmsec.channel import Channel, pair
from mitmsec.core.messages import (
    FlowEnded,
    HandOver,
    MintDecision,
    MintWithdrawn,
    Plaintext,
    UpstreamAnswer,
    UpstreamQuestion,
)
from mitmsec.core.model import Action, OnFailure
from mitmsec.core.policy import Policy, Rule
from mitmsec.gate import connection as module

TLS = hello(server_name(b"a.test"))


class Worker:
    """A worker played by the test."""

    def __init__(self, house: House, number: int = 0) -> None:
        mine, theirs = pair()
        self.messages: asyncio.Queue[tuple[Any, list[socket.socket]]] = asyncio.Queue()
        self.channel = Channel(theirs, [HandOver, UpstreamAnswer])
        self.channel.attach(asyncio.get_running_loop(), self._take, lambda: None)
        house.gate.crew.up(number, mine.detach())

    def _take(self, message: Any, fds: list[int]) -> None:
        self.messages.put_nowait((message, [socket.socket(fileno=fd) for fd in fds]))

    async def next(self) -> tuple[Any, list[socket.socket]]:
        return await asyncio.wait_for(self.messages.get(), WAIT_S)

    def ended(self, flow: str, **more: Any) -> None:
        values = {"bytes_sent": 10, "bytes_received": 20, "outcome": "completed", **more}
        self.channel.send(FlowEnded(flow=flow, **values))


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.read(1))
    await reader.read()
    writer.close()


async def settled(condition: Any) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.001)


@on_loop
async def test_a_worker_gets_the_client_with_its_bytes_unread_and_the_connected_origin() -> None:
    async with houses() as make, Server(silent) as origin:
        house = make(Action.DECRYPT)
        house.divert(origin.address)
        worker = Worker(house)
        with house.dial() as client:
            client.send(TLS)
            message, (near, far) = await worker.next()
            assert (message.kind, message.name, message.origin.port) == (Plaintext.TLS, "a.test", origin.address[1])
            assert message.client.port == client.getsockname()[1]
            assert message.decision.action is Action.DECRYPT
            assert near.recv(10_000) == TLS
            assert near.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1
            assert far.getpeername() == origin.address
            await settled(lambda: house.minted)
            assert house.minted == [MintDecision(flow=message.flow, name="a.test")]
            near.shutdown(socket.SHUT_RDWR)
            for sock in (near, far):
                sock.close()
            worker.ended(message.flow)
            assert await asyncio.to_thread(client.recv, 1) == b""  # an orderly end, although the gate had a copy
        seen = await house.recorder.connection()
        assert (seen.outcome, seen.bytes_sent, seen.bytes_received) == (Outcome.COMPLETED, 10, 20)
        (handed,) = [event for event in house.recorder.events if isinstance(event, FlowHanded)]
        assert (handed.flow, handed.worker, handed.host) == (message.flow, 0, "a.test")
        await settled(lambda: len(house.minted) == 2)
        assert house.minted[1] == MintWithdrawn(flow=message.flow)
        worker.channel.close()


@on_loop
async def test_a_worker_can_have_the_client_reset() -> None:
    """It has not set SO_LINGER, which it is denied; whether it has closed its descriptors before or not."""
    for closes_first in (True, False):
        await worker_resets(closes_first=closes_first)


async def worker_resets(*, closes_first: bool) -> None:
    async with houses() as make, Server(silent) as origin:
        house = make(Action.DECRYPT)
        house.divert(origin.address)
        worker = Worker(house)
        with house.dial() as client:
            client.send(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
            message, socks = await worker.next()
            assert message.kind is Plaintext.HTTP
            socks[0].recv(1000)  # else it would be the unread bytes that reset
            for sock in socks if closes_first else ():
                sock.close()
            worker.ended(message.flow, reset=True, outcome="blocked")
            assert await asyncio.to_thread(wait_reset, client)
            for sock in socks:
                sock.close()
        assert (await house.recorder.connection()).outcome is Outcome.BLOCKED
        assert not house.minted
        worker.channel.close()


@on_loop
async def test_a_worker_cannot_have_the_gate_wait_for_a_client_that_does_not_read() -> None:
    async with houses() as make, Server(silent) as origin:
        house = make(Action.DECRYPT)
        house.divert(origin.address)
        worker = Worker(house)
        with house.dial() as client:
            client.send(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
            message, (shared, upstream) = await worker.next()
            shared.recv(1000)  # else its unread bytes would make the end a reset, which waits for nobody
            linger_for(shared, 15)
            before_s = time.monotonic()
            for sock in (shared, upstream):
                sock.close()
            worker.ended(message.flow)
            await house.recorder.connection()
            await asyncio.sleep(0)
            assert time.monotonic() - before_s < 5
        worker.channel.close()


@on_loop
async def test_when_gate_and_worker_have_died_nobody_takes_what_came_for_the_whole() -> None:
    async with houses() as make, Server(silent) as origin:
        house = make(Action.DECRYPT)
        house.divert(origin.address)
        worker = Worker(house)
        with house.dial() as client:
            client.send(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
            message, (near, far) = await worker.next()
            near.recv(1000)
            house.gate._flows[message.flow]._client.close()  # as the kernel does it for a gate that was killed
            near.close()
            assert await asyncio.to_thread(wait_reset, client)
            far.close()
        worker.channel.close()


@on_loop
async def test_a_workers_death_resets_its_flows_and_new_ones_go_to_another() -> None:
    async with houses() as make, Server(silent) as origin:
        house = make(Action.DECRYPT)
        house.divert(origin.address)
        dying = Worker(house, 0)
        with house.dial() as client:
            client.send(TLS)
            _, socks = await dying.next()
            other = Worker(house, 1)
            for sock in socks:  # as the kernel does it
                sock.close()
            dying.channel.close()
            assert await asyncio.to_thread(wait_reset, client)
        seen = await house.recorder.connection()
        assert (seen.outcome, seen.error) == (Outcome.FAULT, "worker_died")
        with house.dial() as client:
            client.send(TLS)
            _, socks = await other.next()
            for sock in socks:
                sock.close()
        other.channel.close()


@on_loop
async def test_a_flow_waits_for_a_worker_that_is_being_restarted() -> None:
    async with houses() as make, Server(silent) as origin:
        house = make(Action.DECRYPT, on_failure=OnFailure.CLOSED, staff_deadline_s=60)
        house.divert(origin.address)
        with house.dial() as client:
            client.send(TLS)
            await settled(lambda: origin.contacts)
            worker = Worker(house)
            message, socks = await worker.next()
            assert message.name == "a.test"
            for sock in socks:
                sock.close()
        worker.channel.close()


@pytest.mark.parametrize("on_failure", OnFailure)
def test_without_any_worker_on_failure_decides(on_failure: OnFailure) -> None:
    async def scenario() -> None:
        async with houses() as make, Server(silent) as origin:
            house = make(Action.DECRYPT, on_failure=on_failure, staff_deadline_s=0.02)
            house.divert(origin.address)
            with house.dial() as client:
                client.send(TLS)
                if on_failure is OnFailure.OPEN:
                    assert await asyncio.to_thread(client.recv, 1) == TLS[:1]  # relayed as it is
                else:
                    assert await asyncio.to_thread(wait_reset, client)
            seen = await house.recorder.connection()
            assert (seen.outcome, seen.error) == (Outcome.FAULT, "no_worker")
            assert seen.action is (Action.BYPASS if on_failure is OnFailure.OPEN else Action.DECRYPT)
            assert house.recorder.faults() == ["no_worker"]

    asyncio.run(scenario())


@on_loop
async def test_a_dead_signer_is_a_fault_and_no_flow_waits_for_it() -> None:
    async with houses() as make, Server(silent) as origin:
        house = make(Action.DECRYPT, on_failure=OnFailure.CLOSED)
        house.divert(origin.address)
        worker = Worker(house)
        house.signer.close()
        await house.recorder.until(lambda events: "signer_gone" in house.recorder.faults())
        with house.dial() as client:
            client.send(TLS)
            assert await asyncio.to_thread(wait_reset, client)
        assert (await house.recorder.connection()).error == "signer_gone"
        worker.channel.close()


@on_loop
async def test_a_worker_gets_further_connections_to_the_decided_origin_only() -> None:
    async with houses() as make, Server(silent) as origin:
        house = make(Action.DECRYPT)
        house.divert(origin.address)
        worker = Worker(house)
        with house.dial() as client:
            client.send(TLS)
            message, socks = await worker.next()
            worker.channel.send(UpstreamQuestion(flow=message.flow, number=7))
            answer, (further,) = await worker.next()
            assert (answer.flow, answer.number, answer.error) == (message.flow, 7, "")
            assert further.getpeername() == origin.address
            worker.channel.send(UpstreamQuestion(flow="another", number=8))
            answer, none = await worker.next()
            assert (answer.number, answer.error, none) == (8, "not your flow", [])
            for sock in (*socks, further):
                sock.close()
        assert "foreign_flow" in house.recorder.faults() or await house.recorder.until(
            lambda events: "foreign_flow" in house.recorder.faults()
        )
        worker.channel.close()


def told(**conditions: Any) -> Policy:
    """Everything passes but what is blocked with a page."""
    return Policy(action=Action.BYPASS, rules=(Rule(name="told", action=Action.BLOCK, page=True, **conditions),))


@on_loop
async def test_a_worker_that_is_to_show_a_page_gets_the_client_alone_and_no_way_to_the_origin() -> None:
    async with houses() as make, Server(silent) as origin:
        house = make(told(host=("a.test",)))
        house.divert(origin.address)
        worker = Worker(house)
        with house.dial() as client:
            client.send(TLS)
            message, (theirs,) = await worker.next()
            assert (message.decision.action, message.decision.page, message.name) == (Action.BLOCK, True, "a.test")
            assert theirs.getsockname() == client.getpeername()
            assert theirs.recv(9999) == TLS
            worker.channel.send(UpstreamQuestion(flow=message.flow, number=7))
            answer, none = await worker.next()
            assert (answer.number, answer.error, none) == (7, "it is blocked", [])
            theirs.send(b"page")
            theirs.shutdown(socket.SHUT_RDWR)
            theirs.close()
            worker.ended(message.flow)
            assert (client.recv(9), client.recv(9)) == (b"page", b"")
        seen = await house.recorder.connection()
        assert (seen.action, seen.rule, seen.outcome) == (Action.BLOCK, "told", Outcome.BLOCKED)
        assert [minted.name for minted in house.minted if isinstance(minted, MintDecision)] == ["a.test"]
        assert origin.contacts == 0
        worker.channel.close()


@on_loop
async def test_an_origin_that_was_dialled_before_the_hello_is_left_and_hears_nothing() -> None:
    heard = asyncio.Queue[bytes]()

    async def hears(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said = b""
        with contextlib.suppress(ConnectionResetError):
            said = await reader.read()
        heard.put_nowait(said)

    async with houses() as make, Server(hears) as origin:
        house = make(told(host=("a.test",)), hello_deadline_s=0.05)
        house.divert(origin.address)
        worker = Worker(house)
        with house.dial() as client:
            await settled(lambda: origin.contacts == 1)
            client.send(TLS)
            message, (theirs,) = await worker.next()
            assert await asyncio.wait_for(heard.get(), WAIT_S) == b""
            theirs.close()
            worker.ended(message.flow, reset=True)
            assert await asyncio.to_thread(wait_reset, client)
        worker.channel.close()


@pytest.mark.parametrize("on_failure", OnFailure)
def test_a_page_that_nobody_can_show_is_a_reset(on_failure: OnFailure) -> None:
    async def scenario() -> None:
        async with houses() as make, Server(silent) as origin:
            house = make(told(), on_failure=on_failure, staff_deadline_s=0.05)
            house.divert(origin.address)
            with house.dial() as client:
                client.send(TLS)
                assert await asyncio.to_thread(wait_reset, client)
            seen = await house.recorder.connection()
            assert (seen.action, seen.outcome, seen.error) == (Action.BLOCK, Outcome.BLOCKED, "no_worker")
            assert origin.contacts == 0

    asyncio.run(scenario())


@on_loop
async def test_an_origin_that_is_gone_by_then_is_an_answer_too() -> None:
    async with houses() as make:
        async with Server(silent) as origin:
            house = make(Action.DECRYPT)
            house.divert(origin.address)
            worker = Worker(house)
            client = house.dial()
            client.send(TLS)
            message, socks = await worker.next()
        worker.channel.send(UpstreamQuestion(flow=message.flow, number=1))
        answer, _ = await worker.next()
        assert answer.error == "refused"
        for sock in (*socks, client):
            sock.close()
        worker.channel.close()


def test_a_worker_cannot_have_many_dials_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UPSTREAMS_LIMIT", 0)

    async def scenario() -> None:
        async with houses() as make, Server(silent) as origin:
            house = make(Action.DECRYPT)
            house.divert(origin.address)
            worker = Worker(house)
            with house.dial() as client:
                client.send(TLS)
                message, socks = await worker.next()
                worker.channel.send(UpstreamQuestion(flow=message.flow, number=1))
                assert (await worker.next())[0].error == "too many at once"
                for sock in socks:
                    sock.close()
            worker.channel.close()

    asyncio.run(scenario())


@on_loop
async def test_a_cut_reaches_a_client_that_a_worker_still_holds() -> None:
    async with houses() as make, Server(silent) as origin:
        house = make(Action.DECRYPT)
        house.divert(origin.address)
        worker = Worker(house)
        with house.dial() as client:
            client.send(TLS)
            _, socks = await worker.next()
            assert await house.gate.drain(0) == 1
            assert await asyncio.to_thread(wait_reset, client)
            for sock in socks:
                sock.close()
        assert (await house.recorder.connection()).outcome is Outcome.CUT
        worker.channel.close()


# --- workers that hold on to what is over -----------------------------------------------------------------------------
@on_loop
async def test_the_end_of_a_flow_ends_the_clients_socket_for_a_worker_that_keeps_it() -> None:
    async with houses() as make, Server(silent) as origin:
        house = make(Action.DECRYPT)
        house.divert(origin.address)
        worker = Worker(house)
        with house.dial() as client:
            client.send(TLS)
            message, (near, far) = await worker.next()
            assert near.recv(10_000) == TLS
            worker.ended(message.flow)
            assert await asyncio.to_thread(client.recv, 1) == b""
            with pytest.raises(BrokenPipeError):
                near.send(b"unrecorded")
            assert near.recv(1) == b""
            near.close()
            far.close()
        worker.channel.close()


@pytest.mark.parametrize("reset", [True, False])
def test_the_end_of_a_flow_ends_the_origins_sockets_for_a_worker_that_keeps_them(
    reset: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mitmsec.gate.loans.LEAVE_S", 0.02)

    async def scenario() -> None:
        async with houses() as make, Server(silent) as origin:
            house = make(Action.DECRYPT)
            house.divert(origin.address)
            worker = Worker(house)
            with house.dial() as client:
                client.send(TLS)
                message, (near, far) = await worker.next()
                worker.channel.send(UpstreamQuestion(flow=message.flow, number=1))
                _, (further,) = await worker.next()
                far.send(b"x")
                far.settimeout(WAIT_S)
                assert await asyncio.to_thread(far.recv, 1) == b"x"
                worker.ended(message.flow, reset=reset)
                await house.recorder.connection()
                for kept in (far, further):
                    await settled(lambda kept=kept: is_dead(kept))
                for sock in (near, far, further):
                    sock.close()
            worker.channel.close()

    asyncio.run(scenario())


def is_dead(sock: socket.socket) -> bool:
    try:
        sock.send(b"unrecorded")
    except OSError:
        return True
    return False


@on_loop
async def test_a_flow_whose_client_has_left_is_ended_although_its_worker_never_says_so() -> None:
    async with houses() as make, Server(silent) as origin:
        house = make(Action.DECRYPT, left_deadline_s=0.02)
        house.divert(origin.address)
        worker = Worker(house)
        with house.dial() as client:
            client.send(TLS)
            message, socks = await worker.next()
        seen = await house.recorder.connection()
        assert (seen.outcome, seen.error) == (Outcome.CLIENT_CLOSED, "the worker did not end it")
        assert house.gate.live == 0
        for sock in socks:
            assert is_dead(sock)
            sock.close()
        worker.ended(message.flow)  # late, and no foreign flow
        worker.channel.send(UpstreamQuestion(flow="another", number=1))
        await worker.next()
        assert [seen.count for seen in house.recorder.events if isinstance(seen, FaultSeen)] == [1]
        worker.channel.close()


def test_an_answer_that_finds_no_descriptor_is_an_answer_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with houses() as make, Server(silent) as origin:
            house = make(Action.DECRYPT)
            house.divert(origin.address)
            worker = Worker(house)
            with house.dial() as client:
                client.send(TLS)
                message, socks = await worker.next()
                answer = house.gate.crew.answer

                def without_descriptors(number: int, message: UpstreamAnswer, *fds: int) -> None:
                    if fds:
                        raise OSError(24, "Too many open files")
                    answer(number, message)

                monkeypatch.setattr(house.gate.crew, "answer", without_descriptors)
                worker.channel.send(UpstreamQuestion(flow=message.flow, number=1))
                assert (await worker.next())[0].error == "fault"
                for sock in socks:
                    sock.close()
            worker.channel.close()

    asyncio.run(scenario())


@on_loop
async def test_a_gate_leaves_no_descriptor_behind() -> None:
    async with Server(silent) as origin:
        before = len(descriptors())
        async with houses() as make:
            house = make(Action.DECRYPT)
            house.divert(origin.address)
            worker = Worker(house)
            for _ in range(3):
                with house.dial() as client:
                    client.send(TLS)
                    message, (near, far) = await worker.next()
                    near.shutdown(socket.SHUT_RDWR)
                    near.close()
                    far.close()
                    worker.ended(message.flow)
            await house.recorder.connection(2)
            worker.channel.close()
        for writer in origin.writers:
            writer.transport.abort()
        await settled(lambda: len(descriptors()) <= before)
        assert len(descriptors()) <= before
