"""A session's broker: a real process, begun when somebody asks, and begun again when it has died."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable

import pytest
from badssl_certificates import Certified, root
from badssl_revocation import revocation_list
from issuer_stage import Responder, chain_of, responding

from mitmsec.channel import Channel
from mitmsec.core.messages import Ready, Role
from mitmsec.core.origin_proof import Standing
from mitmsec.service.broker_messages import RevocationAnswer, RevocationQuestion
from mitmsec.service.brokerage import Brokerage
from mitmsec.service.children import ChildProcess

CA = root()


def started(control: int, output: int) -> int:
    """As the jail's spawn, without a jail."""
    command = [sys.executable, "-m", "mitmsec.service", "broker", str(control)]
    process = subprocess.Popen(command, pass_fds=[control], stdout=output, stderr=output)
    process.returncode = 0  # ChildProcess waits for it
    return process.pid


class Worker:
    """One who asks."""

    def __init__(self, brokerage: Brokerage) -> None:
        self.channel = Channel(brokerage.channel(), [RevocationAnswer])
        self.answers: asyncio.Queue[RevocationAnswer] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        self.channel.attach(loop, lambda answer, _: self.answers.put_nowait(answer), lambda: None)

    async def ask(self, leaf: Certified, number: int = 1) -> Standing:
        self.channel.send(RevocationQuestion(number=number, chain=chain_of(leaf, CA)))
        answer = await asyncio.wait_for(self.answers.get(), 30)
        return answer.statuses[0].standing


class Stage:
    """A brokerage whose roots are a file, and what it tells."""

    def __init__(self, server: Responder) -> None:
        self.roots = os.memfd_create("roots")
        os.write(self.roots, CA.pem)
        self.faults: list[str] = []
        self.begun = 0
        self.fails = 0
        self.brokerage = Brokerage(self._begin, self.roots, lambda what, _: self.faults.append(what), pause_s=0.1)
        self.leaf = CA.leaf("www.origin.test", more=server.names(crl="/crl"))
        server.answers["/crl"] = lambda: revocation_list(CA, self.leaf)

    def _begin(self) -> ChildProcess:
        self.begun += 1
        if self.fails:
            self.fails -= 1
            raise OSError("no more processes")
        return ChildProcess(Role.BROKER, started, print, [Ready])


def played(story: Callable[[Stage], Awaitable[None]]) -> None:
    async def main() -> None:
        with responding() as server:
            stage = Stage(server)
            try:
                await story(stage)
            finally:
                await stage.brokerage.stop()
                with pytest.raises(OSError):
                    os.fstat(stage.roots)

    asyncio.run(main())


def test_it_begins_with_the_first_question_and_serves_all() -> None:
    async def story(stage: Stage) -> None:
        first, second = Worker(stage.brokerage), Worker(stage.brokerage)
        await asyncio.sleep(0.1)
        assert stage.begun == 0
        assert await first.ask(stage.leaf) is await second.ask(stage.leaf) is Standing.REVOKED
        third = Worker(stage.brokerage)
        assert await third.ask(stage.leaf) is Standing.REVOKED
        assert (stage.begun, stage.faults) == (1, [])

    played(story)


def test_a_worker_that_ends_unasked_begins_nothing_and_is_forgotten() -> None:
    async def story(stage: Stage) -> None:
        Worker(stage.brokerage).channel.close()
        await asyncio.sleep(0.1)
        assert stage.begun == 0
        worker = Worker(stage.brokerage)
        assert len(stage.brokerage._ends) == 1
        assert await worker.ask(stage.leaf) is Standing.REVOKED

    played(story)


def test_one_that_dies_is_told_and_the_next_question_begins_another() -> None:
    async def story(stage: Stage) -> None:
        worker = Worker(stage.brokerage)
        await worker.ask(stage.leaf)
        assert stage.brokerage.broker is not None
        stage.brokerage.broker.kill()
        while stage.faults != ["broker_died"]:
            await asyncio.sleep(0.01)
        assert await worker.ask(stage.leaf, 2) is Standing.REVOKED
        assert stage.begun == 2

    played(story)


def test_one_that_cannot_be_begun_is_told_and_tried_again() -> None:
    async def story(stage: Stage) -> None:
        stage.fails = 1
        assert await Worker(stage.brokerage).ask(stage.leaf) is Standing.REVOKED
        assert (stage.begun, stage.faults) == (2, ["broker_not_started"])

    played(story)


def test_an_abandoned_one_goes_without_a_word() -> None:
    async def story(stage: Stage) -> None:
        await Worker(stage.brokerage).ask(stage.leaf)
        broker = stage.brokerage.broker
        assert broker is not None
        stage.brokerage.abandon()
        await asyncio.wait_for(asyncio.shield(broker.ended), 10)
        assert stage.faults == []

    played(story)
