"""One run, or the service: its hook, its gate and workers, from the first listener to the last committed event.

         scope ── hook ──► listeners ── gate ──┬── worker 0 ─┐
                    │                          └── worker 1 ─┤── signer, recorder: the supervisor's own
                    ├── missed connections ──► faults
                    └── incoming connections ► events

Who replaces what dies: `gate_and_workers.py`. A reload changes the policy, its workers and whom the hook selects: all
of it, or nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import time
from functools import partial
from pathlib import Path
from typing import Protocol

import msgspec

from mitmsec.audit.event import FaultSeen, PolicySeen, ServiceSeen
from mitmsec.channel import ChannelFull, close_all
from mitmsec.core.messages import Whose, WhoseAnswer
from mitmsec.core.model import Caller, OnFailure, Process
from mitmsec.core.policy import Policy
from mitmsec.service import backends, listening
from mitmsec.service.background import Background
from mitmsec.service.children import ChildProcess
from mitmsec.service.control import BackendChoice, OpenRun, ReloadService, ServiceStatus, StartService
from mitmsec.service.gate_and_workers import GateAndWorkers
from mitmsec.service.gate_and_workers import Shared as ChildrensShared
from mitmsec.service.ground import listeners, read_all
from mitmsec.service.incoming import Incoming
from mitmsec.service.incoming_watch import IncomingWatch
from mitmsec.service.inward import InwardGround
from mitmsec.service.missed import Misses
from mitmsec.service.owners import Owners, decides_by_hash
from mitmsec.service.scopes import CommandScope, Scope
from mitmsec.service.standing import StandingScope
from mitmsec.service.survivors import note
from mitmsec_redirect import bpffs, netns
from mitmsec_redirect.backend import Backend, BackendKind, BackendUnavailable
from mitmsec_redirect.cgroup import SessionCgroup
from mitmsec_redirect.connect_hook import ConnectHook
from mitmsec_redirect.inbound_records import Inbound
from mitmsec_redirect.owner import Owner, rfc3339
from mitmsec_redirect.processes import ProcessTable
from mitmsec_redirect.records import Missed

MISSED_PERIOD_S, MISSED_LOOKS = 0.1, 5  # events; within that, how often owners are asked for while they live
SERVICE = "(service)"
NAMES_SHOWN, NAME_SHOWN = 32, 64  # of applications, and characters of each, in a status


class Shared(ChildrensShared, Protocol):
    """What a session needs of its supervisor."""

    processes: ProcessTable


class Session:
    """Built by `open`; ended by `close`, which is idempotent and never leaves a hook, cgroup or process behind."""

    def __init__(self, shared: Shared, name: str, order: OpenRun | StartService, fds: list[int]) -> None:
        self.shared, self.name, self.order = shared, name, order
        self.policy_order: OpenRun | StartService | ReloadService = order
        self._since = rfc3339(time.time())
        self.network, self.policy_fd, self.roots_fd = fds[:3]
        self.capture_fd = fds[3] if isinstance(order, OpenRun) and order.capture else None
        self.policy = msgspec.json.decode(read_all(self.policy_fd), type=Policy)
        self._owners = Owners(self._whose, shared.log, must_have_hash=decides_by_hash(self.policy))
        self.folder = shared.state.session_folder(name)
        self.scope: Scope | None = None
        self.hook: Backend | None = None
        self.listeners: list[socket.socket] = []
        self.faults = 0
        self.children = GateAndWorkers(self)
        self._misses = Misses(self._who_missed, name)
        self.inward: InwardGround | None = None
        self._incoming: IncomingWatch | None = None
        self._background = Background()
        self._closing = False

    # -- begin ---------------------------------------------------------------------------------------------------------
    async def open(self, user: str) -> None:
        """Everything up to a gate that accepts. Raises ChildFailed, OSError, BackendUnavailable; then call close."""
        self.folder.mkdir(mode=0o755)
        self.folder.chmod(0o755)
        scope = self.scope = self._scope()
        self.listeners = netns.inside(self.network, listeners)
        hook = self.hook = self._hook(scope)
        if isinstance(hook, ConnectHook):
            self._pin_scope(self._pins(self.policy))
        self._watch_incoming(scope, hook)
        for one in hook.watched:
            asyncio.get_running_loop().add_reader(one.fd, one.readable)
        self._record_policy(self.order)
        self.shared.record(self._started(user, hook.kind))
        await self.children.build()
        self._background.begin(self._collect_missed())

    def _watch_incoming(self, scope: Scope, hook: Backend) -> None:
        pins, shared = self._pins(self.policy), self.shared
        self.inward = InwardGround.open(self.policy, hook, self.network, pins)
        if isinstance(hook, ConnectHook):
            whose = partial(self._who_accepts, scope)
            incoming = Incoming(name=self.name, whose=whose, selects=scope.selects, policy=self.policy)
            watch = IncomingWatch.begin(scope, incoming, shared.record, shared.log, inward=self.inward, pins=pins)
            self._incoming = watch

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
    def worker_count(self) -> int:
        return self.order.workers

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
        ports = [listener.getsockname()[1] for listener in self.listeners]
        terms = backends.Terms(
            cgroup=scope.path,
            ports=(ports[0], ports[1] if len(ports) > 1 else None),
            namespace=lambda: netns.cookie_of(self.listeners[0]),
            netns_fd=self.network,
            on_failure=self.policy.on_failure,
            quic=self.policy.quic,
            pins=lambda: self._pins(self.policy),
            selection=scope.selection,
        )
        choice = self.order.backend if isinstance(self.order, OpenRun) else BackendChoice.CONNECT_HOOK
        return backends.opened(choice, terms, self.shared.log)

    # -- while it runs -------------------------------------------------------------------------------------------------
    def asked_whose(self, gate: ChildProcess, asked: Whose) -> None:
        """Tell the gate whose the connection is."""
        owner = self._owner(asked)
        if owner.sha256 is None:
            self._answer(gate, asked, owner.process)
        else:
            self._background.begin(self._answer_hashed(gate, asked, owner))

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

    def fault(self, what: str, detail: str = "", *, pid: int | None = None, count: int = 1) -> None:
        self.faults += count
        self.shared.record(
            FaultSeen(what=what, detail=detail, failed=self.policy.on_failure, session=self.name, pid=pid, count=count)
        )

    # -- orders --------------------------------------------------------------------------------------------------------
    async def reload(self, order: ReloadService, policy_fd: int, roots_fd: int) -> None:
        """The new policy for every connection from now on; it owns the descriptors then. Live flows keep the old one.

        Raises ChildFailed, OSError, BackendUnavailable; then the old one is in force as before.
        """
        async with self.children.building:
            policy = msgspec.json.decode(read_all(policy_fd), type=Policy)
            before = (self.policy, self.policy_fd, self.roots_fd)
            self.policy, self.policy_fd, self.roots_fd = policy, policy_fd, roots_fd
            try:
                async with self.children.successors() as numbers:
                    self._change_hook(policy)
                    await self.children.govern(numbers)
            except BaseException:
                self.policy, self.policy_fd, self.roots_fd = before
                self._change_hook(self.policy)
                raise
            close_all(before[1:])
            self._owners.must_have_hash = decides_by_hash(policy)
            self.policy_order = order
            self._record_policy(order)

    def _change_hook(self, policy: Policy) -> None:
        assert isinstance(self.hook, ConnectHook)  # a service's
        assert self.scope is not None
        self.scope.govern(policy)
        selection = self.scope.selection
        pins = self._pins(policy)
        everything = selection is not None and selection.everything
        self.hook.change(on_failure=policy.on_failure, quic=policy.quic, everything=everything, pin_folder=pins)
        if self._incoming is not None:
            self._incoming.govern(policy, everything=everything)
        self._pin_scope(pins)

    async def switch(self, *, off: bool) -> int:
        """Throw the kill switch, or let decrypting begin again; how many decrypted flows were cut."""
        return await self.children.switch(off=off)

    async def flows(self) -> tuple[int, int]:
        """How many live, and how many of those are decrypted; none where no gate answers."""
        return await self.children.flows()

    # -- failures and ends ---------------------------------------------------------------------------------------------
    def silence(self) -> None:
        """Follow `on_failure` at once."""
        self.children.silence()

    async def rebuild(self) -> None:
        """New gate and workers on the same listeners; until then the hook follows `on_failure`."""
        await self.children.rebuild()

    async def abandon(self) -> None:
        """End as a killed supervisor would: the pinned hook stays and denies until the command has ended."""
        self._closing = True
        self.children.abandon()

    async def _collect_missed(self) -> None:
        while True:
            self._record_missed()
            if self.scope is not None:
                self.scope.look()
            if self._incoming is not None:
                self._incoming.look(self.fault)
            self.children.feel_pulse()
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
            self.fault(trouble)

    def _who_missed(self, missed: Missed) -> Process:
        def read() -> Owner:
            owner = backends.found_missed(missed, self._processes)
            return owner or self._whose(missed.pid, missed.uid, missed.comm, missed.at_ns, missed.caller)

        return self._owners.told_by(missed, read).process

    def _who_accepts(self, scope: Scope, inbound: Inbound) -> Owner:
        """Who has, or could have, accepted a connection."""

        def read() -> Owner:
            return listening.whose(self._processes, inbound, scope.pids)

        return self._owners.told_by(inbound, read) if inbound.pid else Owner(Process(pid=0))

    def _record_lost(self) -> None:
        """What came faster than it was collected: the hook's queue was full, its counters are exact."""
        for reason, count in self.hook.lost().items() if self.hook is not None else ():
            self.fault(reason, "more attempts than were collected", count=count)

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
            self._detach(self.hook)

    def _detach(self, hook: Backend) -> None:
        hook.detach()
        if self.inward is not None:
            self.inward.detach()

    async def close(self, *, home: str | None) -> int:
        """Hook off, flows drained, processes ended, cgroup removed. Survivors move to cgroup `home`; their number.

        The recorder still has to be asked to flush.
        """
        if self._closing:
            return 0
        self._closing = True
        self._background.cancel()
        self.children.replace_no_more()
        if self.hook is not None:
            self._detach(self.hook)
            self._record_missed()
            self._record_lost()
        await self.children.drain()
        await self.children.stop()
        if self._incoming is not None:
            self._incoming.close()
        if self.hook is not None:
            self._close_hook(self.hook)
        living = self.scope.pids() if self.scope is not None else []
        survivors = await self.scope.release(home) if self.scope is not None else 0
        for listener in self.listeners:
            listener.close()
        close_all([self.network, self.policy_fd, self.roots_fd])
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
            self.fault("hook_not_removed", str(error))
