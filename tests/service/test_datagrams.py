"""From the kernel's word on a UDP flow to the gate: whose it is, what has to wait, and what is lost and said to be."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import pytest

from mitmsec.core.messages import UdpFlowTold
from mitmsec.core.model import Caller, Confidence, Direction, Endpoint, Process
from mitmsec.service import datagrams
from mitmsec.service.datagrams import Datagrams
from mitmsec_redirect.owner import Owner
from mitmsec_redirect.udp_hook import Drained
from mitmsec_redirect.udp_records import Counts, SocketReleased, UdpFlow


def flow(
    cookie: int = 1, place: int = 1, *, pid: int = 42, selected: bool = True, started_ns: int | None = 7
) -> UdpFlow:
    return UdpFlow(
        socket_cookie=cookie,
        remote=Endpoint.of(f"203.0.113.{place}", 53),
        local=Endpoint.of("0.0.0.0", 4000),
        direction=Direction.OUTBOUND,
        connected=False,
        pid=pid,
        uid=0,
        comm="dig",
        at_ns=time.monotonic_ns(),
        selected=selected,
        caller=None if started_ns is None else Caller(start_ns=started_ns),
    )


def closed(cookie: int = 1, after_ms: int = 0) -> SocketReleased:
    return SocketReleased(cookie, time.monotonic_ns() + after_ms * 1_000_000)


@dataclass
class Kernel:
    """The hook."""

    ring: list[UdpFlow | SocketReleased] = field(default_factory=list)
    lost: int = 0

    def drain(self, most: int) -> Drained:
        flows = [one for one in self.ring if isinstance(one, UdpFlow)]
        beyond = flows[most:]
        told, self.ring = [one for one in self.ring if one not in beyond], []
        return Drained(told, len(beyond), beyond[-1] if beyond else None)

    def counts(self, key: bytes) -> Counts | None:
        return Counts(3, 2, time.monotonic_ns(), connected=False)

    take = counts


@dataclass
class Session:
    """What flows ask of theirs."""

    told: list[UdpFlowTold] = field(default_factory=list)
    asked: list[UdpFlow] = field(default_factory=list)
    has_gate: bool = True
    confidence: Confidence = Confidence.KERNEL
    selected: frozenset[int] = frozenset()
    sha256: Callable[[], Future[str | None] | None] = lambda: None
    waits: asyncio.Event = field(default_factory=asyncio.Event)

    def owner_of(self, one: UdpFlow, at_ns: int) -> Owner:
        assert at_ns == one.at_ns
        self.asked.append(one)
        return Owner(Process(pid=one.pid, exe="/usr/bin/dig", confidence=self.confidence), self.sha256())

    def hashed(self, owner: Owner) -> Awaitable[Process]:
        async def wait() -> Process:
            await self.waits.wait()
            return Process(pid=owner.process.pid, sha256="ab")

        return wait()

    def selects(self, process: Process) -> bool:
        return process.pid in self.selected

    def tell_gate(self, told: UdpFlowTold) -> bool:
        if self.has_gate:
            self.told.append(told)
        return self.has_gate


class Stage:
    def __init__(self, **session: object) -> None:
        self.kernel, self.session = Kernel(), Session(**session)  # type: ignore[arg-type]
        self.datagrams = Datagrams(self.kernel, self.session, "run")

    def happens(self, *records: UdpFlow | SocketReleased) -> None:
        self.kernel.ring += records
        self.datagrams.take()


def test_a_flow_is_told_when_its_socket_is_closed() -> None:
    stage = Stage()
    stage.happens(flow())
    assert stage.session.told == []
    stage.happens(closed(after_ms=30))
    (told,) = stage.session.told
    assert (told.flow, told.process.exe, told.sent, told.received, told.ended) == (
        "run-udp-1", "/usr/bin/dig", 3, 2, True,
    )  # fmt: skip
    assert told.remote == Endpoint.of("203.0.113.1", 53)
    assert 30 <= told.duration_ms < 5000
    assert stage.datagrams.look() == []


def test_each_flow_has_an_id_of_its_own() -> None:
    stage = Stage()
    stage.happens(flow(1, 1), flow(1, 2), closed(), flow(1, 1), closed())
    assert len({told.flow for told in stage.session.told}) == 3


def test_whose_it_is_is_asked_at_once_and_once_for_each_program_of_a_process() -> None:
    stage = Stage()
    stage.happens(flow(1, 1), flow(1, 2), flow(2, 1))
    assert len(stage.session.asked) == 1
    stage.happens(flow(3, 1, started_ns=8), flow(4, 1, pid=43))
    assert [one.socket_cookie for one in stage.session.asked] == [1, 3, 4]


@pytest.mark.parametrize("session", [{"confidence": Confidence.INFERRED}, {}], ids=["not sure", "not told apart"])
def test_who_is_not_known_for_sure_is_asked_for_again(session: dict[str, object]) -> None:
    stage = Stage(**session)
    started_ns = 7 if session else None
    stage.happens(flow(1, 1, started_ns=started_ns), flow(1, 2, started_ns=started_ns))
    assert len(stage.session.asked) == 2


def test_who_is_not_selected_is_nobodys_business() -> None:
    stage = Stage(selected=frozenset({43}))
    stage.happens(
        flow(1, selected=False), flow(2, pid=43, selected=False), flow(3, pid=44), closed(1), closed(2), closed(3)
    )
    assert [told.process.pid for told in stage.session.told] == [43, 44]


def test_without_a_gate_flows_wait_for_the_next_in_their_order() -> None:
    stage = Stage(has_gate=False)
    stage.happens(flow(1, 1), closed(), flow(2, 2), closed(2))
    assert stage.datagrams.look() == []
    stage.session.has_gate = True
    stage.happens(flow(3, 3), closed(3))
    assert [told.remote.address[-1] for told in stage.session.told] == ["1", "2", "3"]
    assert stage.datagrams.look() == []


async def _finished(stage: Stage) -> list[str]:
    return [f"{fault.count} {fault.detail}" for fault in await stage.datagrams.finish()]


def test_at_the_end_all_flows_are_told_and_nothing_is_lost() -> None:
    stage = Stage()
    stage.happens(flow(1), flow(2))
    stage.kernel.ring += [flow(3), closed(1)]
    assert asyncio.run(_finished(stage)) == []
    assert sorted(told.flow for told in stage.session.told) == ["run-udp-1", "run-udp-2", "run-udp-3"]


def test_what_no_gate_takes_until_the_end_is_lost_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datagrams, "FINISH_S", 0.05)
    stage = Stage(has_gate=False)
    stage.happens(flow(1), closed(1), flow(2))
    assert asyncio.run(_finished(stage)) == ["2 more UDP flows than are kept"]


def test_a_gate_that_is_slow_at_the_end_is_waited_for() -> None:
    async def story() -> list[str]:
        stage = Stage(has_gate=False)
        stage.happens(flow(1), closed(1))
        asyncio.get_running_loop().call_later(0.1, lambda: setattr(stage.session, "has_gate", True))
        faults = await _finished(stage)
        return [*faults, *(told.flow for told in stage.session.told)]

    assert asyncio.run(story()) == ["run-udp-1"]


# --- hashes -----------------------------------------------------------------------------------------------------------
def test_a_hash_that_is_there_is_told_and_one_that_is_not_is_waited_for() -> None:
    async def story() -> None:
        known: Future[str | None] = Future()
        known.set_result("cd")
        stage = Stage(sha256=lambda: known)
        stage.happens(flow(1), closed(1))
        assert [told.process.sha256 for told in stage.session.told] == ["cd"]
        coming = Stage(sha256=Future)
        coming.happens(flow(1), closed(1))
        await asyncio.sleep(0)
        assert coming.session.told == []
        coming.session.waits.set()
        for _ in range(3):
            await asyncio.sleep(0)
        assert [told.process.sha256 for told in coming.session.told] == ["ab"]
        assert await _finished(coming) == []
        assert len(coming.session.told) == 1

    asyncio.run(story())


def test_at_the_end_nobody_waits_for_a_hash() -> None:
    async def story() -> list[UdpFlowTold]:
        stage = Stage(sha256=Future)
        stage.happens(flow(1), closed(1), flow(2))
        await asyncio.sleep(0)
        assert await _finished(stage) == []
        return stage.session.told

    assert [told.process.sha256 for told in asyncio.run(story())] == [None, None]


# --- losses -----------------------------------------------------------------------------------------------------------
def test_what_the_ring_lost_is_one_fault_each_time_it_grew() -> None:
    stage = Stage()
    stage.kernel.lost = 7
    (fault,) = stage.datagrams.look()
    assert (fault.what, fault.count, fault.failed, fault.session) == ("udp_not_recorded", 7, "open", "run")
    assert stage.datagrams.look() == []
    stage.kernel.lost = 9
    assert [fault.count for fault in stage.datagrams.look()] == [2]


def test_more_flows_than_fit_between_two_looks_are_counted_and_the_last_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datagrams, "NEW_LIMIT", 3)
    stage = Stage()
    stage.happens(flow(1), flow(2))
    stage.happens(flow(3), flow(4), flow(5, place=9, pid=77))
    (fault,) = stage.datagrams.look()
    assert (fault.count, fault.pid) == (2, 77)
    assert fault.detail == "more UDP flows than are kept; the last one is dig's, to 203.0.113.9:53"
    stage.happens(flow(6))
    assert stage.datagrams.look() == [], "there is room again"
    stage.happens(*(closed(cookie) for cookie in range(1, 7)))
    assert len(stage.session.told) == 4


def test_what_waits_for_a_gate_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datagrams, "WAITING_LIMIT", 2)
    stage = Stage(has_gate=False)
    for cookie in range(5):
        stage.happens(flow(cookie), closed(cookie))
    assert [fault.count for fault in stage.datagrams.look()] == [3]


def test_a_table_that_is_full_is_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()
    monkeypatch.setattr(stage.datagrams._table, "_limit", 1)
    stage.happens(flow(1), flow(2, place=2))
    (fault,) = stage.datagrams.look()
    assert (fault.count, "to 203.0.113.2:53" in fault.detail) == (1, True)
