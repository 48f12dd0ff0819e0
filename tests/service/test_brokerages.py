"""Workers of several policies, each with what its own policy says: real brokers, and servers that they connect to."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable

import pytest
from badssl_certificates import root
from badssl_revocation import revocation_list
from issuer_stage import chain_of, responding
from test_brokerage import started

from mitmsec.core.messages import Ready, Role
from mitmsec.core.model import Revocation
from mitmsec.core.origin_proof import Standing
from mitmsec.core.policy import Policy
from mitmsec.service.brokerages import Brokerages
from mitmsec.service.children import ChildProcess
from mitmsec.service.issuers import Issuers

CA = root()


class Stage:
    """A session whose policy names one of two servers."""

    def __init__(self) -> None:
        self.listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        self.old, self.new = (f"127.0.0.1:{one.getsockname()[1]}" for one in self.listeners)
        self.faults: list[str] = []
        self.shown: list[tuple[str, ...]] = []
        self.workers: dict[int, Issuers] = {}
        self.roots_fd = self.policy_fd = -1
        self.name(self.old)
        self.brokerages = Brokerages(self, self._begin)

    def name(self, server: str, roots: bytes = CA.pem) -> None:
        """As a reload does: other terms, and the descriptors of the earlier ones are closed."""
        if self.roots_fd != -1:
            os.close(self.roots_fd)
        self.policy = Policy(inspectors=(("malware", (server,)),))
        self.roots_fd = os.memfd_create("roots")
        os.write(self.roots_fd, roots)

    def fault(self, what: str, detail: str = "") -> None:
        self.faults.append(what)

    def _begin(self, shows: tuple[str, ...]) -> ChildProcess:
        self.shown.append(shows)
        return ChildProcess(Role.BROKER, started, print, [Ready])

    def worker(self, number: int) -> Issuers:
        made = self.workers[number] = Issuers(self.brokerages.channel(number), asyncio.get_running_loop())
        return made

    def end(self, number: int) -> None:
        self.workers.pop(number).close()
        self.brokerages.forget(number)

    async def close(self) -> None:
        await self.brokerages.stop()
        for worker in self.workers.values():
            worker.close()
        for listener in self.listeners:
            listener.close()
        os.close(self.roots_fd)


def played(story: Callable[[Stage], Awaitable[None]]) -> None:
    async def main() -> None:
        stage = Stage()
        try:
            await story(stage)
            assert stage.faults == []
        finally:
            await stage.close()

    asyncio.run(main())


async def reaches(worker: Issuers, server: str) -> None:
    (await worker.servers.connect(server)).close()


async def reaches_not(worker: Issuers, server: str) -> None:
    with pytest.raises(ConnectionRefusedError, match="no inspector's server has this address"):
        await worker.servers.connect(server)


@pytest.mark.parametrize("has_asked", [True, False])
def test_after_a_reload_each_worker_reaches_what_its_own_policy_names(has_asked: bool) -> None:
    async def story(stage: Stage) -> None:
        elder = stage.worker(0)
        if has_asked:
            await reaches(elder, stage.old)
        stage.brokerages.succeed()
        stage.name(stage.new)
        younger = stage.worker(1)
        await reaches(elder, stage.old)
        await reaches(younger, stage.new)
        await reaches_not(elder, stage.new)
        await reaches_not(younger, stage.old)

    played(story)


def test_after_a_reload_that_failed_the_policy_of_before_serves_as_if_nothing_had_been() -> None:
    async def story(stage: Stage) -> None:
        elder = stage.worker(0)
        await reaches(elder, stage.old)
        before = stage.brokerages.succeed()
        stage.name(stage.new)
        await reaches(stage.worker(1), stage.new)
        stage.name(stage.old)
        stage.brokerages.go_back(before)
        stage.end(1)
        await reaches(elder, stage.old)
        await reaches(stage.worker(2), stage.old)
        await until(lambda: len(stage.brokerages.brokers) == 1)

    played(story)


def test_what_is_asked_while_a_reload_goes_on_is_answered_by_the_roots_of_its_time() -> None:
    async def story(stage: Stage) -> None:
        with responding() as server:
            leaf = CA.leaf("www.origin.test", more=server.names(crl="/crl"))
            server.answers["/crl"] = lambda: revocation_list(CA, leaf)
            elder = stage.worker(0)
            asked = asyncio.create_task(elder.ask(chain_of(leaf, CA), Revocation.HARD))
            await asyncio.sleep(0)
            stage.brokerages.succeed()
            stage.name(stage.new, roots=root("another").pem)
            younger = stage.worker(1)
            assert (await asked)[0].standing is Standing.REVOKED
            assert (await younger.ask(chain_of(leaf, CA), Revocation.HARD))[0].standing is Standing.UNKNOWN

    played(story)


def test_a_broker_ends_with_the_last_worker_of_an_earlier_policy_and_not_before() -> None:
    async def story(stage: Stage) -> None:
        for number in (0, 1):
            await reaches(stage.worker(number), stage.old)
        (broker,) = stage.brokerages.brokers
        stage.brokerages.succeed()
        stage.worker(2)
        stage.end(0)
        await reaches(stage.workers[1], stage.old)
        stage.end(1)
        await asyncio.wait_for(asyncio.shield(broker.ended), 10)
        await until(lambda: stage.brokerages.brokers == [])

    played(story)


def test_an_abandoned_session_leaves_no_broker_whatever_its_policy() -> None:
    async def story(stage: Stage) -> None:
        await reaches(stage.worker(0), stage.old)
        stage.brokerages.succeed()
        await reaches(stage.worker(1), stage.old)
        brokers = stage.brokerages.brokers
        assert len(brokers) == 2
        stage.brokerages.abandon()
        await asyncio.wait_for(asyncio.gather(*(asyncio.shield(one.ended) for one in brokers)), 10)

    played(story)


def test_a_broker_is_shown_the_folders_of_its_own_policys_sockets() -> None:
    async def story(stage: Stage) -> None:
        stage.name("/run/clamav/clamd.ctl")
        worker = stage.worker(0)
        stage.name(stage.new)
        with pytest.raises(OSError):
            await worker.servers.connect("/run/clamav/clamd.ctl")
        assert stage.shown == [("/run/clamav",)]

    played(story)


def test_what_is_lent_to_the_policys_clamd_has_said_its_command_already() -> None:
    async def story(stage: Stage) -> None:
        (await stage.worker(0).servers.connect(stage.old)).close()
        peer, _ = stage.listeners[0].accept()
        with peer:
            assert await asyncio.to_thread(peer.recv, 99) == b"zINSTREAM\0"

    played(story)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0.01)
