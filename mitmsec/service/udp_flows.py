"""The hook that sees a session's UDP flows, and what tells the gate of them: opened, fed by the loop, and closed.

`datagrams` says what becomes of a flow; this joins it to the kernel and to the session.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Protocol

from mitmsec.audit.event import FaultSeen, Seen
from mitmsec.core.messages import Message, UdpFlowTold
from mitmsec.core.model import Process
from mitmsec.core.policy import Policy
from mitmsec.service.datagrams import Datagrams
from mitmsec.service.owners import Asked, Owners
from mitmsec.service.scopes import Scope
from mitmsec_redirect.backend import BackendKind
from mitmsec_redirect.dns_hook import DnsHook
from mitmsec_redirect.owner import Owner
from mitmsec_redirect.processes import ProcessTable
from mitmsec_redirect.udp_hook import UdpHook


class Records(Protocol):
    def record(self, seen: Seen) -> None: ...


class TellsGate(Protocol):
    def tell_gate(self, message: Message) -> bool: ...


class Ground(Protocol):
    """The session, as far as its UDP flows need it."""

    name: str
    policy: Policy
    faults: int

    @property
    def shared(self) -> Records: ...
    @property
    def children(self) -> TellsGate: ...
    @property
    def processes(self) -> ProcessTable: ...


class UdpFlows:
    """Of the running loop. Where the backend is not the connect hook, nothing is opened, and nothing seen."""

    def __init__(self, ground: Ground, owners: Owners) -> None:
        self._ground, self._owners = ground, owners
        self._scope: Scope | None = None
        self._hook: UdpHook | None = None
        self._dns: DnsHook | None = None
        self._datagrams: Datagrams | None = None

    def open(self, scope: Scope, kind: BackendKind) -> None:
        """Raises EbpfUnavailable, ProgramRejected, OSError where they cannot be seen; then call `close`."""
        if kind is not BackendKind.CONNECT_HOOK:
            return
        self._scope = scope
        ground = self._ground
        paths = ground.processes.paths
        self._hook = UdpHook.open(scope.path, quic=ground.policy.quic, selection=scope.selection, paths=paths)
        self._datagrams = Datagrams(self._hook, self, self._ground.name)
        asyncio.get_running_loop().add_reader(self._hook.fileno(), self._datagrams.take)
        if scope.selection is None:
            self._dns = DnsHook.open(scope.path)

    @property
    def names_fd(self) -> int | None:
        """The ring with a command's DNS, for its gate; under a standing selection everybody's packets would come by."""
        return self._dns.ring_fd if self._dns is not None else None

    def govern(self, *, everything: bool) -> None:
        """The policy that is in force now is another; `everything` as in `ConnectHook.change`."""
        if self._hook is not None:
            self._hook.change(quic=self._ground.policy.quic, everything=everything)

    def look(self) -> None:
        """To be called ten times a second."""
        for fault in self._datagrams.look() if self._datagrams is not None else ():
            self._record(fault)

    async def close(self) -> None:
        """See no more, and tell the gate of all that was seen."""
        if self._hook is not None and self._datagrams is not None:
            asyncio.get_running_loop().remove_reader(self._hook.fileno())
            self._hook.detach()
            for fault in await self._datagrams.finish():
                self._record(fault)
            self._hook.close()
        if self._dns is not None:
            self._dns.close()

    def _record(self, fault: FaultSeen) -> None:
        self._ground.faults += fault.count
        self._ground.shared.record(fault)

    # -- what flows ask of the session (mitmsec.service.datagrams.Around) ----------------------------------------------
    def owner_of(self, flow: Asked, at_ns: int) -> Owner:
        return self._owners.of(flow, at_ns)

    def hashed(self, owner: Owner) -> Awaitable[Process]:
        return self._owners.hashed(owner)

    def selects(self, process: Process) -> bool:
        return self._scope is not None and self._scope.selects(process)

    def tell_gate(self, told: UdpFlowTold) -> bool:
        return self._ground.children.tell_gate(told)
