"""The `windivert` backend as the supervisor has it: a process beside it, told what to do and watched.

    supervisor ── Stall, Detach, Close ──► diverter ── packets ──► the namespace
        ▲  ◄── status, attempts, faults ──    │
        │ pidfd, silence                      └── expected flows ──► gate ── heartbeat ──► diverter
        └─ dead or hanging ──► another one

What a dead diverter has left swallows every new connection of the namespace for three seconds, so it is removed at
once. Where failures close, a connect hook that hears no heartbeat denies the run's connections until the next diverter
has taken over.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from mitmsec.channel import ChannelFull, close_all
from mitmsec.core.messages import Message, Role
from mitmsec.core.model import Confidence, Endpoint, OnFailure, Quic
from mitmsec.service.children import ChildFailed, ChildProcess
from mitmsec.service.diversion import Standing
from mitmsec.service.divert_messages import (
    FROM_DIVERTER,
    AllTold,
    Change,
    Close,
    Detach,
    DiverterFault,
    DiverterRefused,
    DiverterSettings,
    DiverterStatus,
    NotDiverted,
    Stall,
)
from mitmsec.service.ground import reserved_ports
from mitmsec.service.kept_pins import KeptPins
from mitmsec_redirect import expected_flows, netns, windivert
from mitmsec_redirect.backend import Backend, BackendFault, BackendKind, BackendUnavailable, GateGround, Watched
from mitmsec_redirect.bpf import ProgramRejected
from mitmsec_redirect.cgroup_ids import Scope
from mitmsec_redirect.connect_hook import ConnectHook
from mitmsec_redirect.pulse import Pulse
from mitmsec_redirect.records import Missed, Reason
from mitmsec_redirect.socket_table import DiagTable, OpenSocket, holders_of
from mitmsec_redirect.steps import Selection

SILENT_S = 1.0  # of a diverter, which says something five times a second
LOOK_S = 0.2
RESTART_PAUSE_S = 0.5  # after a start that failed
ALL_TOLD_S = 1.0
STOP_GRACE_S = 6.0  # what is held is answered first
DIVERTED = "diverted"


class DivertBackend(Backend):
    """One session's diverter. Made by `open`, on the loop that it stays on."""

    kind = BackendKind.WINDIVERT
    watched: Sequence[Watched] = ()

    def __init__(
        self, settings: DiverterSettings, label: str, network: int, log: Callable[[str], None], pins: KeptPins
    ) -> None:
        self._settings, self._label, self._log, self._pins = settings, label, log, pins
        self._maps: list[int] = []
        self._network = os.dup(network)
        self._teller, self._told = expected_flows.channel()
        self._heartbeat_fd = Pulse.new()
        self._child: ChildProcess | None = None
        self._status = DiverterStatus(beat_ns=0, diverted=0, untold={})
        self._heard_s = math.inf
        self._before: Counter[str] = Counter()  # what diverters counted that have died
        self._missed: list[Missed] = []
        self._faults: list[BackendFault] = []
        self._stand_in: ConnectHook | None = None
        self._all_told = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self._is_closed = self._is_detached = False
        self._replacing: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls,
        cgroup: Path,
        *,
        gate_port: int,
        on_failure: OnFailure,
        quic: Quic,
        network: int,
        label: str,
        log: Callable[[str], None],
        selection: Selection | None = None,
        pin_folder: Path | None = None,
        keep: Callable[[Path], None] = lambda folder: None,
    ) -> DivertBackend:
        """At work when this returns.

        The gate listens on `gate_port` of all addresses, and has a second for its first heartbeat. `label` is for
        whoever looks for the process. `selection` narrows all to the processes that it names; into `pin_folder`, new,
        on a bpffs, `keep` pins what has to outlive us with the diverter. Raises BackendUnavailable, ChildFailed,
        OSError, with nothing left behind.
        """
        settings = DiverterSettings(
            cgroup=str(cgroup),
            gate_port=gate_port,
            local_ports=netns.inside(network, reserved_ports),
            on_failure=on_failure,
            quic=quic,
            is_standing=selection is not None,
            everything=selection is not None and selection.everything,
        )
        made = cls(settings, label, network, log, KeptPins(keep))
        try:
            if selection is not None:
                made._maps = [os.dup(selection.verdicts), os.dup(selection.runs)]
                made._pins.are_in(pin_folder)
            await made._start()
        except BaseException:
            made.close()
            await made.ended()
            raise
        made._watching = asyncio.create_task(made._watch())
        return made

    # -- the process ---------------------------------------------------------------------------------------------------
    async def _start(self) -> None:
        """Raises BackendUnavailable, ChildFailed, OSError."""
        self._heard_s = math.inf  # a start has a deadline of its own
        child = self._child = ChildProcess(
            Role.DIVERTER, partial(spawn, self._label, self._network), self._log, FROM_DIVERTER
        )
        try:
            fds = (self._heartbeat_fd, self._teller.fileno(), *self._maps)
            answer = await child.start(self._settings, *fds)
            if isinstance(answer, DiverterRefused):
                raise BackendUnavailable(answer.reason, answer.remedy)
        except BaseException:
            child.kill()
            raise
        self._heard_s = asyncio.get_running_loop().time()
        child.on_message = self._heard
        child.watch(self._died)

    def _heard(self, message: object, fds: list[int]) -> None:
        close_all(fds)
        self._heard_s = asyncio.get_running_loop().time()
        match message:
            case DiverterStatus():
                self._status = message
            case AllTold():
                self._all_told.set()
            case NotDiverted():
                self._missed.append(_missed(message))
            case DiverterFault():
                self._faults.append(BackendFault(message.what, message.detail, message.count, message.failed))
            case _:
                pass

    async def _watch(self) -> None:
        """End one that hangs: its exit is told like any other. Time in which we slept ourselves does not count."""
        loop = asyncio.get_running_loop()
        looked_s = loop.time()
        while True:
            await asyncio.sleep(LOOK_S)
            late_s, looked_s = loop.time() - looked_s - LOOK_S, loop.time()
            self._heard_s += max(late_s, 0.0)
            if self._child is not None and not self._child.ended.done() and loop.time() - self._heard_s > SILENT_S:
                self._faults.append(BackendFault("diverter_hangs", f"no word for {SILENT_S:.0f} s"))
                self._child.kill()
                self._heard_s = math.inf

    def _died(self, status: int) -> None:
        if self._is_closed or self._is_detached:
            return
        self._faults.append(BackendFault("diverter_died", f"status {status}; its connections have ended"))
        self._before.update({DIVERTED: self._status.diverted, **self._status.untold})
        self._status = DiverterStatus(beat_ns=self._status.beat_ns, diverted=0, untold={})
        self._deny()
        self._replacing = asyncio.create_task(self._replace())

    def _deny(self) -> None:
        """Where failures close, until the next diverter is at work."""
        if self._settings.on_failure is OnFailure.OPEN or self._stand_in is not None:
            return
        try:
            stand_in = self._stand_in = ConnectHook.open(
                self._settings.cgroup,
                port_v4=self._settings.gate_port,
                port_v6=self._settings.gate_port,
                netns_cookies=[netns.inside(self._network, netns.current_cookie)],
                on_failure=OnFailure.CLOSED,
                quic=self._settings.quic,
                netns_fd=self._network,
                selection=self._selection(),
            )
        except (BackendUnavailable, ProgramRejected, OSError) as error:
            return self._faults.append(BackendFault("not_denied", str(error), failed=OnFailure.OPEN))
        stand_in.stall()

    def _cut_connecting(self) -> None:
        """End those of the run's connections that have begun: their next SYN would go out undiverted."""

        def cut() -> None:
            with contextlib.closing(DiagTable()) as sockets:
                for one in self._selected([one for one in sockets.open_sockets() if one.is_connecting]):
                    sockets.destroy(one)

        try:
            netns.inside(self._network, cut)
        except Exception as error:  # whatever it is, another diverter is to be started
            self._faults.append(BackendFault("not_cut", str(error), failed=OnFailure.OPEN))

    def _selection(self) -> Selection | None:
        if not self._maps:
            return None
        verdicts, runs = self._maps
        return Selection(verdicts, runs, everything=self._settings.everything)

    def _selected(self, found: list[OpenSocket]) -> list[OpenSocket]:
        if not self._maps:
            scope = Scope(self._settings.cgroup)
            return [one for one in found if scope.holds(one.cgroup)]
        standing, everything = Standing(self._maps[0], self._maps[1]), self._settings.everything
        pids = holders_of({one.inode for one in found})
        return [one for one in found if (pid := pids.get(one.inode)) and standing.selects(pid, everything=everything)]

    def _let(self, stand_in: ConnectHook | None) -> None:
        if stand_in is not None:
            self._missed += stand_in.missed()
            stand_in.close()
            self._stand_in = None if self._stand_in is stand_in else self._stand_in

    async def _replace(self) -> None:
        if self._settings.on_failure is OnFailure.CLOSED:
            await asyncio.to_thread(self._cut_connecting)
        await self._sweep()
        while not (self._is_closed or self._is_detached):
            try:
                await self._start()
                return self._let(self._stand_in)
            except (ChildFailed, BackendUnavailable, OSError) as error:
                self._faults.append(BackendFault("diverter_not_started", str(error)))
                await asyncio.sleep(RESTART_PAUSE_S)

    async def _sweep(self) -> None:
        """What dead ones have left of programs in the namespace."""
        try:
            await asyncio.to_thread(netns.inside, self._network, windivert.reap)
        except OSError as error:
            self._faults.append(BackendFault("diverter_not_swept", str(error)))

    # -- for the gate and the session ----------------------------------------------------------------------------------
    @property
    def children(self) -> tuple[ChildProcess, ...]:
        """For `status`."""
        return () if self._child is None else (self._child,)

    @property
    def ground(self) -> GateGround:
        return GateGround(
            kind=self.kind,
            heartbeat_fd=self._heartbeat_fd,
            origins_fd=self._told.fileno(),
            local_ports=self._settings.local_ports,
        )

    def set_port(self, port_v4: int, port_v6: int | None) -> None:
        """Raises ValueError for another port than before: it stands in every filter."""
        if {port_v4, port_v6} - {self._settings.gate_port}:
            raise ValueError("the gate's port cannot be changed")

    def change(
        self, *, on_failure: OnFailure, quic: Quic, everything: bool = False, pin_folder: Path | None = None
    ) -> None:
        """Other terms from now on."""
        self._pins.are_in(pin_folder)
        self._settings = msgspec.structs.replace(
            self._settings, on_failure=on_failure, quic=quic, everything=everything
        )
        self._order(Change(on_failure=on_failure, quic=quic, everything=everything))
        if self._replacing is not None and not self._replacing.done():
            before, self._stand_in = self._stand_in, None
            self._deny()
            self._let(before)  # not sooner: in between nobody would deny anything

    def stall(self) -> None:
        self._order(Stall())

    @property
    def last_beat_ns(self) -> int:
        """The gate's, as the diverter heard it. While there is none we listen: a gate is not to die of that."""
        if self._replacing is not None and not self._replacing.done() and Pulse(self._heartbeat_fd).heard():
            self._status = msgspec.structs.replace(self._status, beat_ns=time.monotonic_ns())
        return self._status.beat_ns

    def owner(self, client: Endpoint, origin: Endpoint) -> None:
        """The origin has said so."""

    @property
    def missed_fd(self) -> None:
        """The diverter tells it by its channel."""

    def missed(self) -> list[Missed]:
        found, self._missed = self._missed, []
        return found if self._stand_in is None else found + self._stand_in.missed()

    def lost(self) -> Mapping[Reason, int]:
        untold = self._before + Counter(self._status.untold)
        return {Reason(reason): count for reason, count in untold.items() if reason != DIVERTED}

    def troubles(self) -> list[BackendFault]:
        found, self._faults = self._faults, []
        return found

    @property
    def diverted(self) -> int:
        return self._before[DIVERTED] + self._status.diverted

    def _order(self, message: Message) -> None:
        if self._child is not None:
            with contextlib.suppress(ChannelFull):  # it hangs, and is ended for that
                self._child.channel.send(message)

    # -- its end -------------------------------------------------------------------------------------------------------
    def detach(self) -> None:
        self._is_detached = True
        self._order(Detach())

    def close(self) -> None:
        """It is told; `ended` waits until nothing is left."""
        if not self._is_closed:
            self._is_closed = True
            if self._watching is not None:
                self._watching.cancel()
            self._order(Close())

    async def ended(self) -> None:
        """After `close`: the process has gone, and so has everything of its. What it told last can still be taken."""
        if self._replacing is not None:
            self._replacing.cancel()
            await asyncio.wait([self._replacing])
        if self._child is not None and not self._child.ended.done():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_told.wait(), ALL_TOLD_S)
            await self._child.stop(grace_s=STOP_GRACE_S)
        self._let(self._stand_in)
        self._pins.are_in(None)
        await self._sweep()
        for end in (self._teller, self._told):
            end.close()
        close_all([self._network, self._heartbeat_fd, *self._maps])
        self._network, self._heartbeat_fd, self._maps = -1, -1, []


def _missed(told: NotDiverted) -> Missed:
    return Missed(
        reason=Reason(told.reason),
        transport=told.transport,
        remote=told.remote,
        pid=told.process.pid,
        uid=-1,
        comm=told.process.name or "",
        at_ns=told.at_ns,
        netns=0,
        denied=told.denied,
        confidence=Confidence.KERNEL,
        process=told.process,
    )


def spawn(label: str, network: int, control: int, output: int) -> int:
    """Start a diverter for the namespace `network`, as we are: root, and with these descriptors alone. Its pid.

    The label is for whoever looks for it (`left_diverters`).
    """
    arguments = [sys.executable, "-P", "-m", "mitmsec.service", "diverter", str(control), str(network), label]
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    kept: list[Any] = [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in (control, network)]  # the same number: it is inherited
    streams: list[Any] = [(os.POSIX_SPAWN_DUP2, fd, at) for at, fd in enumerate((null, output, output))]
    try:
        return os.posix_spawn(sys.executable, arguments, _environment(), file_actions=[*kept, *streams], setsid=True)
    finally:
        os.close(null)


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "VIRTUAL_ENV", "PYTHONPATH") if name in os.environ}
    return kept | {"LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1"}
