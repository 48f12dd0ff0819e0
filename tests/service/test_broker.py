"""The broker in this process, between a worker's end of a channel and real responders."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from badssl_certificates import Certified, root
from badssl_revocation import ocsp_answer
from issuer_stage import chain_of, responding

from mitmsec.channel import Channel, pair
from mitmsec.core.messages import ProducerUp, Role
from mitmsec.core.origin_proof import Standing
from mitmsec.service import broker as module
from mitmsec.service.broker import Broker
from mitmsec.service.broker_messages import (
    BrokerSettings,
    RevocationAnswer,
    RevocationQuestion,
    ServerLent,
    ServerWanted,
)

CA, STRANGER = root(), root("a stranger")


class Stage:
    """A broker that serves one worker."""

    async def open(self) -> None:
        control, _ = pair()
        self.broker = Broker(Channel(control, [ProducerUp]))
        memory = os.memfd_create("roots")
        os.write(memory, CA.pem)
        spare = os.dup(memory)
        assert await self.broker.start(BrokerSettings(), [memory, spare]) is None
        mine, theirs = pair()
        self.answers: asyncio.Queue[RevocationAnswer] = asyncio.Queue()
        self.worker = Channel(mine, [RevocationAnswer])
        self.ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        self.worker.attach(loop, lambda answer, _: self.answers.put_nowait(answer), self.ended.set)
        self.broker.told(ProducerUp(role=Role.WORKER), [theirs.detach()])

    def another(self) -> Channel:
        """A second worker, that asks for connections; what it is told is in `lent`."""
        mine, theirs = pair()
        self.lent: list[ServerLent] = []
        worker = Channel(mine, [ServerLent])
        worker.attach(asyncio.get_running_loop(), lambda lent, _: self.lent.append(lent), lambda: None)
        self.broker.told(ProducerUp(role=Role.WORKER), [theirs.detach()])
        return worker

    async def ask(self, *chain: Certified, number: int = 7) -> list[Standing]:
        self.worker.send(RevocationQuestion(number=number, chain=chain_of(*chain)))
        answer = await asyncio.wait_for(self.answers.get(), 20)
        assert answer.number == number
        self.last = answer
        return [status.standing for status in answer.statuses]

    async def close(self) -> None:
        await self.broker.stop()
        self.worker.close()


def played(story: Any) -> None:
    async def main() -> None:
        stage = Stage()
        await stage.open()
        try:
            await story(stage)
        finally:
            await stage.close()

    asyncio.run(main())


@pytest.mark.checklist("U7")
def test_a_worker_hears_what_the_issuer_says() -> None:
    async def story(stage: Stage) -> None:
        with responding() as server:
            leaf = CA.leaf("www.origin.test", more=server.names(responder="/ocsp"))
            server.answers["/ocsp"] = lambda: ocsp_answer(leaf, CA, revoked=True)
            assert await stage.ask(leaf, CA) == [Standing.REVOKED]

    played(story)


def test_nobody_is_asked_for_what_no_trusted_root_has_signed() -> None:
    """A worker that was taken over makes its own certificates: with addresses in them that it wants to reach."""

    async def story(stage: Stage) -> None:
        with responding() as server:
            made = STRANGER.leaf("www.origin.test", more=server.names(responder="/secret"))
            assert await stage.ask(made, STRANGER) == [Standing.UNKNOWN]
            assert await stage.ask(made, CA) == [Standing.UNKNOWN]
            assert await stage.ask() == []
            assert server.asked == []

    played(story)


def test_chains_without_end_and_questions_without_end_are_answered_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(stage: Stage) -> None:
        leaf = CA.leaf("www.origin.test")
        assert await stage.ask(*[leaf] * 11) == [Standing.UNKNOWN] * 10
        monkeypatch.setattr(module, "WAITING_LIMIT", 0)
        assert await stage.ask(leaf, CA) == [Standing.UNKNOWN]
        assert stage.last.statuses[0].text == "too many questions"

    played(story)


def test_a_worker_whose_servers_answer_nobody_takes_no_place_of_another() -> None:
    """The kernel drops what would open a connection to one that accepts nothing."""

    async def story(stage: Stage) -> None:
        with responding() as server, socket.socket() as silent, silent_filled(silent) as address:
            stage.broker._servers = frozenset({address})
            other = stage.another()
            for number in range(module.CONNECTING_LIMIT + module.WAITING_LIMIT):
                other.send(ServerWanted(number=number, address=address))
            while len(stage.lent) < module.WAITING_LIMIT:
                await asyncio.sleep(0.01)
            assert {lent.error for lent in stage.lent} == {"too many connections are being made"}
            leaf = CA.leaf("www.origin.test", more=server.names(responder="/ocsp"))
            server.answers["/ocsp"] = lambda: ocsp_answer(leaf, CA, revoked=True)
            assert await stage.ask(leaf, CA) == [Standing.REVOKED]
            other.close()
            while len(stage.broker._workers) > 1:
                await asyncio.sleep(0.01)

    played(story)


@contextmanager
def silent_filled(listener: socket.socket) -> Iterator[str]:
    """Its address, at which there is no place left in the queue."""
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    with socket.create_connection(listener.getsockname()):
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def test_a_bug_of_ours_leaves_nobody_without_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(stage: Stage) -> None:
        monkeypatch.setattr(stage.broker, "_desk", None)
        assert await stage.ask(CA.leaf("www.origin.test"), CA) == [Standing.UNKNOWN]
        assert "AttributeError" in stage.last.statuses[0].text

    played(story)


def test_who_asks_and_never_reads_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(stage: Stage) -> None:
        from mitmsec import channel

        monkeypatch.setattr(channel, "QUEUE_LIMIT", 0)
        asyncio.get_running_loop().remove_reader(stage.worker.fileno())
        for number in range(2000):
            stage.worker._sock.setblocking(False)
            try:
                stage.worker._sock.send(channel.encode(RevocationQuestion(number=number, chain=(CA.der,) * 11)))
            except (BlockingIOError, BrokenPipeError):
                await asyncio.sleep(0.01)
            if not stage.broker._workers:
                break
            await asyncio.sleep(0)
        assert not stage.broker._workers

    played(story)


def test_others_than_workers_have_nothing_to_ask() -> None:
    async def story(stage: Stage) -> None:
        mine, theirs = pair()
        stage.broker.told(ProducerUp(role=Role.GATE), [theirs.detach()])
        mine.setblocking(False)
        assert mine.recv(1) == b""
        mine.close()

    played(story)
