"""One run, or the service: its hook, its gate and workers, from the first listener to the last committed event.

         scope ── hook ──► listeners ── gate ──┬── worker 0 ─┐
                    │                          └── worker 1 ─┤── signer, recorder: the supervisor's own
                    └── missed connections ──► faults

A worker that dies is replaced alone. When the gate dies, or the signer or recorder of the supervisor, gate and workers
are all built anew (`rebuild`); the listeners stay open, and until the new gate's first heartbeat the hook follows
`on_failure`. Another policy (`reload`) needs other workers: new flows go to new ones, the old end with their last flow.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from mitmsec.audit.event import FaultSeen, PolicySeen, Seen, ServiceSeen
from mitmsec.channel import ChannelFull, close_all, pair
from mitmsec.core.messages import (
    Drain,
    Drained,
    Fault,
    FlowsAnswer,
    FlowsQuestion,
    GateSettings,
    Govern,
    Governed,
    Ready,
    Role,
    Switch,
    Switched,
    Whose,
    WhoseAnswer,
    WorkerHangs,
    WorkerSettings,
    WorkerUp,
)
from mitmsec.core.model import Caller, OnFailure, Process
from mitmsec.core.policy import Policy
from mitmsec.service import backends
from mitmsec.service.accounts import account_of
from mitmsec.service.answers import Answers
from mitmsec.service.children import ChildFailed, ChildProcess
from mitmsec.service.control import BackendChoice, OpenRun, ReloadService, ServiceStatus, StartService
from mitmsec.service.ground import listeners, read_all
from mitmsec.service.jail import Jail
from mitmsec.service.missed import Misses
from mitmsec.service.owners import Owners, decides_by_hash
from mitmsec.service.pulse import HANGS_S, Pulse
from mitmsec.service.scopes import CommandScope, Scope
from mitmsec.service.standing import StandingScope
from mitmsec.service.state import State
from mitmsec.service.survivors import note
from mitmsec_redirect import bpffs, netns
from mitmsec_redirect.backend import Backend, BackendKind, BackendUnavailable
from mitmsec_redirect.cgroup import SessionCgroup
from mitmsec_redirect.connect_hook import ConnectHook
from mitmsec_redirect.owner import Owner, rfc3339
from mitmsec_redirect.processes import ProcessTable
from mitmsec_redirect.records import Missed

MISSED_PERIOD_S, MISSED_LOOKS = 0.1, 5  # events; within that, how often owners are asked for while they live
DRAIN_GRACE_S = 2.0
DRAINED_S = 13.0  # for a gate to end its flows and see them recorded: more than it takes itself
RESTART_PAUSE_S, REBUILD_PAUSE_S = 0.2, 5.0
SERVICE = "(service)"
NAMES_SHOWN, NAME_SHOWN = 32, 64  # of applications, and characters of each, in a status
HEARD = (Ready, Fault, Whose, WorkerHangs, Drained, Governed, Switched, FlowsAnswer)  # of children
RESTARTS_LIMIT, RESTARTS_S = 5, 60.0  # workers that die this often within a minute stay dead until it is over


class Shared(Protocol):
    """What a session needs of its supervisor."""

    state: State
    log: Callable[[str], None]
    processes: ProcessTable
    off: bool
    """The kill switch has been thrown."""

    def record(self, seen: Seen) -> None: ...
    def recorder_channel(self, role: Role, session: str, worker: int = -1) -> socket.socket: ...
    def signer_channel(self, role: Role, session: str, worker: int = -1) -> socket.socket: ...


class Session:
    """Built by `open`; ended by `close`, which is idempotent and never leaves a hook, cgroup or process behind."""

    def __init__(self, shared: Shared, name: str, order: OpenRun | StartService, fds: list[int]) -> None:
        self.shared, self.name, self.order = shared, name, order
        self.policy_order: OpenRun | StartService | ReloadService = order
        self._since = rfc3339(time.time())
        self._network, self._policy_fd, self._roots_fd = fds[:3]
        self.capture_fd = fds[3] if isinstance(order, OpenRun) and order.capture else None
        self.policy = msgspec.json.decode(read_all(self._policy_fd), type=Policy)
        self._owners = Owners(self._whose, shared.log, must_have_hash=decides_by_hash(self.policy))
        self.folder = shared.state.session_folder(name)
        self.scope: Scope | None = None
        self.hook: Backend | None = None
        self.gate: ChildProcess | None = None
        self.workers: dict[int, ChildProcess] = {}
        self.cut = self.faults = 0
        self._active: tuple[int, ...] = ()  # workers that new flows go to; numbers are never used again
        self._numbers = itertools.count()
        self._answers = Answers()
        self._misses = Misses(self._who_missed, name)
        self._pulse: Pulse | None = None  # of a gate that serves
        self._listeners: list[socket.socket] = []
        self._watch: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._restarts: list[float] = []
        self._building = asyncio.Lock()
        self._closing = False

    # -- begin ---------------------------------------------------------------------------------------------------------
    async def open(self, user: str) -> None:
        """Everything up to a gate that accepts. Raises ChildFailed, OSError, BackendUnavailable; then call close."""
        self.folder.mkdir(mode=0o755)
        self.folder.chmod(0o755)
        scope = self.scope = self._scope()
        self._listeners = netns.inside(self._network, listeners)
        hook = self.hook = self._hook(scope)
        if isinstance(hook, ConnectHook):
            self._pin_scope(self._pins(self.policy))
        for one in hook.watched:
            asyncio.get_running_loop().add_reader(one.fd, one.readable)
        self._record_policy(self.order)
        self.shared.record(self._started(user, hook.kind))
        await self._build()
        self._watch = asyncio.create_task(self._collect_missed())

    def _scope(self) -> Scope:
        if isinstance(self.order, StartService):
            return StandingScope(self.policy)
        return CommandScope(SessionCgroup.create(self.shared.state.identity(), self.name))

    def _record_policy(self, order: OpenRun | StartService | ReloadService) -> None:
        self.shared.record(
            PolicySeen(
                session=self.name,
                path=order.policy_file,
                sha256=order.policy_sha256,
                rules=len(self.policy.rules),
                on_failure=self.policy.on_failure,
            )
        )

    def _started(self, user: str, kind: BackendKind) -> ServiceSeen:
        order = self.order
        if isinstance(order, StartService):
            return ServiceSeen(operation="service_started", session=self.name, user=user)
        detail = f"{order.arguments} argument{'' if order.arguments == 1 else 's'}, diverted by {kind}"
        return ServiceSeen(
            operation="run_started", session=self.name, user=user, command=(order.program,), detail=detail
        )

    @property
    def _processes(self) -> ProcessTable:
        processes = self.scope.processes if self.scope is not None else None
        return processes or self.shared.processes

    def _whose(self, pid: int, uid: int, comm: str, connected_ns: int | None, caller: Caller | None) -> Owner:
        return self._processes.whose(pid, uid, comm, connected_ns, caller)

    def _owner(self, asked: Whose) -> Owner:
        """Of a connection: as the kernel said at connect(), or as the backend finds out."""

        def read() -> Owner:
            owner = backends.found(self.hook, asked, self._processes) if self.hook is not None else None
            return owner or self._whose(asked.pid, asked.uid, asked.comm, asked.connected_ns or None, asked.caller)

        return self._owners.told_by(asked, read)

    @property
    def program(self) -> str:
        """Whose session it is, for people."""
        return self.order.program if isinstance(self.order, OpenRun) else SERVICE

    @property
    def is_service(self) -> bool:
        return isinstance(self.order, StartService)

    def service_status(self) -> ServiceStatus:
        names = [application.name for application in self.policy.applications]
        return ServiceStatus(
            session=self.name,
            backend=BackendKind.CONNECT_HOOK,
            policy_file=self.policy_order.policy_file,
            policy_sha256=self.policy_order.policy_sha256,
            applications=tuple(name[:NAME_SHOWN] for name in names[:NAMES_SHOWN]),
            on_failure=self.policy.on_failure,
            started=self._since,
            faults=self.faults,
        )

    def _pins(self, policy: Policy) -> Path | None:
        if policy.on_failure is OnFailure.OPEN:
            return None
        bpffs.mount(self.shared.state.bpf)
        return self.shared.state.bpf / self.name

    def _pin_scope(self, pins: Path | None) -> None:
        if pins is not None and self.scope is not None:
            self.scope.pin(pins)

    def _hook(self, scope: Scope) -> Backend:
        """A service's is always the connect hook: no other backend selects single programs."""
        ports = [listener.getsockname()[1] for listener in self._listeners]
        terms = backends.Terms(
            cgroup=scope.path,
            ports=(ports[0], ports[1] if len(ports) > 1 else None),
            namespace=lambda: netns.cookie_of(self._listeners[0]),
            netns_fd=self._network,
            on_failure=self.policy.on_failure,
            quic=self.policy.quic,
            pins=lambda: self._pins(self.policy),
            selection=scope.selection,
        )
        choice = self.order.backend if isinstance(self.order, OpenRun) else BackendChoice.CONNECT_HOOK
        return backends.opened(choice, terms, self.shared.log)

    async def _build(self) -> None:
        gate = self.gate = self._spawn(Role.GATE, self._network)
        gate.on_message = lambda message, fds: self._gate_said(gate, message, fds)
        recorder = self.shared.recorder_channel(Role.GATE, self.name)
        signer = self.shared.signer_channel(Role.GATE, self.name)
        assert self.hook is not None
        assert self.scope is not None
        self.scope.own(gate.pid)
        fds = [
            self._policy_fd,
            self._listeners[0].fileno(),
            recorder.fileno(),
            signer.fileno(),
            *self.hook.ground.descriptors,
            *(listener.fileno() for listener in self._listeners[1:]),
        ]
        settings = GateSettings(
            session=self.name,
            on_failure=self.policy.on_failure,
            has_v6=len(self._listeners) > 1,
            capture=self.capture_fd is not None,
            off=self.shared.off,
            backend=self.hook.kind,
        )
        with recorder, signer:
            answer = await gate.start(settings, *fds)
        if not isinstance(answer, Ready):
            raise ChildFailed(f"the gate answered {answer!r}")
        gate.watch(self._gate_exited)
        self._pulse = Pulse()
        self._active = self._new_numbers()
        await asyncio.gather(*(self._start_worker(number) for number in self._active))

    def _new_numbers(self) -> tuple[int, ...]:
        return tuple(itertools.islice(self._numbers, self.order.workers))

    def _spawn(self, role: Role, network: int | None = None) -> ChildProcess:
        jail = Jail(role=role, account=account_of(role), mountpoint=str(self.shared.state.jail), network=network)
        return ChildProcess(jail, self.shared.log, HEARD)

    async def _start_worker(self, number: int, *, reserve: bool = False) -> None:
        worker = self.workers[number] = self._spawn(Role.WORKER)
        gate_end, worker_end = pair()
        recorder = self.shared.recorder_channel(Role.WORKER, self.name, number)
        signer = self.shared.signer_channel(Role.WORKER, self.name, number)
        settings = WorkerSettings(
            session=self.name,
            worker=number,
            on_failure=self.policy.on_failure,
            capture=self.capture_fd is not None,
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
                self.gate.channel.send(WorkerUp(worker=number, reserve=reserve), gate_end.fileno())

    # -- while it runs -------------------------------------------------------------------------------------------------
    def _gate_said(self, gate: ChildProcess, message: object, fds: list[int]) -> None:
        close_all(fds)
        match message:
            case Whose():
                owner = self._owner(message)
                if owner.sha256 is None:
                    self._answer(gate, message, owner.process)
                else:
                    self._later(self._answer_hashed(gate, message, owner))
            case WorkerHangs(worker=number) if number in self.workers:
                self.workers[number].kill()  # the gate has recorded why; its exit is told like any other
            case Drained(cut=cut):
                self.cut += cut
            case Governed() | Switched() | FlowsAnswer():
                self._answers.heard(message)
            case Fault(what=what, detail=detail):
                self._fault(what, detail)
            case _:
                pass

    async def _answer_hashed(self, gate: ChildProcess, asked: Whose, owner: Owner) -> None:
        """Nobody but this connection waits for its program's hash."""
        self._answer(gate, asked, await self._owners.hashed(owner))

    def _answer(self, gate: ChildProcess, asked: Whose, process: Process) -> None:
        """Whose the connection is. A gate that has not read thousands of answers hangs: see `_feel_pulse`.

        Who was selected at connect() still is, though it may have ended since, and its entry with it.
        """
        selected = asked.selected or self.scope is None or self.scope.selects(process)
        with contextlib.suppress(ChannelFull):
            gate.channel.send(WhoseAnswer(number=asked.number, process=process, selected=selected))

    def _fault(self, what: str, detail: str = "", *, pid: int | None = None, count: int = 1) -> None:
        self.faults += count
        self.shared.record(
            FaultSeen(what=what, detail=detail, failed=self.policy.on_failure, session=self.name, pid=pid, count=count)
        )

    def _feel_pulse(self) -> None:
        """End a gate that hangs: its exit is told and mended like any other."""
        if self.hook is None or self.gate is None or self._pulse is None:
            return
        if self._pulse.hangs(self.hook.last_beat_ns, time.monotonic()):
            self._pulse = None
            self._fault("gate_hangs", f"no heartbeat for {HANGS_S:.0f} s")
            self.gate.kill()

    def _gate_exited(self, status: int) -> None:
        self._pulse = None
        if not self._closing:
            self._fault("gate_died", f"status {status}")
            self._later(self.rebuild())

    def _worker_exited(self, number: int, status: int) -> None:
        if self._closing:
            return
        if number not in self._active:  # its policy is not in force any more, and its last flow has ended
            self.workers.pop(number, None)
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
            if number in self._active and self.workers[number].ended.done():  # else a rebuild has replaced it
                try:
                    await self._start_worker(number)
                except (ChildFailed, OSError) as error:
                    self._fault("worker_not_started", f"worker {number}: {error}")
                    self._later(self._replace(number))

    # -- orders --------------------------------------------------------------------------------------------------------
    async def reload(self, order: ReloadService, policy_fd: int, roots_fd: int) -> None:
        """The new policy for every connection from now on; it owns the descriptors then. Live flows keep the old one.

        Raises ChildFailed, OSError, BackendUnavailable; then the old one is in force as before.
        """
        async with self._building:
            policy = msgspec.json.decode(read_all(policy_fd), type=Policy)
            before = (self.policy, self._policy_fd, self._roots_fd)
            self.policy, self._policy_fd, self._roots_fd = policy, policy_fd, roots_fd
            old, numbers = self._active, self._new_numbers()
            self._active = old + numbers  # whoever of them dies is replaced
            try:
                await asyncio.gather(*(self._start_worker(number, reserve=True) for number in numbers))
                self._change_hook(policy)
                await self._govern(policy, numbers)
            except BaseException:
                self.policy, self._policy_fd, self._roots_fd = before
                self._active = old
                await self._dismiss(numbers)
                self._change_hook(self.policy)
                raise
            close_all(before[1:])
            self._active, self._owners.must_have_hash = numbers, decides_by_hash(policy)
            self.policy_order = order
            self._record_policy(order)

    def _change_hook(self, policy: Policy) -> None:
        assert isinstance(self.hook, ConnectHook)  # a service's
        assert self.scope is not None
        self.scope.govern(policy)
        selection = self.scope.selection
        pins = self._pins(policy)
        self.hook.change(
            on_failure=policy.on_failure,
            quic=policy.quic,
            everything=selection is not None and selection.everything,
            pin_folder=pins,
        )
        self._pin_scope(pins)

    async def _govern(self, policy: Policy, numbers: tuple[int, ...]) -> None:
        if self.gate is None:
            raise ChildFailed("there is no gate")
        order = Govern(on_failure=policy.on_failure, workers=numbers)
        await self._answers.ask(self.gate, order, self._policy_fd, answer=Governed)

    async def _dismiss(self, numbers: tuple[int, ...]) -> None:
        for number in numbers:
            if (worker := self.workers.pop(number, None)) is not None:
                await worker.stop()

    async def switch(self, *, off: bool) -> int:
        """Throw the kill switch, or let decrypting begin again; how many decrypted flows were cut."""
        if self.gate is None or self.gate.ended.done():
            return 0  # the next one is told as it starts
        try:
            return (await self._answers.ask(self.gate, Switch(off=off), answer=Switched)).cut
        except (ChildFailed, OSError):
            self.gate.kill()  # it does not answer, and must not go on decrypting: the next one is told as it starts
            return 0

    async def flows(self) -> tuple[int, int]:
        """How many live, and how many of those are decrypted; none where no gate answers."""
        try:
            if self.gate is not None and not self.gate.ended.done():
                answer = await self._answers.ask(self.gate, FlowsQuestion(), answer=FlowsAnswer, deadline_s=1.0)
                return answer.live, answer.decrypted
        except ChildFailed:
            pass
        return 0, 0

    # -- failures and ends ---------------------------------------------------------------------------------------------
    def silence(self) -> None:
        """Follow `on_failure` at once: the gate goes, so that no heartbeat of its own says otherwise."""
        self._pulse = None
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
            if self.scope is not None:
                self.scope.look()
            self._feel_pulse()
            for _ in range(MISSED_LOOKS):
                await asyncio.sleep(MISSED_PERIOD_S / MISSED_LOOKS)
                self._take_missed()

    def _take_missed(self) -> None:
        if self.hook is not None:
            self._misses.take(self.hook.missed())

    def _record_missed(self) -> None:
        """What the hook saw and could not or must not divert, and what went wrong with the hook itself."""
        self._take_missed()
        for event in self._misses.told():
            self.shared.record(event)
        for trouble in self.hook.troubles() if self.hook is not None else ():
            self._fault(trouble)

    def _who_missed(self, missed: Missed) -> Process:
        def read() -> Owner:
            owner = backends.found_missed(missed, self._processes)
            return owner or self._whose(missed.pid, missed.uid, missed.comm, missed.at_ns, missed.caller)

        return self._owners.told_by(missed, read).process

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
        return is_closed and self.scope is not None and self.scope.is_populated()

    # -- end -----------------------------------------------------------------------------------------------------------
    async def until_empty(self) -> None:
        """Until no process of the command is left."""
        while self.scope is not None and self.scope.is_populated():
            await asyncio.sleep(0.1)

    def divert_no_more(self) -> None:
        """The first part of `close`."""
        if self.hook is not None and not self._closing:
            self.hook.detach()

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
        if self.hook is not None:
            self._close_hook(self.hook)
        living = self.scope.pids() if self.scope is not None else []
        survivors = await self.scope.release(home) if self.scope is not None else 0
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

    def _close_hook(self, hook: Backend) -> None:
        """What cannot be removed now, the next start or `clean` removes."""
        for one in hook.watched:
            asyncio.get_running_loop().remove_reader(one.fd)
        try:
            hook.close()
        except (OSError, BackendUnavailable) as error:
            self._fault("hook_not_removed", str(error))

    async def _drain(self, gate: ChildProcess) -> None:
        drained: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def heard(message: object, fds: list[int]) -> None:
            self._gate_said(gate, message, fds)
            if isinstance(message, Drained) and not drained.done():
                drained.set_result(None)

        gate.on_message = heard
        gate.channel.send(Drain(grace_s=DRAIN_GRACE_S))
        await asyncio.wait((drained, gate.ended), timeout=DRAINED_S, return_when=asyncio.FIRST_COMPLETED)
