"""A dialogue that goes on under TLS, on real sockets: what workers get, what they get back, and what they cannot do."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from gate_house import WAIT_S, House, Server, houses, on_loop
from hellos import hello, server_name

from mitmsec.audit.event import FlowHanded, Outcome
from mitmsec.channel import Channel, pair
from mitmsec.core.messages import (
    FlowEnded,
    HandOver,
    MintDecision,
    Plaintext,
    Upgrading,
    UpstreamAnswer,
    UpstreamQuestion,
)
from mitmsec.core.model import Action, OnFailure
from mitmsec.core.policy import Policy, Rule
from mitmsec.core.sniff import Protocol
from mitmsec.gate.terms import Terms

GREETING, TLS = b"220 mail.test ESMTP\r\n", hello(server_name(b"a.test"))
BANK = Policy(rules=(Rule(name="bank", host=("a.test",), action=Action.BYPASS),))


class Worker:
    """A worker played by the test."""

    def __init__(self, house: House, number: int = 0) -> None:
        mine, theirs = pair()
        self.orders: asyncio.Queue[tuple[HandOver, socket.socket, socket.socket]] = asyncio.Queue()
        self.channel = Channel(theirs, [HandOver, UpstreamAnswer])
        self.channel.attach(asyncio.get_running_loop(), self._take, lambda: None)
        house.gate.crew.up(number, mine.detach())

    def _take(self, message: Any, fds: list[int]) -> None:
        client, origin = (socket.socket(fileno=fd) for fd in fds)
        self.orders.put_nowait((message, client, origin))

    async def next(self) -> tuple[HandOver, socket.socket, socket.socket]:
        return await asyncio.wait_for(self.orders.get(), WAIT_S)

    async def lets_go(self, *, keeps: bool = False) -> tuple[HandOver, socket.socket, socket.socket]:
        """It has relayed the greeting and the dialogue, which took 30 bytes one way and 70 the other."""
        order, client, origin = await self.next()
        assert origin.recv(100) == GREETING
        client.send(GREETING)
        if not keeps:
            client.close()
            origin.close()
        self.channel.send(Upgrading(flow=order.flow, bytes_sent=30, bytes_received=70))
        return order, client, origin


async def greets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Says what it heard, and ends when its client has."""
    writer.write(GREETING)
    while data := await reader.read(1000):
        writer.write(b"heard %d" % len(data))
    writer.close()


async def said(client: socket.socket) -> bytes:
    return await asyncio.wait_for(asyncio.to_thread(client.recv, 100), WAIT_S)


@on_loop
async def test_what_a_worker_let_go_of_is_handed_over_anew_with_the_hello_unread() -> None:
    async with houses() as make, Server(greets) as origin:
        house = make(Action.DECRYPT)
        house.divert(origin.address)
        other, worker = Worker(house, 1), Worker(house, 0)
        with house.dial() as client:
            one = asyncio.create_task(worker.next())
            two = asyncio.create_task(other.next())
            done, _ = await asyncio.wait([one, two], return_when=asyncio.FIRST_COMPLETED)
            mine = worker if one in done else other
            for task in (one, two):
                task.cancel()
            order, near, far = done.pop().result()
            assert (order.kind, order.protocol) == (Plaintext.DIALOGUE, Protocol.SMTP)
            assert house.minted == []
            for sock in (near, far):
                sock.close()
            mine.channel.send(Upgrading(flow=order.flow, bytes_sent=30, bytes_received=70))
            client.send(TLS)
            again, near, far = await mine.next()  # the same one
            assert (again.flow, again.kind, again.name) == (order.flow, Plaintext.TLS, "a.test")
            assert near.recv(1000) == TLS
            assert far.recv(100) == GREETING  # nobody had read it: the dialogue was not relayed
            assert house.minted == [MintDecision(flow=order.flow, name="a.test")]
            near.shutdown(socket.SHUT_RDWR)
            for sock in (near, far):
                sock.close()
            mine.channel.send(FlowEnded(flow=order.flow, bytes_sent=1, bytes_received=2, outcome="completed"))
            assert await said(client) == b""
        seen = await house.recorder.connection()
        assert (seen.outcome, seen.action, seen.protocol) == (Outcome.COMPLETED, Action.DECRYPT, "smtp")
        assert (seen.bytes_sent, seen.bytes_received) == (31, 72)
        handed = [event for event in house.recorder.events if isinstance(event, FlowHanded)]
        assert [one.host for one in handed] == [None, "a.test"]
        for one_worker in (worker, other):
            one_worker.channel.close()


@on_loop
async def test_what_the_name_in_the_hello_bypasses_goes_on_without_the_worker_and_ends_in_order() -> None:
    async with houses() as make, Server(greets) as origin:
        house = make(BANK, hello_deadline_s=0.01)
        house.divert(origin.address)
        worker = Worker(house)
        with house.dial() as client:
            await worker.lets_go()
            assert await said(client) == GREETING
            client.send(TLS)
            assert await said(client) == b"heard %d" % len(TLS)
            client.shutdown(socket.SHUT_WR)
            assert await said(client) == b""
        seen = await house.recorder.connection()
        assert (seen.outcome, seen.action, seen.rule, seen.host) == (Outcome.COMPLETED, Action.BYPASS, "bank", "a.test")
        assert (seen.bytes_sent, seen.bytes_received) == (30 + len(TLS), 70 + len(b"heard %d" % len(TLS)))
        assert house.minted == []
        assert house.gate.decrypted == 0
        worker.channel.close()


@on_loop
async def test_what_a_worker_has_asked_for_before_it_let_go_is_not_dialled_any_more() -> None:
    async with houses() as make, Server(greets) as origin:
        house = make(BANK, hello_deadline_s=0.01)
        house.divert(origin.address)
        worker = Worker(house)
        with house.dial() as client:
            order, near, far = await worker.next()
            near.send(far.recv(100))
            for sock in (near, far):
                sock.close()
            worker.channel.send(UpstreamQuestion(flow=order.flow, number=1))
            worker.channel.send(Upgrading(flow=order.flow, bytes_sent=30, bytes_received=70))
            assert await said(client) == GREETING
            client.send(TLS)
            assert await said(client) == b"heard %d" % len(TLS)
            await asyncio.sleep(0.05)
            assert len(house.gate._loans) == 0
        await house.recorder.connection()
        assert worker.orders.empty()
        worker.channel.close()


@on_loop
async def test_a_worker_that_keeps_what_it_let_go_of_keeps_dead_sockets_in_the_end() -> None:
    async with houses() as make, Server(greets) as origin:
        house = make(BANK, hello_deadline_s=0.01)
        house.divert(origin.address)
        worker = Worker(house)
        with house.dial() as client:
            _, near, far = await worker.lets_go(keeps=True)
            assert await said(client) == GREETING
            client.send(TLS)
            assert await said(client) == b"heard %d" % len(TLS)
            client.shutdown(socket.SHUT_WR)
            assert await said(client) == b""
        await house.recorder.connection()
        for sock in (near, far):
            with pytest.raises(OSError):
                sock.send(b"more")
            sock.close()
        assert house.minted == []
        worker.channel.close()


@on_loop
async def test_what_a_client_says_instead_of_a_hello_reaches_nobody() -> None:
    heard = bytearray()

    async def hears(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)
        heard.extend(await reader.read(1000))

    async with houses() as make, Server(hears) as origin:
        house = make(Action.DECRYPT)
        house.divert(origin.address)
        worker = Worker(house)
        with house.dial() as client:
            await worker.lets_go()
            assert await said(client) == GREETING
            client.send(b"MAIL FROM:<me@evil.test>\r\n")
            with pytest.raises(ConnectionResetError):
                await said(client)
        seen = await house.recorder.connection()
        assert (seen.outcome, seen.action) == (Outcome.MALFORMED, Action.BLOCK)
        assert not heard
        worker.channel.close()


@on_loop
async def test_an_origin_that_has_ended_both_ways_before_the_hello_ends_the_flow() -> None:
    async def leaves(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)
        await reader.read(1)
        writer.transport.abort()

    async with houses() as make, Server(leaves) as origin:
        house = make(Action.DECRYPT)
        house.divert(origin.address)
        worker = Worker(house)
        with house.dial() as client:
            order, near, far = await worker.next()
            far.send(b"x")
            while await asyncio.wait_for(asyncio.get_running_loop().sock_recv(far, 100), WAIT_S):
                pass
            far.shutdown(socket.SHUT_RDWR)
            async with asyncio.timeout(WAIT_S):
                while len(house.gate._loans):
                    await asyncio.sleep(0.001)
            for sock in (near, far):
                sock.close()
            worker.channel.send(Upgrading(flow=order.flow, bytes_sent=1, bytes_received=1))
            with pytest.raises(ConnectionResetError):
                await said(client)
        assert (await house.recorder.connection()).outcome is Outcome.ORIGIN_RESET
        worker.channel.close()


@on_loop
async def test_only_who_has_a_dialogue_can_let_go_of_it() -> None:
    async with houses() as make, Server(greets) as origin:
        house = make(Action.DECRYPT)
        house.divert(origin.address)
        worker, other = Worker(house, 0), Worker(house, 1)
        with house.dial() as client:
            firsts = [asyncio.create_task(one.next()) for one in (worker, other)]
            done, _ = await asyncio.wait(firsts, return_when=asyncio.FIRST_COMPLETED)
            order, near, far = done.pop().result()
            liar = other if firsts[0].done() else worker
            for task in firsts:
                task.cancel()
            liar.channel.send(Upgrading(flow=order.flow, bytes_sent=1, bytes_received=1))
            await house.recorder.until(lambda events: "foreign_flow" in house.recorder.faults())
            assert house.gate.decrypted == 1
            for sock in (near, far, client):
                sock.close()
        for one in (worker, other):
            one.channel.close()


CONNECT, ESTABLISHED = b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n", b"HTTP/1.1 200 yes\r\n\r\n"


async def leads_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A proxy that plays the origin too."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(ESTABLISHED)
    await greets(reader, writer)


async def opens(worker: Worker) -> HandOver:
    """It relays a CONNECT and the proxy's answer, and lets go."""
    order, near, far = await worker.next()
    await leads_there(near, far)
    worker.channel.send(Upgrading(flow=order.flow, bytes_sent=30, bytes_received=70))
    return order


async def leads_there(near: socket.socket, far: socket.socket) -> None:
    """The part of a worker that relays the CONNECT, and lets go of both."""
    far.setblocking(False)
    far.send(near.recv(1000))
    near.send(await asyncio.wait_for(asyncio.get_running_loop().sock_recv(far, len(ESTABLISHED)), WAIT_S))
    for sock in (near, far):
        sock.close()


@on_loop
async def test_a_server_that_speaks_first_in_a_tunnel_is_heard_by_the_gate() -> None:
    async with houses() as make, Server(leads_on) as proxy:
        house = make(Action.DECRYPT)
        house.divert(proxy.address)
        worker = Worker(house)
        with house.dial() as client:
            client.send(CONNECT)
            await opens(worker)
            again, near, far = await worker.next()
            assert (again.kind, again.protocol) == (Plaintext.DIALOGUE, Protocol.SMTP)
            assert far.recv(100) == GREETING
            for sock in (near, far):
                sock.close()
            worker.channel.send(FlowEnded(flow=again.flow, bytes_sent=1, bytes_received=2, outcome="completed"))
        seen = await house.recorder.connection()
        assert (seen.protocol, seen.through, seen.bytes_sent) == ("smtp", "http-proxy", 31)
        worker.channel.close()


@on_loop
async def test_a_worker_gets_no_further_connection_to_a_proxy_for_what_is_in_its_tunnel() -> None:
    async with houses() as make, Server(leads_on) as proxy:
        house = make(Action.DECRYPT)
        house.divert(proxy.address)
        mine, theirs = pair()
        answers: asyncio.Queue[Any] = asyncio.Queue()
        channel = Channel(theirs, [HandOver, UpstreamAnswer])
        channel.attach(
            asyncio.get_running_loop(), lambda message, fds: answers.put_nowait((message, fds)), lambda: None
        )
        house.gate.crew.up(0, mine.detach())
        with house.dial() as client:
            client.send(CONNECT)
            for _ in range(2):
                order, fds = await asyncio.wait_for(answers.get(), WAIT_S)
                near, far = (socket.socket(fileno=fd) for fd in fds)
                if order.kind is Plaintext.DIALOGUE:
                    await leads_there(near, far)
                    client.send(TLS)
                    channel.send(Upgrading(flow=order.flow, bytes_sent=30, bytes_received=70))
            channel.send(UpstreamQuestion(flow=order.flow, number=7))
            answer, fds = await asyncio.wait_for(answers.get(), WAIT_S)
            assert (answer.number, answer.error, fds) == (7, "it led through a proxy", [])
            for sock in (near, far):
                sock.close()
            channel.send(FlowEnded(flow=order.flow, bytes_sent=1, bytes_received=2, outcome="completed"))
        await house.recorder.connection()
        channel.close()


@pytest.mark.parametrize(("old", "action"), [(Policy(), Action.DECRYPT), (BANK, Action.BYPASS)])
def test_a_reload_between_the_two_decisions_changes_neither_what_is_decided_nor_who_reads_it(
    old: Policy, action: Action
) -> None:
    """Live flows keep their decision: the second one, too, is the policy's under which the flow began."""

    async def scenario() -> None:
        async with houses() as make, Server(greets) as origin:
            house = make(old, hello_deadline_s=0.01)
            house.divert(origin.address)
            worker, gone = Worker(house, 0), asyncio.Event()
            with house.dial() as client:
                await worker.lets_go()
                assert await said(client) == GREETING
                successor = Worker(house, 1)
                worker.channel.attach(asyncio.get_running_loop(), worker._take, gone.set)
                house.gate.govern(Policy(action=Action.BLOCK), Terms(on_failure=OnFailure.CLOSED), {1})
                assert len(house.gate.crew) == 2, "who has to read it is still there"
                client.send(TLS)
                if action is Action.DECRYPT:
                    again, near, far = await worker.next()
                    assert (again.kind, again.name, again.decision.action) == (Plaintext.TLS, "a.test", action)
                    near.close()
                    far.close()
                    worker.channel.send(FlowEnded(flow=again.flow, bytes_sent=1, bytes_received=2, outcome="completed"))
                else:
                    assert await said(client) == b"heard %d" % len(TLS)
                await asyncio.wait_for(gone.wait(), WAIT_S)  # its last flow needs it no more
                assert len(house.gate.crew) == 1
            seen = await house.recorder.connection()
            assert (seen.action, seen.protocol) == (action, "smtp")
            assert successor.orders.empty()
            for one in (worker, successor):
                one.channel.close()

    asyncio.run(scenario())
