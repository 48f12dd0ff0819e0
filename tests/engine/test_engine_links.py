"""The gate's and the signer's channels, as the engine speaks them."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from engine_world import DECISION
from msgspec.structs import replace

from mitmsec.channel import Channel, pair
from mitmsec.core.leaf_choice import LeafKeyKind
from mitmsec.core.messages import (
    FlowEnded,
    HandOver,
    MintAnswer,
    MintQuestion,
    Plaintext,
    Taken,
    UpstreamAnswer,
    UpstreamQuestion,
)
from mitmsec.core.model import Action, Endpoint
from mitmsec.engine.links import TAKEN_AFTER_S, GateLink, SignerLink, read_all
from mitmsec.engine.seams import Leaf, LeafQuestion, Refused

ORIGIN = Endpoint(address="192.0.2.1", port=443)
HAND_OVER = HandOver(flow="flow-1", kind=Plaintext.TLS, name="a.test", origin=ORIGIN, client=ORIGIN, decision=DECISION)
BLOCKED = replace(HAND_OVER, decision=replace(DECISION, action=Action.BLOCK, page=True))
QUESTION = LeafQuestion(flow="flow-1", name="a.test", key=LeafKeyKind.RSA2048)


class Gate:
    """The other end."""

    def __init__(self) -> None:
        ours, theirs = pair()
        self.channel = Channel(ours, [Taken, UpstreamQuestion, FlowEnded])
        self.said: asyncio.Queue[Any] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        self.channel.attach(loop, lambda message, _: self.said.put_nowait(message), lambda: None)
        self.taken: asyncio.Queue[tuple[HandOver, socket.socket, Any]] = asyncio.Queue()
        self.ended = asyncio.Event()
        self.link = GateLink(theirs, loop)
        self.link.serve(lambda *flow: self.taken.put_nowait(flow), self.ended.set)


def with_gate(test: Callable[[Gate], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        gate = Gate()
        try:
            await asyncio.wait_for(test(gate), 10)
        finally:
            gate.channel.close()
            gate.link.close()

    asyncio.run(main())


def test_flows_come_with_both_sockets() -> None:
    async def test(gate: Gate) -> None:
        client, origin = socket.socketpair()
        with client, origin:
            gate.channel.send(HAND_OVER, client.fileno(), origin.fileno())
            hand_over, ours, theirs = await gate.taken.get()
            assert hand_over == HAND_OVER
            assert await gate.said.get() == Taken(flow="flow-1")
            ours.send(b"through")
            assert theirs.recv(10) == b"through"
            ours.close()
            theirs.close()

    with_gate(test)


def test_what_is_blocked_comes_with_the_clients_socket_alone() -> None:
    async def test(gate: Gate) -> None:
        client, other = socket.socketpair()
        with client, other:
            gate.channel.send(BLOCKED, client.fileno())
            hand_over, ours, theirs = await gate.taken.get()
            assert (hand_over, theirs) == (BLOCKED, None)
            ours.close()
            assert await gate.said.get() == Taken(flow="flow-1")
            gate.channel.send(BLOCKED, client.fileno(), other.fileno())  # no honest gate says so
            assert (await gate.said.get()).outcome == "fault"
            assert gate.taken.empty()

    with_gate(test)


@pytest.mark.parametrize("count", [0, 1])
def test_a_flow_without_sockets_ends_at_once(count: int) -> None:
    async def test(gate: Gate) -> None:
        with socket.socket() as one:
            gate.channel.send(HAND_OVER, *[one.fileno()] * count)
            ended = await gate.said.get()
        assert (ended.flow, ended.outcome) == ("flow-1", "fault")
        assert gate.taken.empty()
        await asyncio.sleep(3 * TAKEN_AFTER_S)
        assert gate.said.empty()  # that it has ended says that it was taken

    with_gate(test)


def test_another_connection_is_asked_for_and_given() -> None:
    async def test(gate: Gate) -> None:
        asked = asyncio.create_task(gate.link.connect("flow-1"))
        question = await gate.said.get()
        assert question == UpstreamQuestion(flow="flow-1", number=1)
        near, far = socket.socketpair()
        with near, far:
            for flow, number in (("flow-2", 1), ("flow-1", 7)):  # answers to questions that nobody asked
                gate.channel.send(UpstreamAnswer(flow=flow, number=number), near.fileno())
            gate.channel.send(UpstreamAnswer(flow="flow-1", number=1), near.fileno())
            with await asked as sock:
                sock.send(b"hello")
                assert far.recv(5) == b"hello"

    with_gate(test)


@pytest.mark.parametrize(("error", "said"), [("connection refused", "connection refused"), ("", "without a socket")])
def test_a_connection_that_is_not_to_be_had(error: str, said: str) -> None:
    async def test(gate: Gate) -> None:
        asked = asyncio.create_task(gate.link.connect("flow-1"))
        await gate.said.get()
        gate.channel.send(UpstreamAnswer(flow="flow-1", number=1, error=error))
        with pytest.raises(Refused, match=said):
            await asked

    with_gate(test)


def test_a_gate_that_goes_away_is_told_and_answers_nothing_more() -> None:
    async def test(gate: Gate) -> None:
        asked = asyncio.create_task(gate.link.connect("flow-1"))
        await gate.said.get()
        gate.channel.close()
        with pytest.raises(Refused, match="gone"):
            await asked
        await gate.ended.wait()

    with_gate(test)


def test_certificates_are_asked_for_by_number() -> None:
    async def main() -> None:
        ours, theirs = pair()
        signer = Channel(ours, [MintQuestion])
        said: asyncio.Queue[MintQuestion] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        signer.attach(loop, lambda message, _: said.put_nowait(message), lambda: None)
        link = SignerLink(theirs, loop)
        first, second, third = (asyncio.create_task(link.leaf(QUESTION)) for _ in range(3))
        questions = [await said.get() for _ in range(3)]
        assert {(one.flow, one.key) for one in questions} == {("flow-1", LeafKeyKind.RSA2048)}
        numbers = [one.number for one in questions]
        signer.send(MintAnswer(number=99, chain=(b"for nobody",)))
        signer.send(MintAnswer(number=numbers[1], chain=(b"two",), key=b"2"))
        signer.send(MintAnswer(number=numbers[0], chain=(b"one",), key=b"1"))
        signer.send(MintAnswer(number=numbers[2], error="no decision"))
        assert (await first, await second) == (Leaf(chain=(b"one",), key=b"1"), Leaf(chain=(b"two",), key=b"2"))
        with pytest.raises(Refused, match="no decision"):
            await third
        fourth = asyncio.create_task(link.leaf(QUESTION))
        await said.get()
        signer.close()
        with pytest.raises(Refused, match="gone"):
            await fourth
        with pytest.raises(Refused, match="gone"):
            await link.leaf(QUESTION)
        link.close()

    asyncio.run(main())


def test_a_memory_file_is_read_whole_wherever_others_have_read_to() -> None:
    fd = os.memfd_create("test")
    os.write(fd, b"x" * 3_000_000)
    other = os.dup(fd)
    assert len(read_all(fd)) == 3_000_000
    assert len(read_all(other)) == 3_000_000
