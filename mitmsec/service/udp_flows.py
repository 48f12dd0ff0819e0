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
from mitmsec.service.owners import Asked
from mitmsec.service.scopes import Scope
from mitmsec_redirect.dns_hook import DnsHook
from mitmsec_redirect.owner import Owner
from mitmsec_redirect.steps import Selection
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
    def owner_of(self, asked: Asked, at_ns: int) -> Owner: ...
    def hashed(self, owner: Owner) -> Awaitable[Process]: ...


class UdpFlows:
    """Of the running loop. Raises EbpfUnavailable, ProgramRejected, OSError where they cannot be seen."""

    def __init__(self, ground: Ground, scope: Scope) -> None:
        self._ground, self._scope = ground, scope
        self._hook = UdpHook.open(scope.path, quic=ground.policy.quic, selection=scope.selection)
        try:
            self._dns = DnsHook.open(scope.path) if scope.selection is None else None
        except BaseException:
            self._hook.close()
            raise
        self._datagrams = Datagrams(self._hook, self, ground.name)
        asyncio.get_running_loop().add_reader(self._hook.fileno(), self._datagrams.take)

    @property
    def names_fd(self) -> int | None:
        """The ring with a command's DNS, for its gate; under a standing selection everybody's packets would come by."""
        return self._dns.ring_fd if self._dns is not None else None

    def govern(self, selection: Selection | None) -> None:
        """The policy that is in force now is another."""
        self._hook.change(quic=self._ground.policy.quic, everything=selection is not None and selection.everything)

    def look(self) -> None:
        """To be called ten times a second."""
        for fault in self._datagrams.look():
            self._record(fault)

    async def close(self) -> None:
        """See no more, and tell the gate of all that was seen."""
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
        return self._ground.owner_of(flow, at_ns)

    def hashed(self, owner: Owner) -> Awaitable[Process]:
        return self._ground.hashed(owner)

    def selects(self, process: Process) -> bool:
        return self._scope.selects(process)

    def tell_gate(self, told: UdpFlowTold) -> bool:
        return self._ground.children.tell_gate(told)
