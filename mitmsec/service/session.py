"""One run: its cgroup and hook, its gate and workers, from the first listener to the last committed event.

        cgroup ── hook ──► listeners ── gate ──┬── worker 0 ─┐
                    │                          └── worker 1 ─┤── signer, recorder: the supervisor's own
                    └── missed connections ──► faults

A worker that dies is replaced alone. When the gate dies, or the signer or recorder of the supervisor, gate and workers
are all built anew (`rebuild`); the listeners stay open, and until the new gate's first heartbeat the hook follows
`on_failure`.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import time
from collections.abc import Callable
from typing import Protocol

import msgspec

from mitmsec.audit.event import FaultSeen, PolicySeen, Seen, ServiceSeen
from mitmsec.channel import close_all, pair
from mitmsec.core.messages import (
    Drain,
    Drained,
    Fault,
    GateSettings,
    Ready,
    Role,
    Whose,
    WhoseAnswer,
    WorkerHangs,
    WorkerSettings,
    WorkerUp,
)
from mitmsec.core.model import OnFailure, Process
from mitmsec.core.policy import Policy
from mitmsec.service.accounts import account_of
from mitmsec.service.children import ChildFailed, ChildProcess
from mitmsec.service.control import OpenRun
from mitmsec.service.ground import listeners, read_all, release_beside
from mitmsec.service.jail import Jail
from mitmsec.service.missed import events
from mitmsec.service.owners import decides_by_hash, hashed
from mitmsec.service.state import State
from mitmsec.service.survivors import note
from mitmsec_redirect import bpffs, netns
from mitmsec_redirect.cgroup import SessionCgroup
from mitmsec_redirect.connect_hook import ConnectHook
from mitmsec_redirect.processes import Owner, ProcessTable
from mitmsec_redirect.records import Missed

MISSED_PERIOD_S = 0.1
DRAIN_GRACE_S = 2.0
RESTART_PAUSE_S, REBUILD_PAUSE_S = 0.2, 5.0
RESTARTS_LIMIT, RESTARTS_S = 5, 60.0  # workers that die this often within a minute stay dead until it is over


class Shared(Protocol):
    """What a session needs of its supervisor."""

    state: State
    log: Callable[[str], None]
    processes: ProcessTable

    def record(self, seen: Seen) -> None: ...
    def recorder_channel(self, role: Role, session: str, worker: int = -1) -> socket.socket: ...
    def signer_channel(self, role: Role, session: str, worker: int = -1) -> socket.socket: ...


class Session:
    """Built by `open`; ended by `close`, which is idempotent and never leaves a hook, cgroup or process behind."""

    def __init__(self, shared: Shared, name: str, order: OpenRun, fds: list[int]) -> None:
        self.shared, self.name, self.order = shared, name, order
        self._network, self._policy_fd, self._roots_fd = fds[:3]
        self.capture_fd = fds[3] if order.capture else None
        self.policy = msgspec.json.decode(read_all(self._policy_fd), type=Policy)
        self._decides_by_hash = decides_by_hash(self.policy)
        self.folder = shared.state.session_folder(name)
        self.cgroup: SessionCgroup | None = None
        self.hook: ConnectHook | None = None
        self.gate: ChildProcess | None = None
        self.workers: dict[int, ChildProcess] = {}
        self.cut = 0
        self._listeners: list[socket.socket] = []
        self._watch: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._restarts: list[float] = []
        self._building = asyncio.Lock()
        self._closing = False

    # -- begin ---------------------------------------------------------------------------------------------------------
    async def open(self, user: str) -> None:
        """Everything up to a gate that accepts. Raises ChildFailed, OSError or EbpfUnavailable; then call close."""
        self.folder.mkdir(mode=0o755)
        self.folder.chmod(0o755)
        self.cgroup = SessionCgroup.create(self.shared.state.identity(), self.name)
        self._listeners = netns.inside(self._network, listeners)
        self.hook = self._hook(self.cgroup)
        asyncio.get_running_loop().add_reader(self.hook.routes_fd, self.hook.refresh_routes)
        self.shared.record(
            PolicySeen(
                session=self.name,
                path=self.order.policy_file,
                sha256=self.order.policy_sha256,
                rules=len(self.policy.rules),
                on_failure=self.policy.on_failure,
            )
        )
        self.shared.record(
            ServiceSeen(
                operation="run_started",
                session=self.name,
                user=user,
                command=(self.order.program,),
                detail=f"{self.order.arguments} argument{'' if self.order.arguments == 1 else 's'}",
            )
        )
        await self._build()
        self._watch = asyncio.create_task(self._collect_missed())

    def _hook(self, cgroup: SessionCgroup) -> ConnectHook:
        pins = None
        if self.policy.on_failure is OnFailure.CLOSED:
            bpffs.mount(self.shared.state.bpf)
            pins = self.shared.state.bpf / self.name
        ports = [listener.getsockname()[1] for listener in self._listeners]
        return ConnectHook.open(
            cgroup.path,
            port_v4=ports[0],
            port_v6=ports[1] if len(ports) > 1 else None,
            netns_cookies={netns.cookie_of(self._listeners[0])},
            on_failure=self.policy.on_failure,
            quic=self.policy.quic,
            pin_folder=pins,
            netns_fd=self._network,
        )

    async def _build(self) -> None:
        gate = self.gate = self._spawn(Role.GATE, self._network)
        gate.on_message = lambda message, fds: self._gate_said(gate, message, fds)
        recorder = self.shared.recorder_channel(Role.GATE, self.name)
        signer = self.shared.signer_channel(Role.GATE, self.name)
        assert self.hook is not None
        fds = [
            self._policy_fd,
            self._listeners[0].fileno(),
            recorder.fileno(),
            signer.fileno(),
            self.hook.origins_fd,
            self.hook.heartbeat_fd,
            *(listener.fileno() for listener in self._listeners[1:]),
        ]
        settings = GateSettings(
            session=self.name,
            on_failure=self.policy.on_failure,
            has_v6=len(self._listeners) > 1,
            capture=self.order.capture,
        )
        with recorder, signer:
            answer = await gate.start(settings, *fds)
        if not isinstance(answer, Ready):
            raise ChildFailed(f"the gate answered {answer!r}")
        gate.watch(self._gate_exited)
        await asyncio.gather(*(self._start_worker(number) for number in range(self.order.workers)))

    def _spawn(self, role: Role, network: int | None = None) -> ChildProcess:
        jail = Jail(role=role, account=account_of(role), mountpoint=str(self.shared.state.jail), network=network)
        return ChildProcess(jail, self.shared.log, [Ready, Fault, Whose, WorkerHangs, Drained])

    async def _start_worker(self, number: int) -> None:
        worker = self.workers[number] = self._spawn(Role.WORKER)
        gate_end, worker_end = pair()
        recorder = self.shared.recorder_channel(Role.WORKER, self.name, number)
        signer = self.shared.signer_channel(Role.WORKER, self.name, number)
        settings = WorkerSettings(
            session=self.name,
            worker=number,
            on_failure=self.policy.on_failure,
            capture=self.order.capture,
        )
        with gate_end, worker_end, recorder, signer:
            fds = (worker_end.fileno(), signer.fileno(), recorder.fileno(), self._roots_fd, self._policy_fd)
            try:
                await worker.start(settings, *fds)
            except ChildFailed:
                worker.kill()
                raise
            worker.watch(lambda status: self._worker_exited(number, status))
            if self.gate is not None:
                self.gate.channel.send(WorkerUp(worker=number), gate_end.fileno())

    # -- while it runs -------------------------------------------------------------------------------------------------
    def _gate_said(self, gate: ChildProcess, message: object, fds: list[int]) -> None:
        close_all(fds)
        match message:
            case Whose(number=number, pid=pid, uid=uid, comm=comm, connected_ns=connected_ns):
                owner = self.shared.processes.whose(pid, uid, comm, connected_ns or None)
                if owner.sha256 is None:
                    gate.channel.send(WhoseAnswer(number=number, process=owner.process))
                else:
                    self._later(self._answer_hashed(gate, number, owner))
            case WorkerHangs(worker=number) if number in self.workers:
                self.workers[number].kill()  # the gate has recorded why; its exit is told like any other
            case Drained(cut=cut):
                self.cut += cut
            case Fault(what=what, detail=detail):
                self._fault(what, detail)
            case _:
                pass

    async def _answer_hashed(self, gate: ChildProcess, number: int, owner: Owner) -> None:
        """Nobody but this connection waits for its program's hash."""
        process = await hashed(owner, must_have=self._decides_by_hash)
        if not gate.ended.done():
            gate.channel.send(WhoseAnswer(number=number, process=process))

    def _fault(self, what: str, detail: str = "", *, pid: int | None = None, count: int = 1) -> None:
        self.shared.record(
            FaultSeen(what=what, detail=detail, failed=self.policy.on_failure, session=self.name, pid=pid, count=count)
        )

    def _gate_exited(self, status: int) -> None:
        if not self._closing:
            self._fault("gate_died", f"status {status}")
            self._later(self.rebuild())

    def _worker_exited(self, number: int, status: int) -> None:
        if self._closing:
            return
        self.shared.record(FaultSeen(what="worker_died", detail=f"worker {number}, status {status}", session=self.name))
        self._later(self._replace(number))

    async def _replace(self, number: int) -> None:
        now = time.monotonic()
        self._restarts = [moment for moment in self._restarts if now - moment < RESTARTS_S] + [now]
        if len(self._restarts) > RESTARTS_LIMIT:
            self._fault("worker_left_dead", f"worker {number}, for a minute; the supervisor's log says why they die")
            await asyncio.sleep(RESTARTS_S)
        await asyncio.sleep(RESTART_PAUSE_S)
        async with self._building:
            if number in self.workers and self.workers[number].ended.done():  # else a rebuild has replaced it
                try:
                    await self._start_worker(number)
                except (ChildFailed, OSError) as error:
                    self._fault("worker_not_started", f"worker {number}: {error}")
                    self._later(self._replace(number))

    def silence(self) -> None:
        """Follow `on_failure` at once: the gate goes, so that no heartbeat of its own says otherwise."""
        if self.hook is not None:
            self.hook.stall()
        if self.gate is not None:
            self.gate.unwatch()
            self.gate.kill()

    async def rebuild(self) -> None:
        """New gate and workers on the same listeners; until then the hook follows `on_failure`."""
        async with self._building:
            if self._closing or self.hook is None:
                return
            self.silence()
            for child in (*self.workers.values(), *([self.gate] if self.gate else [])):
                child.unwatch()
                child.kill()
                await child.ended
            self.workers.clear()
            try:
                await self._build()
            except (ChildFailed, OSError) as error:
                self._fault("rebuild_failed", str(error))
                self._later(self._rebuild_later())

    async def _rebuild_later(self) -> None:
        await asyncio.sleep(REBUILD_PAUSE_S)
        await self.rebuild()

    async def abandon(self) -> None:
        """End as a killed supervisor would: the pinned hook stays and denies until the command has ended."""
        self._closing = True
        self.silence()
        for child in self.workers.values():
            child.unwatch()
            child.kill()

    async def _collect_missed(self) -> None:
        while True:
            self._record_missed()
            await asyncio.sleep(MISSED_PERIOD_S)

    def _record_missed(self) -> None:
        """What the hook saw and could not or must not divert."""
        if self.hook is not None:
            for event in events(self.hook.missed(), self._who_missed, self.name):
                self.shared.record(event)

    def _who_missed(self, missed: Missed) -> Process:
        return self.shared.processes.whose(missed.pid, missed.uid, missed.comm, missed.at_ns).process

    def _record_lost(self) -> None:
        """What came faster than it was collected: the hook's queue was full, its counters are exact."""
        for reason, count in self.hook.lost().items() if self.hook is not None else ():
            self._fault(reason, "more attempts than were collected", count=count)

    def _later(self, work: object) -> None:
        task = asyncio.ensure_future(work)  # type: ignore[call-overload]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @property
    def must_stay_closed(self) -> bool:
        """Its command lives, and its policy says that what we cannot govern must not pass."""
        is_closed = self.policy.on_failure is OnFailure.CLOSED
        return is_closed and self.cgroup is not None and self.cgroup.is_populated()

    # -- end -----------------------------------------------------------------------------------------------------------
    async def until_empty(self) -> None:
        """Until no process of the command is left."""
        while self.cgroup is not None and self.cgroup.is_populated():
            await asyncio.sleep(0.1)

    async def close(self, *, home: str | None) -> int:
        """Hook off, flows drained, processes ended, cgroup removed. Survivors move to cgroup `home`; their number.

        The recorder still has to be asked to flush.
        """
        if self._closing:
            return 0
        self._closing = True
        for task in (*self._tasks, *([self._watch] if self._watch else [])):
            task.cancel()
        if self.hook is not None:
            self.hook.detach()
            self._record_missed()
            self._record_lost()
        if self.gate is not None and not self.gate.ended.done():
            await self._drain(self.gate)
        children = [*self.workers.values(), *([self.gate] if self.gate else [])]
        await asyncio.gather(*(child.stop() for child in children))
        living = self.cgroup.pids() if self.cgroup is not None else []
        survivors = await release_beside(self.cgroup, home) if self.cgroup is not None else 0
        if self.hook is not None:
            asyncio.get_running_loop().remove_reader(self.hook.routes_fd)
            self.hook.close()
        for listener in self._listeners:
            listener.close()
        close_all([self._network, self._policy_fd, self._roots_fd])
        if self.capture_fd is not None:
            close_all([self.capture_fd])
        if survivors:
            note(self.folder, living)  # they were told of the roots in it
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
        return survivors

    async def _drain(self, gate: ChildProcess) -> None:
        drained: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def heard(message: object, fds: list[int]) -> None:
            self._gate_said(gate, message, fds)
            if isinstance(message, Drained) and not drained.done():
                drained.set_result(None)

        gate.on_message = heard
        gate.channel.send(Drain(grace_s=DRAIN_GRACE_S))
        await asyncio.wait((drained, gate.ended), timeout=DRAIN_GRACE_S + 3, return_when=asyncio.FIRST_COMPLETED)
