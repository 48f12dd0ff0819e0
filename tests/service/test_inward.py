"""What a session opens so that its gate has the connections that come in: all of it, or nothing."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import errno
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from descriptors import descriptors

from mitmsec.core.model import Action, OnFailure, Process, Quic
from mitmsec.core.policy import Policy
from mitmsec.service import inward, led_listeners
from mitmsec.service.ground import listeners
from mitmsec.service.inward import InwardGround
from mitmsec_redirect import bpf, netns, steering, steps
from mitmsec_redirect.backend import BackendUnavailable
from mitmsec_redirect.bpf import Map, MapKind, ProgramRejected
from mitmsec_redirect.cgroup import SessionCgroup
from mitmsec_redirect.connect_hook import ConnectHook
from mitmsec_redirect.heartbeat import Heartbeat
from mitmsec_redirect.inbound_hook import InboundHook
from mitmsec_redirect.open_listeners import OpenListener
from mitmsec_redirect.processes import ProcessTable
from mitmsec_redirect.replay import Replay
from mitmsec_redirect.steering_records import Steered

pytestmark = pytest.mark.root
BLOCKING = Policy(inbound=Action.BLOCK)


@pytest.fixture
def network() -> Iterator[int]:
    """A network namespace of its own, in which this thread is."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    os.unshare(os.CLONE_NEWNET)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    yield here
    os.setns(before, os.CLONE_NEWNET)
    os.close(here)
    os.close(before)


@pytest.fixture
def cgroup() -> Iterator[SessionCgroup]:
    made = SessionCgroup.create("test", f"inward-{os.getpid()}")
    yield made
    made.remove()


@pytest.fixture
def hook(network: int, cgroup: SessionCgroup) -> Iterator[ConnectHook]:
    with ConnectHook.open(
        cgroup.path,
        port_v4=1,
        port_v6=1,
        netns_cookies=[netns.current_cookie()],
        on_failure=OnFailure.OPEN,
        quic=Quic.REFUSE,
    ) as opened:
        yield opened


def looks(ground: InwardGround, told: list[Any] | None = None) -> None:
    """One look, with the search that it may begin; `told` gets the faults."""
    faults = [] if told is None else told
    on_a_loop(ground, lambda: ground.look(lambda *words, **counts: faults.append((words, counts))))


def told_lost(ground: InwardGround) -> None:
    on_a_loop(ground, ground.lost)


def on_a_loop(ground: InwardGround, does: Callable[[], None]) -> None:
    async def play() -> None:
        does()
        while ground._searching is not None:
            await asyncio.sleep(0.001)

    asyncio.run(play())


def test_a_policy_that_lets_all_pass_needs_nothing(network: int, hook: ConnectHook) -> None:
    assert InwardGround.open(Policy(), hook, network) is None


class Standing:
    """A standing selection of this process."""

    def __init__(self, runs_fd: int) -> None:
        self.processes = ProcessTable()
        self.selection = steps.Selection(0, runs_fd, everything=False)
        self.begun: list[int] = []
        self.more = 0

    def selects(self, process: Process) -> bool:
        return process.pid == os.getpid()

    def selected_pids(self) -> list[int]:
        return [os.getpid()]

    def newly_selected(self) -> tuple[list[int], int]:
        found = self.begun, self.more
        self.begun, self.more = [], 0
        return found

    def is_undecided(self, pid: int) -> bool:
        return False


def test_under_a_service_a_policy_may_come_that_needs_it_and_go_again(
    network: int, hook: ConnectHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What listens already is led then, and nothing is before and afterwards."""
    with contextlib.ExitStack() as held:
        runs = Map.create(MapKind.HASH, 8, 4, 8, "test_runs")
        held.callback(runs.close)
        standing = Standing(runs.fd)
        held.callback(standing.processes.close)
        ground = InwardGround.open(Policy(), hook, network, standing)
        assert ground is not None
        held.callback(ground.close)
        server = held.enter_context(socket.create_server(("127.0.0.1", 0)))
        gate = held.enter_context(socket.socket(fileno=os.dup(ground.descriptors[2])))
        gate.setblocking(False)
        assert ground.maps_for(Policy()) is None
        for policy, is_led in ((Policy(), False), (BLOCKING, True), (Policy(), False), (BLOCKING, True)):
            ground.govern(policy, None)
            Heartbeat(hook.heartbeat_fd).beat()
            with socket.create_connection(server.getsockname()):
                if is_led:
                    gate.accept()[0].close()
                else:
                    server.accept()[0].close()
        assert ground.maps_for(Policy()) is not None, "legs live on that have to be told from others"
        kept = ground._steering.kept()
        assert server.getsockname()[1] in {one.local.port for one in kept}
        for one in kept:
            ground.heard(one, Process(pid=1))
        looks(ground)
        assert ground._steering.kept() == []
        told_lost(ground)
        assert len(ground._steering.kept()) == len(kept), "all are looked for anew"
        for one in kept:
            ground.heard(one, Process(pid=1))
        told_lost(ground)
        looks(ground)
        assert ground._steering.kept() == [], "not again at once: who makes news get lost can do so at any time"
        monkeypatch.setattr(inward, "SWEEP_AGAIN_S", 0.0)
        looks(ground)
        assert len(ground._steering.kept()) == len(kept)
        ground.govern(Policy(), None)
        for one in kept:
            ground.heard(one, Process(pid=1))
        assert len(ground._steering.kept()) == len(kept), "nothing is led, and nothing need be looked at"


def test_listeners_for_which_there_is_no_room_are_a_fault_and_are_looked_for_until_they_are_led(
    network: int, hook: ConnectHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can refuse what comes in for them, whatever the policy says of failures."""
    shape = steering.MAPS["listeners"]
    monkeypatch.setitem(steering.MAPS, "listeners", (*shape[:3], 3))  # type: ignore[arg-type]
    monkeypatch.setattr(inward, "SWEEP_AGAIN_S", 0.0)
    monkeypatch.setattr(inward, "TELL_AGAIN_S", 0.0)
    told: list[Any] = []
    with contextlib.ExitStack() as held:
        runs = Map.create(MapKind.HASH, 8, 4, 8, "test_runs")
        held.callback(runs.close)
        standing = Standing(runs.fd)
        held.callback(standing.processes.close)
        closed = Policy(inbound=Action.BLOCK, on_failure=OnFailure.CLOSED)
        ground = InwardGround.open(closed, hook, network, standing)
        assert ground is not None
        held.callback(ground.close)
        assert ground.count == 2, "which this process has, too"
        servers = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        ports = {server.getsockname()[1]: server for server in servers}
        kept = ground._steering.kept

        def led() -> set[int]:
            return {one.local.port for one in kept()} & ports.keys()

        ground.govern(closed, None)
        for _ in range(3):  # at once, when all have been looked for, and so on
            looks(ground, told)
        no_room = ("listeners_not_led", "listeners of selected programs")
        assert told == [(no_room, {"count": 1, "failed": OnFailure.OPEN})] * 2
        ports.pop(led().pop()).close()
        for _ in range(2):
            looks(ground, told)
        assert (led(), len(told)) == (set(ports), 2)


def test_what_a_program_begins_with_is_led_though_the_kernel_did_not_answer_at_once(
    network: int, hook: ConnectHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked for anew, when nobody has begun any more."""

    def unanswered() -> list[OpenListener]:
        raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    def no_thread(*words: Any) -> Any:
        raise RuntimeError("can't start new thread")

    with contextlib.ExitStack() as held:
        runs = Map.create(MapKind.HASH, 8, 4, 8, "test_runs")
        held.callback(runs.close)
        standing = Standing(runs.fd)
        held.callback(standing.processes.close)
        ground = InwardGround.open(BLOCKING, hook, network, standing)
        assert ground is not None
        held.callback(ground.close)
        ground.govern(BLOCKING, None)
        server = held.enter_context(socket.create_server(("127.0.0.1", 0)))
        standing.begun = [os.getpid()]
        with monkeypatch.context() as patched:
            patched.setattr(led_listeners, "open_listeners", unanswered)
            looks(ground)
        monkeypatch.setattr(inward, "SWEEP_AGAIN_S", 0.0)
        with monkeypatch.context() as patched:
            patched.setattr(concurrent.futures.ThreadPoolExecutor, "submit", no_thread)
            looks(ground)
        looks(ground)
        assert server.getsockname()[1] in {one.local.port for one in ground._steering.kept()}


def test_of_more_programs_than_can_be_looked_at_a_sweep_finds_what_they_have_open_and_it_is_told(
    network: int, hook: ConnectHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of one that starts thousands of others in a second."""
    told: list[Any] = []
    with contextlib.ExitStack() as held:
        runs = Map.create(MapKind.HASH, 8, 4, 8, "test_runs")
        held.callback(runs.close)
        standing = Standing(runs.fd)
        held.callback(standing.processes.close)
        ground = InwardGround.open(BLOCKING, hook, network, standing)
        assert ground is not None
        held.callback(ground.close)
        standing.more = 300
        ground.govern(BLOCKING, None)  # which looks at all
        monkeypatch.setattr(ground, "_swept_s", time.monotonic())
        server = held.enter_context(socket.create_server(("127.0.0.1", 0)))
        for standing.more in (436, 17):
            looks(ground, told)
        assert told == [], "not yet"
        monkeypatch.setattr(inward, "SWEEP_AGAIN_S", 0.0)
        for _ in range(2):
            looks(ground, told)
        assert server.getsockname()[1] in {one.local.port for one in ground._steering.kept()}
        assert told == [(("listeners_led_late", inward.LATE), {"count": 453, "failed": OnFailure.OPEN})]


def test_no_other_backend_can_do_it(network: int) -> None:
    other = Replay((), port_v4=1, port_v6=None, on_failure=OnFailure.OPEN, quic=Quic.REFUSE)
    with pytest.raises(BackendUnavailable, match="only the connect hook") as refused:
        InwardGround.open(BLOCKING, other, network)
    assert "--backend connect_hook" in refused.value.remedy


def test_a_gate_is_given_two_maps_and_its_listeners(network: int, hook: ConnectHook) -> None:
    ground = InwardGround.open(BLOCKING, hook, network)
    assert ground is not None
    assert len(ground.descriptors) == 2 + ground.count
    for fd in ground.descriptors[2:]:
        with socket.socket(fileno=os.dup(fd)) as gate:
            assert gate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            assert netns.cookie_of(gate) == ground.maps_for(BLOCKING).namespace  # type: ignore[union-attr]
    ground.forget_legs()
    ground.detach()
    ground.close()


def test_what_found_no_gate_is_a_fault_once(network: int, hook: ConnectHook, cgroup: SessionCgroup) -> None:
    """The gate has never beaten: its first second is over."""
    ground = InwardGround.open(BLOCKING, hook, network)
    assert ground is not None
    told: list[Any] = []
    code = (
        f"import socket; open('{cgroup.path}/cgroup.procs', 'w').write('0');"
        "l = socket.create_server(('127.0.0.1', 0)); print(l.getsockname()[1], flush=True); l.accept()"
    )
    with contextlib.ExitStack() as held:
        held.callback(ground.close)
        held.enter_context(InboundHook.open(cgroup.path, steering=ground.maps_for(BLOCKING)))
        ground.govern(BLOCKING, None)
        command = ["python3", "-I", "-S", "-c", code]
        server = held.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert server.stdout is not None
        port = int(server.stdout.readline())
        hook.stall()
        socket.create_connection(("127.0.0.1", port)).close()
        for _ in range(2):
            looks(ground, told)
    assert told == [(("gate_stalled", "connections that came in"), {"count": 1})]


NO_ROOM = (("listeners_not_led", "listeners of selected programs"), OnFailure.OPEN)
STALLED = (("gate_stalled", "connections that came in"), None)


def test_what_somebody_provokes_is_told_at_once_and_then_added_up(
    network: int, hook: ConnectHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each kind of it, whatever else has just been told; that somebody finds no room is acted on all the same."""
    ground = InwardGround.open(BLOCKING, hook, network)
    assert ground is not None
    told: list[Any] = []
    news = {
        0.0: {Steered.NO_ROOM: 2},
        0.1: {Steered.NO_ROOM: 3, Steered.LET_IN: 1},
        0.2: {Steered.NO_ROOM: 1, Steered.LET_IN: 5},
        2.0: {},
        4.9: {Steered.LET_IN: 1},
        5.01: {},
        5.2: {},
        9.0: {},
        30.0: {Steered.NO_ROOM: 4},
    }
    begun_s, owed = time.monotonic(), []
    with contextlib.closing(ground):
        for at_s, missed in news.items():
            ground._is_owed = False
            monkeypatch.setattr(ground._steering, "missed", lambda missed=missed: missed)
            monkeypatch.setattr(inward.time, "monotonic", lambda at_s=at_s: begun_s + at_s)
            ground.look(lambda *words, count, failed=None, at_s=at_s: told.append((at_s, (words, failed), count)))
            owed += [at_s] if ground._is_owed else []
    assert told == [(0.0, NO_ROOM, 2), (0.1, STALLED, 1), (5.01, NO_ROOM, 4), (5.2, STALLED, 6), (30.0, NO_ROOM, 4)]
    assert owed == [0.0, 0.1, 0.2, 30.0]


def test_where_something_fails_nothing_is_left(
    network: int, hook: ConnectHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(descriptors())

    def refused(code: bytes, name: str) -> int:
        raise ProgramRejected(22, "load the program")

    monkeypatch.setattr(bpf, "load_runnable", refused)
    with pytest.raises(ProgramRejected, match="load"):
        InwardGround.open(BLOCKING, hook, network)
    assert len(descriptors()) == before


def test_nobody_can_listen_on_all_addresses_at_the_port_of_a_gate(network: int) -> None:
    """What is called on a port that is served at all addresses is led: so a gate's own port must not be one."""
    gates = listeners()
    port = gates[0].getsockname()[1]
    assert [gate.getsockname()[:2] for gate in gates] == [("127.0.0.1", port), ("::1", port)]
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        with pytest.raises(OSError, match="Address already in use"):
            socket.create_server((address, port), family=family)
    for gate in gates:
        gate.close()
