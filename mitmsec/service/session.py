"""One run, or the service: its hook, its gate and workers, from the first listener to the last committed event.

         scope ── hook ──► listeners ── gate ──┬── worker 0 ─┐
                    │                          └── worker 1 ─┤── signer, recorder: the supervisor's own
                    └── what does not pass the gate ──► `observers.py`

Who replaces what dies: `gate_and_workers.py`. A reload changes the policy, its workers and whom the hook selects: all
of it, or nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import time
import traceback
from pathlib import Path
from typing import Protocol

from mitmsec.audit.event import FaultSeen, PolicySeen, ServiceSeen
from mitmsec.channel import ChannelFull, close_all
from mitmsec.core.messages import Whose, WhoseAnswer
from mitmsec.core.model import Caller, OnFailure, Process
from mitmsec.core.policy import Policy
from mitmsec.core.policy_packing import unpacked, without_names
from mitmsec.service import backends, left_diverters
from mitmsec.service.background import Background, for_ever
from mitmsec.service.children import ChildProcess
from mitmsec.service.children_ground import Shared as ChildrensShared
from mitmsec.service.control import SERVICE, BackendChoice, OpenRun, ReloadService, ServiceStatus, StartService
from mitmsec.service.divert_backend import DivertBackend
from mitmsec.service.expiries import Expiries
from mitmsec.service.gate_and_workers import GateAndWorkers
from mitmsec.service.ground import listeners_and_relays, listeners_everywhere, read_all
from mitmsec.service.inward import InwardGround
from mitmsec.service.name_relays import NameRelays
from mitmsec.service.observers import Observers
from mitmsec.service.owners import Owners, decides_by_hash
from mitmsec.service.reloading import Reloading, Terms
from mitmsec.service.scopes import NOBODY, CommandScope, Heirs, Scope
from mitmsec.service.standing import StandingScope
from mitmsec.service.survivors import note
from mitmsec_redirect import bpffs, netns
from mitmsec_redirect.backend import Backend, BackendKind, BackendUnavailable
from mitmsec_redirect.cgroup import SessionCgroup
from mitmsec_redirect.connect_hook import ConnectHook
from mitmsec_redirect.owner import Owner, rfc3339
from mitmsec_redirect.processes import ProcessTable
from mitmsec_redirect.records import Missed

NAMES_SHOWN, NAME_SHOWN = 32, 64  # of applications, and characters of each, in a status


class Shared(ChildrensShared, Protocol):
    """What a session needs of its supervisor."""

    processes: ProcessTable

    async def keep_policy(self, policy: Policy) -> None: ...
    def is_nobodys(self, label: str) -> bool:
        """No session of this supervisor has it, and no command that still runs."""


class Session:
    """Built by `open`; ended by `close`, which is idempotent and never leaves a hook, cgroup or process behind."""

    def __init__(self, shared: Shared, name: str, order: OpenRun | StartService, fds: list[int]) -> None:
        self.shared, self.name, self.order = shared, name, order
        self.policy_order: OpenRun | StartService | ReloadService = order
        self._since = rfc3339(time.time())
        self.network, self.policy_fd, self.roots_fd = fds[:3]
        self.capture_fd = fds[3] if isinstance(order, OpenRun) and order.capture else None
        self.keys_fd = fds[-1] if order.keys else None
        self.policy = without_names(read_all(self.policy_fd))
        self._owners = Owners(self._whose, shared.log, must_have_hash=decides_by_hash(self.policy))
        self.folder = shared.state.session_folder(name)
        self.scope: Scope | None = None
        self.hook: Backend | None = None
        self.listeners, self.quic_relays = list[socket.socket](), list[socket.socket]()
        self.faults, self._closing = 0, False
        self.children = GateAndWorkers(self)
        self.observers = Observers(self, self._owners)
        self._background = Background()
        self._reloading = Reloading(self)
        self._expiries = Expiries(self.shared.record, self.name)

    # -- begin ---------------------------------------------------------------------------------------------------------
    async def open(self, user: str) -> None:
        """Everything up to a gate that accepts. Raises ChildFailed, OSError, BackendUnavailable; then call close."""
        self.folder.mkdir(mode=0o755)
        self.folder.chmod(0o755)
        self.children.begin()
        await self.shared.keep_policy(unpacked(read_all(self.policy_fd)))
        scope = self.scope = self._scope()
        if self._choice is BackendChoice.WINDIVERT:
            left_diverters.mark(self.folder)
        if self.is_service:  # one that denied for a killed service would stand in the way
            await asyncio.to_thread(left_diverters.reap, self.shared.state, ends=self.shared.is_nobodys)
        self.listeners, self.quic_relays = netns.inside(self.network, self._listeners)
        hook = self.hook = await self._opened_hook(scope)
        if self.is_service or isinstance(hook, ConnectHook):
            self._pin_scope(self._pins(self.policy))
        for one in hook.watched:
            asyncio.get_running_loop().add_reader(one.fd, one.readable)
        self.observers.begin(hook.kind, scope)
        self._record_policy(self.order)
        self.shared.record(self._started(user, hook.kind))
        await self.children.build()
        self._background.begin(for_ever(self._look, self._blind))

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
                policy=self.policy.fingerprint,
                rules=len(self.policy.rules),
                on_failure=self.policy.on_failure,
                certificates=self.policy.certificates,
            )
        )
        for addon in self.policy.mitmproxy_addons:
            self.shared.record(ServiceSeen(operation="mitmproxy_addon", session=self.name, detail=addon.told))

    def _started(self, user: str, kind: BackendKind) -> ServiceSeen:
        order = self.order
        if isinstance(order, StartService):
            return ServiceSeen(operation="service_started", session=self.name, user=user)
        detail = f"{order.arguments} argument{'' if order.arguments == 1 else 's'}, diverted by {kind}"
        return ServiceSeen(
            operation="run_started", session=self.name, user=user, command=(order.program,), detail=detail
        )

    @property
    def processes(self) -> ProcessTable:
        """Who knows the session's processes."""
        processes = self.scope.processes if self.scope is not None else None
        return processes or self.shared.processes

    def _whose(self, pid: int, uid: int, comm: str, connected_ns: int | None, caller: Caller | None) -> Owner:
        return self.processes.whose(pid, uid, comm, connected_ns, caller)

    def _owner(self, asked: Whose) -> Owner:
        """Of a connection: as the kernel said at connect(), or as the backend finds out."""

        def read() -> Owner:
            owner = backends.found(self.hook, asked, self.processes) if self.hook is not None else None
            return owner or self._whose(asked.pid, asked.uid, asked.comm, asked.connected_ns or None, asked.caller)

        return self._owners.told_by(asked, read)

    @property
    def program(self) -> str:
        """Whose session it is, for people."""
        return self.order.program if isinstance(self.order, OpenRun) else SERVICE

    @property
    def inward(self) -> InwardGround | None:
        return self.observers.inward

    @property
    def pins(self) -> Path | None:
        return self._pins(self.policy)

    @property
    def names_fd(self) -> int | None:
        """What its gate is to read DNS from, where that is copied."""
        return self.observers.names_fd

    @property
    def relays(self) -> NameRelays | None:
        """What a service's DNS is led to, for its gate to relay."""
        return self.observers.relays

    @property
    def policy_file(self) -> str:
        """What it was started or last reloaded with."""
        return self.policy_order.policy_file

    @property
    def worker_count(self) -> int:
        """None where the policy in force reads nothing."""
        return self.order.workers if self.policy.needs_workers else 0

    @property
    def is_service(self) -> bool:
        return isinstance(self.order, StartService)

    def service_status(self) -> ServiceStatus:
        names = [application.name for application in self.policy.applications]
        return ServiceStatus(
            session=self.name,
            backend=self.hook.kind if self.hook is not None else BackendKind.CONNECT_HOOK,
            policy_file=self.policy_file,
            policy_sha256=self.policy_order.policy_sha256,
            applications=tuple(name[:NAME_SHOWN] for name in names[:NAMES_SHOWN]),
            on_failure=self.policy.on_failure,
            started=self._since,
            faults=self.faults,
            names=None if self.relays is None else self.relays.status,
        )

    def _pins(self, policy: Policy) -> Path | None:
        if policy.on_failure is OnFailure.OPEN:
            return None
        bpffs.mount(self.shared.state.bpf)
        return self.shared.state.bpf / self.name

    def _pin_scope(self, pins: Path | None) -> None:
        if pins is not None and self.scope is not None:
            self.scope.pin(pins)

    @property
    def _choice(self) -> BackendChoice:
        """A service never falls back: only the connect hook and windivert select single programs."""
        is_free = self.is_service and self.order.backend is BackendChoice.AUTO
        return BackendChoice.CONNECT_HOOK if is_free else self.order.backend

    def _listeners(self) -> tuple[list[socket.socket], list[socket.socket]]:
        return (listeners_everywhere(), []) if self._choice is BackendChoice.WINDIVERT else listeners_and_relays()

    async def _opened_hook(self, scope: Scope) -> Backend:
        ports = [listener.getsockname()[1] for listener in self.listeners]
        terms = backends.Terms(
            cgroup=scope.path,
            ports=(ports[0], ports[1] if len(ports) > 1 else None),
            namespace=lambda: netns.cookie_of(self.listeners[0]),
            netns_fd=self.network,
            on_failure=self.policy.on_failure,
            quic=self.policy.quic,
            pins=lambda: self._pins(self.policy),
            label=left_diverters.label(self.shared.state, self.name),
            selection=scope.selection,
            paths=self.processes.paths,
            keep=scope.pin,
            has_quic_relay=bool(self.quic_relays),
        )
        return await backends.opened(self._choice, terms, self.shared.log)

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

    def fault(self, what: str, detail: str = "", *, count: int = 1, failed: OnFailure | None = None) -> None:
        self.faults += count
        failed = failed or self.policy.on_failure
        self.shared.record(FaultSeen(what=what, detail=detail, failed=failed, session=self.name, count=count))

    # -- orders --------------------------------------------------------------------------------------------------------
    async def reload(self, order: ReloadService, policy_fd: int, roots_fd: int, keys_fd: int | None = None) -> None:
        """The new policy for every connection from now on; it owns the descriptors then. Live flows keep the old one.

        Raises ChildFailed, OSError, BackendUnavailable; then the old one is in force as before.
        """
        async with self.children.building:
            policy = without_names(read_all(policy_fd))
            await self.shared.keep_policy(unpacked(read_all(policy_fd)))
            await self._reloading.exchange(Terms(policy, policy_fd, roots_fd, keys_fd))
            self.policy_order = order
            self._record_policy(order)

    def heirs(self) -> Heirs:
        """Whom the policy in force selects for what started them."""
        return self.scope.heirs() if self.scope is not None else NOBODY

    def change_hook(self, policy: Policy, heirs: Heirs) -> None:
        """What the hook does, and for whom, follows this policy; `heirs` as in `Scope.govern`.

        Raises BackendUnavailable, OSError; then some of it may have changed.
        """
        assert isinstance(self.hook, ConnectHook | DivertBackend)  # a service's
        assert self.scope is not None
        self._owners.must_have_hash = decides_by_hash(policy)  # of the gate's first question under it, too
        self.scope.govern(policy, heirs)
        selection = self.scope.selection
        pins = self._pins(policy)
        everything = selection is not None and selection.everything
        self.children.lead_quic(policy)
        self.hook.change(on_failure=policy.on_failure, quic=policy.quic, everything=everything, pin_folder=pins)
        self.observers.govern(policy, selection)
        self._pin_scope(pins)

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

    async def _look(self) -> None:
        self.children.feel_pulse()
        await self.observers.look()
        if self.scope is not None:
            self.scope.look()
        self._reloading.look()
        self._expiries.look(self.policy, time.time())

    def _blind(self, error: Exception) -> None:
        """A bug of ours, or what nobody foresaw: some of what is to be seen may not have been."""
        traceback.print_exception(error)
        self.fault("look_failed", type(error).__name__)

    def who_missed(self, missed: Missed) -> Process:
        """Whose attempt it was that the hook did not divert."""

        def read() -> Owner:
            owner = backends.found_missed(missed, self.processes)
            return owner or self._whose(missed.pid, missed.uid, missed.comm, missed.at_ns, missed.caller)

        return self._owners.told_by(missed, read).process

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
            self.observers.divert_no_more()

    async def close(self, *, home: str | None) -> int:
        """Hook off, flows drained, processes ended, cgroup removed. Survivors move to cgroup `home`; their number.

        The recorder still has to be asked to flush.
        """
        if self._closing:
            return 0
        self._closing = True
        self._background.cancel()
        self.observers.detach()
        await self.observers.finish()  # with a new gate, if the last has just died
        self.children.replace_no_more()
        await self.children.drain()
        await self.children.stop()
        self.observers.close()
        if self.hook is not None:
            await self._close_hook(self.hook)
        living = self.scope.pids() if self.scope is not None else []
        survivors = await self.scope.release(home) if self.scope is not None else 0
        for one in (*self.listeners, *self.quic_relays):
            one.close()
        close_all([self.network, self.policy_fd, self.roots_fd])
        close_all([fd for fd in (self.capture_fd, self.keys_fd) if fd is not None])
        if survivors:
            note(self.folder, living)  # they were told of the roots in it
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
        return survivors

    async def _close_hook(self, hook: Backend) -> None:
        """What cannot be removed now, the next start or `clean` removes."""
        for one in hook.watched:
            asyncio.get_running_loop().remove_reader(one.fd)
        try:
            hook.close()
            await backends.ended(hook)
            self.observers.hear_the_last()
        except (OSError, BackendUnavailable) as error:
            self.fault("hook_not_removed", str(error))
