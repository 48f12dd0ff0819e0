"""Workers of a policy and of the next one; processes are stood in for, in tests/end_to_end they are real."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from mitmsec.channel import pair
from mitmsec.core.model import Action
from mitmsec.core.policy import Policy
from mitmsec.service.gate_and_workers import GateAndWorkers


class Worker:
    """A worker that is ready at once, and ends when it is told to."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._on_exit: Callable[[int], None] = lambda status: None

    async def start(self, settings: object, *fds: int) -> None:
        """It has got everything."""

    def watch(self, on_exit: Callable[[int], None]) -> None:
        self._on_exit = on_exit

    def die(self) -> None:
        self.ended.set_result(9)
        self._on_exit(9)

    async def stop(self) -> None:
        if not self.ended.done():
            self.ended.set_result(0)


class Session:
    """One with two workers."""

    def __init__(self) -> None:
        self.begun: list[Worker] = []
        self.shared = SimpleNamespace(
            begun_worker=self._begun, own_pem="", record=lambda seen: None,
            recorder_channel=lambda *words: pair()[0], signer_channel=lambda *words: pair()[0],
        )  # fmt: skip
        self.name, self.network, self.worker_count = "s", -1, 2
        self.policy = Policy(action=Action.DECRYPT)
        self.policy_fd = self.roots_fd = os.open("/dev/null", os.O_RDONLY)
        self.keys_fd = self.capture_fd = None
        ground: Any = self
        self.children = GateAndWorkers(ground)

    def _begun(self) -> Worker:
        self.begun.append(Worker())
        return self.begun[-1]

    def fault(self, what: str, detail: str = "") -> None:
        raise AssertionError(what)


def played(story: Callable[[Session, GateAndWorkers], Awaitable[None]]) -> None:
    async def main() -> None:
        session = Session()
        async with session.children.building, session.children.successors():
            pass  # the first ones
        await story(session, session.children)
        session.children.replace_no_more()
        await session.children.stop()
        os.close(session.policy_fd)

    asyncio.run(main())


async def fails(children: GateAndWorkers, meanwhile: Callable[[], None]) -> None:
    """A reload, when the next workers have started."""

    def refuses() -> None:
        meanwhile()
        raise OSError("the hook")

    with pytest.raises(OSError, match="the hook"):
        async with children.building, children.successors():
            refuses()


def test_an_old_worker_that_dies_while_its_successors_start_is_forgotten() -> None:
    async def story(session: Session, children: GateAndWorkers) -> None:
        async with children.building, children.successors() as numbers:
            session.begun[0].die()
        assert list(children.workers) == [1, *numbers] == [1, 2, 3]
        session.begun[1].die()
        assert list(children.workers) == [2, 3]

    played(story)


def test_one_that_dies_before_a_reload_that_fails_is_replaced() -> None:
    async def story(session: Session, children: GateAndWorkers) -> None:
        await fails(children, lambda: session.begun[0].die())
        assert list(children.workers) == [0, 1]
        async with asyncio.timeout(10):
            while children.workers[0].ended.done():
                await asyncio.sleep(0.01)
        assert len(session.begun) == 5

    played(story)


def test_successors_of_a_reload_that_fails_are_ended_and_forgotten() -> None:
    async def story(session: Session, children: GateAndWorkers) -> None:
        await fails(children, lambda: None)
        assert list(children.workers) == [0, 1]
        assert [worker.ended.done() for worker in session.begun] == [False, False, True, True]

    played(story)
