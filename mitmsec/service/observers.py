"""What a session sees beside what passes its gate: attempts that were missed, UDP flows, connections that come in.

    hook ── missed, troubles ──► faults, refused QUIC
    UDP hook ── flows ─────────► gate, which records them          (`udp_flows`)
    inbound hook ── records ───► events                            (`incoming_watch`)
                      └─────────► gate, where the policy may block or capture them (`inward`)

But for that last, nothing here stands in anybody's way: what cannot be seen is said, and goes on. To be looked at ten
times a second.
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Protocol

from mitmsec.audit.event import Seen
from mitmsec.core.messages import Message
from mitmsec.core.model import OnFailure, Process
from mitmsec.core.policy import Policy
from mitmsec.service import listening
from mitmsec.service.incoming import Incoming
from mitmsec.service.incoming_watch import IncomingWatch
from mitmsec.service.inward import InwardGround
from mitmsec.service.missed import Misses
from mitmsec.service.owners import Owners
from mitmsec.service.scopes import Scope
from mitmsec.service.udp_flows import UdpFlows
from mitmsec_redirect.backend import Backend, BackendKind
from mitmsec_redirect.inbound_records import Inbound
from mitmsec_redirect.owner import Owner
from mitmsec_redirect.processes import ProcessTable
from mitmsec_redirect.records import Missed
from mitmsec_redirect.steps import Selection

PERIOD_S, LOOKS = 0.1, 5  # events; within that, how often owners are asked for while they live


class Shared(Protocol):
    def record(self, seen: Seen) -> None: ...
    def log(self, line: str) -> None: ...


class TellsGate(Protocol):
    def tell_gate(self, message: Message) -> bool: ...


class Ground(Protocol):
    """The session, as far as its observers need it."""

    name: str
    policy: Policy
    faults: int
    hook: Backend | None
    network: int

    @property
    def shared(self) -> Shared: ...
    @property
    def processes(self) -> ProcessTable: ...
    @property
    def pins(self) -> Path | None:
        """Where what is to outlive us is pinned; None: nothing is."""

    @property
    def children(self) -> TellsGate: ...
    def who_missed(self, missed: Missed) -> Process: ...
    def fault(self, what: str, detail: str = "", *, count: int = 1, failed: OnFailure | None = None) -> None: ...


class Observers:
    """Of one session, on its loop. Begun by `begin`; ended by `detach`, `finish` and `close`, in this order."""

    def __init__(self, ground: Ground, owners: Owners) -> None:
        self._ground, self._owners = ground, owners
        self._misses = Misses(ground.who_missed, ground.name)
        self._incoming: IncomingWatch | None = None
        self.inward: InwardGround | None = None
        """What leads connections that come in to the gate; None: nothing does."""
        self._udp = UdpFlows(ground, owners)

    def begin(self, kind: BackendKind, scope: Scope) -> None:
        """Raises BackendUnavailable, ProgramRejected, OSError: UDP cannot be seen, or no gate have what comes in."""
        ground = self._ground
        self._udp.open(scope, kind)
        assert ground.hook is not None
        self.inward = InwardGround.open(ground.policy, ground.hook, ground.network, ground.pins)
        if kind is BackendKind.NFTABLES:  # which is for where eBPF cannot be used
            return
        whose = partial(self._who_accepts, scope)
        incoming = Incoming(name=ground.name, whose=whose, selects=scope.selects, policy=ground.policy)
        self._incoming = IncomingWatch.begin(
            scope,
            incoming,
            ground.shared.record,
            ground.shared.log,
            paths=ground.processes.paths,
            inward=self.inward,
            pins=ground.pins,
        )

    @property
    def names_fd(self) -> int | None:
        """The ring with a command's DNS, for its gate."""
        return self._udp.names_fd

    def govern(self, policy: Policy, selection: Selection | None) -> None:
        """Another policy is in force. Raises OSError."""
        everything = selection is not None and selection.everything
        if self._incoming is not None:
            self._incoming.govern(policy, everything=everything)
        self._udp.govern(everything=everything)

    async def look(self) -> None:
        """Record what was seen since the last time. It takes PERIOD_S: who was missed is asked for while they live."""
        for _ in range(LOOKS):
            await asyncio.sleep(PERIOD_S / LOOKS)
            self._take_missed()
        self._record_missed()
        self._udp.look()
        if self._incoming is not None:
            self._incoming.look(self._ground.fault)

    def detach(self) -> None:
        """Divert nothing more; what was missed is on record."""
        hook = self._ground.hook
        if hook is None:
            return
        self.divert_no_more()
        self._record_missed()
        for reason, count in hook.lost().items():  # its queue was full; its counters are exact
            self._ground.fault(reason, "more attempts than were collected", count=count)

    def divert_no_more(self) -> None:
        """Nor lead anybody to the gate."""
        if self._ground.hook is not None:
            self._ground.hook.detach()
        if self.inward is not None:
            self.inward.detach()

    def hear_the_last(self) -> None:
        """The hook is closed; what it had still to tell goes on record."""
        if self._ground.hook is not None and self._ground.hook.kind is BackendKind.WINDIVERT:
            self._record_missed()

    async def finish(self) -> None:
        """The gate is told of all that was seen."""
        await self._udp.close()

    def close(self) -> None:
        if self._incoming is not None:
            self._incoming.close()

    def _take_missed(self) -> None:
        if self._ground.hook is not None:
            self._misses.take(self._ground.hook.missed())

    def _record_missed(self) -> None:
        """What the hook saw and could not or must not divert, and what went wrong with the hook itself."""
        self._take_missed()
        for event in self._misses.told():
            self._ground.shared.record(event)
        for trouble in self._ground.hook.troubles() if self._ground.hook is not None else ():
            self._ground.fault(trouble.what, trouble.detail, count=trouble.count, failed=trouble.failed)

    def _who_accepts(self, scope: Scope, inbound: Inbound) -> Owner:
        """Who has, or could have, accepted a connection."""

        def read() -> Owner:
            return listening.whose(self._ground.processes, inbound, scope.pids)

        return self._owners.told_by(inbound, read) if inbound.pid else Owner(Process(pid=0))
