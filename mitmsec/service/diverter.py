"""The diverter's composition root: packets of one network namespace, each to the gate or where it was going.

    supervisor ── DiverterSettings ─► Ready · Stall, Change, Detach, Close ─►   ◄─ NotDiverted, faults, status
    kernel     ── first packet ─► whose socket's cgroup? ─┬─ another's ──► on, unread
                                                          └─ the run's ──► gate alive? ─┬─ yes ─► announced, diverted
                                                                                        └─ no ──► on_failure
    gate       ── heartbeat (eventfd) ─► this loop

A process of its own, since it needs root, its threads stand between every new connection of the namespace and the
network, and it must outlive the supervisor where the policy says closed: then it refuses the command's connections
until the command has ended. A second one in the same namespace would take the first one's packets: it is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from pathlib import Path

import msgspec

from mitmsec.channel import Channel, ChannelFull, close_all
from mitmsec.core.messages import Message, Ready
from mitmsec.core.model import OnFailure, Quic
from mitmsec.service import child
from mitmsec.service.diversion import Diversion, Reports, Standing
from mitmsec.service.divert_messages import (
    TO_DIVERTER,
    Change,
    Close,
    Detach,
    DiverterRefused,
    DiverterSettings,
    DiverterStatus,
    Stall,
)
from mitmsec_redirect import windivert
from mitmsec_redirect.cgroup import SessionCgroup
from mitmsec_redirect.divert_seams import Callbacks
from mitmsec_redirect.filters import Own, Ports
from mitmsec_redirect.pulse import Pulse
from mitmsec_redirect.windivert import Windivert

CLAIM = "\0mitmsec-diverter"  # an abstract name: one in each network namespace, free again when its holder has ended
STATUS_S = 0.2
LOOK_S = 0.1
MACHINE_REMEDY = (
    "`--backend windivert` is for Windows, and on Linux for tests: it needs root, cgroup v2, CONFIG_NET_CLS_BPF and "
    "pydivert 4. Without --backend a run takes the connect hook."
)


class DiverterProgram:
    """Program of the diverter process."""

    def __init__(self, control: Channel) -> None:
        self._control = control
        self._reports = Reports()
        self._backend: Windivert | None = None
        self._telling: asyncio.Task[None] | None = None
        self._claim = socket.socket(socket.AF_UNIX)
        self._is_closing = False

    async def start(self, settings: DiverterSettings, fds: list[int]) -> Message:
        """Take packets from now on."""
        heartbeat_fd, teller_fd, *maps = fds
        standing = Standing(*maps) if settings.is_standing else None
        self._heartbeat = Pulse(heartbeat_fd)
        self._diversion = Diversion(settings, socket.socket(fileno=teller_fd), self._reports, standing)
        try:
            self._claim.bind(CLAIM)
        except OSError:
            self._is_closing = True
            return DiverterRefused(
                reason="another run diverts with windivert in this network namespace",
                remedy="Wait until it has ended, or take another backend.",
            )
        try:
            self._backend = await asyncio.to_thread(self._opened, settings)
        except (OSError, ImportError) as error:
            self._is_closing = True
            return DiverterRefused(reason=f"windivert cannot be opened: {error}", remedy=MACHINE_REMEDY)
        self._diversion.beat_ns = time.monotonic_ns()
        loop = asyncio.get_running_loop()
        loop.add_reader(heartbeat_fd, self._beaten)
        loop.add_signal_handler(signal.SIGUSR1, self._released)
        self._telling = asyncio.create_task(self._tell())
        return Ready()

    def _opened(self, settings: DiverterSettings) -> Windivert:
        windivert.reap()  # what another one has left is not to stand in the way
        diversion = self._diversion
        callbacks = Callbacks(
            decide=diversion.decide,
            expect=diversion.expect,
            report=self._reports.fault,
            concerns=diversion.concerns,
            selects=diversion.selects,
        )
        own = Own(
            gate_port=settings.gate_port, upstream=Ports(first=settings.local_ports[0], last=settings.local_ports[1])
        )
        quic = Quic.REFUSE if settings.is_standing else settings.quic  # a service's may change
        return Windivert.open(own, callbacks, on_failure=settings.on_failure, quic=quic)

    def told(self, message: Stall | Change | Detach | Close, fds: list[int]) -> None:
        """A later message of the supervisor."""
        close_all(fds)
        match message:
            case Stall():
                self._heartbeat.heard()  # what it beat before does not count
                self._diversion.beat_ns = 0
            case Change(on_failure=on_failure, quic=quic, everything=everything):
                terms = msgspec.structs.replace(
                    self._diversion.settings, on_failure=on_failure, quic=quic, everything=everything
                )
                self._diversion.settings = terms
                if self._backend is not None:
                    self._backend.follow(on_failure)
            case Detach():
                if self._backend is not None:
                    asyncio.get_running_loop().run_in_executor(None, self._backend.detach)
            case Close():
                self._is_closing = True

    async def stop(self) -> None:
        """The supervisor has gone, or wants an end. Nothing of ours is left when this returns."""
        if self._telling is not None:
            self._telling.cancel()
        if self._backend is not None:
            self._diversion.beat_ns = 0  # the gate ends with its supervisor
            if not self._is_closing:
                await self._outlive()
            await asyncio.to_thread(self._backend.close)
        self._claim.close()

    async def _outlive(self) -> None:
        """Closed: refuse until the command has ended; a service's programs, until somebody gives an order."""
        terms = self._diversion.settings
        cgroup = SessionCgroup(Path(terms.cgroup))
        while terms.on_failure is OnFailure.CLOSED and not self._is_closing:
            if not terms.is_standing and not cgroup.is_populated():
                return
            await asyncio.sleep(LOOK_S)

    def _released(self) -> None:
        """`mitmsec clean`: the network opens. While the supervisor lives, it alone gives orders."""
        self._is_closing = self._is_closing or self._control.closed

    def _beaten(self) -> None:
        if self._heartbeat.heard():
            self._diversion.beat_ns = time.monotonic_ns()

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(STATUS_S)
            with contextlib.suppress(ChannelFull):  # a supervisor that hangs; it will end us, or end
                for message in self._reports.take():
                    self._control.send(message)
                self._control.send(self._status())

    def _status(self) -> DiverterStatus:
        assert self._backend is not None
        return DiverterStatus(
            beat_ns=self._diversion.beat_ns,
            diverted=self._backend.statistics().diverted,
            untold=self._reports.untold(),
        )


def main() -> None:
    """Arguments: the control channel's descriptor, that of the namespace to work in, and the session's label."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends with its supervisor, or as the policy says
    os.chdir("/")
    os.setns(int(sys.argv[2]), os.CLONE_NEWNET)
    child.main([DiverterSettings, *TO_DIVERTER], DiverterProgram, seal=_unsealed)


def _unsealed() -> None:
    """A new filter is a new handle, and the library starts a thread for each."""


if __name__ == "__main__":
    main()
