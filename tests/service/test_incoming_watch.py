"""The watch over incoming connections begins and ends with its session, on the supervisor's loop."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from descriptors import descriptors

from mitmsec.audit.event import ConnectionSeen, FaultSeen, Outcome, Seen
from mitmsec.core.model import Action, Direction, Process
from mitmsec.core.policy import Policy
from mitmsec.core.rules import Rule
from mitmsec.service.incoming import Incoming
from mitmsec.service.incoming_watch import IncomingWatch
from mitmsec.service.scopes import CommandScope
from mitmsec_redirect import kernel_types
from mitmsec_redirect.bpf import EbpfUnavailable
from mitmsec_redirect.cgroup import SessionCgroup
from mitmsec_redirect.owner import Owner
from mitmsec_redirect.steering_records import SteeringMaps

pytestmark = pytest.mark.root
SERVER = """
import socket, sys
open(sys.argv[1] + "/cgroup.procs", "w").write("0")
l = socket.create_server(("127.0.0.1", 0)); print(l.getsockname()[1], flush=True)
while True: l.accept()[0].recv(1)
"""


@pytest.fixture
def cgroup() -> Iterator[SessionCgroup]:
    made = SessionCgroup.create("test", f"watch-{os.getpid()}")
    yield made
    made.remove()


class Watched:
    """A server in a cgroup, and what is recorded of it."""

    def __init__(self, cgroup: SessionCgroup) -> None:
        self.recorded: list[Seen] = []
        self.said: list[str] = []
        self.scope = CommandScope(cgroup)
        self.incoming = Incoming(
            name="run-1",
            whose=lambda one: Owner(Process(pid=one.pid)),
            selects=self.scope.selects,
            policy=Policy(),
        )

    def begin(self) -> IncomingWatch | None:
        return IncomingWatch.begin(self.scope, self.incoming, self.recorded.append, self.said.append)

    async def server(self) -> tuple[Any, int]:
        words = ["python3", "-I", "-S", "-c", SERVER, str(self.scope.path)]
        process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
        assert process.stdout is not None
        return process, int(await process.stdout.readline())

    async def until(self, count: int) -> list[ConnectionSeen]:
        async with asyncio.timeout(5):
            while len(self.recorded) < count:
                await asyncio.sleep(0.01)
        return [event for event in self.recorded if isinstance(event, ConnectionSeen)]


def test_connections_are_recorded_as_they_end_and_at_its_end_as_they_are(cgroup: SessionCgroup) -> None:
    async def story() -> None:
        watched = Watched(cgroup)
        watch = watched.begin()
        assert watch is not None
        server, port = await watched.server()
        socket.create_connection(("127.0.0.1", port)).close()
        (ended,) = await watched.until(1)
        assert (ended.outcome, ended.process.pid, ended.local.port) == (Outcome.COMPLETED, server.pid, port)
        with socket.create_connection(("127.0.0.1", port)):
            await asyncio.sleep(0.1)
            watch.look(lambda *_, **__: None)
            assert len(watched.recorded) == 1
            watch.close()
            watch.close()
        assert [one.outcome for one in await watched.until(2)] == [Outcome.COMPLETED, Outcome.OPEN]
        server.kill()
        await server.wait()

    asyncio.run(story())


def test_another_policy_holds_from_then_on(cgroup: SessionCgroup) -> None:
    async def story() -> None:
        watched = Watched(cgroup)
        watch = watched.begin()
        assert watch is not None
        server, port = await watched.server()
        rule = Rule(name="all", action=Action.BYPASS, direction=Direction.INBOUND)
        watch.govern(Policy(rules=(rule,)), everything=False)
        socket.create_connection(("127.0.0.1", port)).close()
        assert [one.rule for one in await watched.until(1)] == ["all"]
        watch.close()
        server.kill()
        await server.wait()

    asyncio.run(story())


def test_a_kernel_that_cannot_is_told_and_nothing_else_fails(
    cgroup: SessionCgroup, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def story() -> None:
        watched = Watched(cgroup)
        monkeypatch.setattr(kernel_types, "process_offsets", lambda: None)
        assert watched.begin() is None
        assert "not seen: this kernel does not tell its types" in watched.said[0]

    asyncio.run(story())


class Inward:
    """What leads connections to the gate, as far as its watch sees it."""

    def __init__(self, error: OSError | None = None) -> None:
        self.told: list[str] = []
        self._error = error

    def maps_for(self, policy: Policy) -> SteeringMaps | None:
        return None

    def govern(self, policy: Policy, pins: Path | None) -> None:
        self.told.append("governs" if policy.governs_inbound else "lets pass")
        if self._error is not None:
            raise self._error

    def look(self, fault: object) -> None:
        self.told.append("looks")

    def lost(self) -> None:
        self.told.append("lost")

    def close(self) -> None:
        self.told.append("closed")


def begin(watched: Watched, inward: Inward) -> IncomingWatch | None:
    return IncomingWatch.begin(
        watched.scope,
        watched.incoming,
        watched.recorded.append,
        watched.said.append,
        inward=inward,  # type: ignore[arg-type]
    )


def test_where_the_gate_depends_on_it_a_kernel_that_cannot_is_no_place_for_it(
    cgroup: SessionCgroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        watched, inward = Watched(cgroup), Inward()
        monkeypatch.setattr(kernel_types, "process_offsets", lambda: None)
        with pytest.raises(EbpfUnavailable, match="types"):
            begin(watched, inward)
        assert (inward.told, watched.said) == (["closed"], [])

    asyncio.run(story())


def test_what_cannot_be_led_leaves_nothing_behind(cgroup: SessionCgroup) -> None:
    async def story() -> None:
        watched, inward = Watched(cgroup), Inward(OSError("no room"))
        before = len(descriptors())
        with pytest.raises(OSError, match="no room"):
            begin(watched, inward)
        assert inward.told == ["lets pass", "closed"]
        assert len(descriptors()) == before

    asyncio.run(story())


def test_whoever_leads_them_hears_of_every_policy(cgroup: SessionCgroup) -> None:
    async def story() -> None:
        watched, inward = Watched(cgroup), Inward()
        watch = begin(watched, inward)
        assert watch is not None
        watch.govern(Policy(), everything=False)
        watch.close()
        assert inward.told == ["lets pass", "lets pass", "closed"]

    asyncio.run(story())


def test_whoever_leads_them_is_told_where_news_were_lost(cgroup: SessionCgroup) -> None:
    """Among them may be one of somebody who has begun to listen."""

    async def story() -> None:
        watched, inward = Watched(cgroup), Inward()
        watch = begin(watched, inward)
        assert watch is not None
        watch.look(lambda *_, **__: None)
        assert "lost" not in inward.told
        watch._hook._lost.update(bytes(4), (3).to_bytes(8, "little"))
        watch.look(lambda *_, **__: None)
        watch.close()
        assert inward.told == ["lets pass", "looks", "looks", "lost", "closed"]
        assert [one.count for one in watched.recorded if isinstance(one, FaultSeen)] == [3]

    asyncio.run(story())
