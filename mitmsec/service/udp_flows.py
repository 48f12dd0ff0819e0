"""What sees a session's UDP flows, and what tells the gate of them: opened, fed by the loop, and closed.

`datagrams` says what becomes of a flow; this joins it to the kernel and to the session.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Protocol

from mitmsec.audit.event import FaultSeen, Seen
from mitmsec.core.messages import Message, UdpFlowTold
from mitmsec.core.model import DnsEch, Process
from mitmsec.core.policy import Policy
from mitmsec.service.control import OpenRun, StartService
from mitmsec.service.datagrams import Datagrams
from mitmsec.service.name_relays import NameRelays
from mitmsec.service.owners import Owners
from mitmsec.service.scopes import Scope
from mitmsec_redirect.backend import Backend, SocketOwner
from mitmsec_redirect.connect_hook import ConnectHook
from mitmsec_redirect.dns_hook import DnsHook
from mitmsec_redirect.nft_udp import NftUdp
from mitmsec_redirect.nftables import Nftables
from mitmsec_redirect.owner import Owner
from mitmsec_redirect.processes import ProcessTable
from mitmsec_redirect.shortfall import Shortfall
from mitmsec_redirect.socket_owner import attributed
from mitmsec_redirect.udp_hook import UdpHook
from mitmsec_redirect.udp_records import UdpFlow


class Records(Protocol):
    def record(self, seen: Seen) -> None: ...


class TellsGate(Protocol):
    def tell_gate(self, message: Message) -> bool: ...


class Ground(Protocol):
    """The session, as far as its UDP flows need it."""

    name: str
    order: OpenRun | StartService
    policy: Policy
    faults: int
    hook: Backend | None
    network: int

    @property
    def shared(self) -> Records: ...
    @property
    def children(self) -> TellsGate: ...
    @property
    def processes(self) -> ProcessTable: ...


class UdpFlows:
    """Of the running loop. Rules of nftables see UDP themselves, for where eBPF cannot be used; else a hook does."""

    def __init__(self, ground: Ground, owners: Owners) -> None:
        self._ground, self._owners = ground, owners
        self._scope: Scope | None = None
        self._hook: UdpHook | NftUdp | None = None
        self._dns: DnsHook | None = None
        self._relays: NameRelays | None = None
        self._datagrams: Datagrams | None = None
        self._found: dict[SocketOwner, Owner] = {}  # between two looks

    def open(self, scope: Scope) -> None:
        """Raises EbpfUnavailable, ProgramRejected, OSError where they cannot be seen; then call `close`."""
        self._scope = scope
        hook = self._hook = self._opened(scope)
        if hook is not None:
            self._datagrams = Datagrams(hook, self, self._ground.name)
            asyncio.get_running_loop().add_reader(hook.fileno(), self._datagrams.take)

    def _opened(self, scope: Scope) -> UdpHook | NftUdp | None:
        ground = self._ground
        if isinstance(ground.hook, Nftables):
            return ground.hook.udp
        lead = None
        if self._leads(scope) and isinstance(ground.hook, ConnectHook):
            named = ground.order.nameservers if isinstance(ground.order, OpenRun) else None
            self._relays = NameRelays.open(ground.network, named)
            lead = self._relays.beside(ground.hook)
        if scope.selection is None:
            self._dns = DnsHook.open(scope.path)
        paths = ground.processes.paths
        beside = ground.hook if isinstance(ground.hook, ConnectHook) else None
        return UdpHook.open(
            scope.path, quic=ground.policy.quic, selection=scope.selection, paths=paths, lead=lead, beside=beside
        )

    def _leads(self, scope: Scope) -> bool:
        """A service's names are heard in no other way; a run's are copied, and what is copied cannot be changed."""
        return scope.selection is not None or self._ground.policy.dns_ech is DnsEch.STRIP

    @property
    def shortfall(self) -> Shortfall | None:
        if isinstance(self._ground.hook, Nftables):
            return self._ground.hook.shortfall
        return self._hook.shortfall if isinstance(self._hook, UdpHook) else None

    @property
    def names_fd(self) -> int | None:
        """Where a command's DNS is copied to, for its gate; under a standing selection that would be everybody's."""
        if isinstance(self._hook, NftUdp):
            return self._hook.names_fd
        return self._dns.ring_fd if self._dns is not None else None

    @property
    def relays(self) -> NameRelays | None:
        """What DNS is led to, if it is; None: it is not, or this kernel cannot."""
        return self._relays if isinstance(self._hook, UdpHook) and self._hook.leads else None

    def govern(self, *, everything: bool) -> None:
        """The policy that is in force now is another; `everything` as in `ConnectHook.change`."""
        if isinstance(self._hook, UdpHook):  # a service's
            self._hook.change(quic=self._ground.policy.quic, everything=everything)

    def look(self) -> None:
        """To be called ten times a second."""
        self._found.clear()
        if self._relays is not None:
            self._relays.look()
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
        if self._relays is not None:
            self._relays.close()

    def _record(self, fault: FaultSeen) -> None:
        self._ground.faults += fault.count
        self._ground.shared.record(fault)

    # -- what flows ask of the session (mitmsec.service.datagrams.Around) ----------------------------------------------
    def owner_of(self, flow: UdpFlow, at_ns: int) -> Owner:
        holder = flow.owner
        if holder is None:
            return self._owners.of(flow, at_ns)
        if holder not in self._found:
            self._found[holder] = self._owners.told_by(flow, lambda: attributed(holder, self._ground.processes, at_ns))
        return self._found[holder]

    def hashed(self, owner: Owner) -> Awaitable[Process]:
        return self._owners.hashed(owner)

    def selects(self, process: Process) -> bool:
        return self._scope is not None and self._scope.selects(process)

    def tell_gate(self, told: UdpFlowTold) -> bool:
        return self._ground.children.tell_gate(told)
