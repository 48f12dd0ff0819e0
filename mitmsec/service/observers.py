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

from mitmsec.audit.event import Seen, ServiceSeen
from mitmsec.core.messages import Message
from mitmsec.core.model import DnsEch, OnFailure, Process
from mitmsec.core.policy import Policy
from mitmsec.service import listening
from mitmsec.service.control import OpenRun, StartService
from mitmsec.service.incoming import Incoming
from mitmsec.service.incoming_watch import IncomingWatch
from mitmsec.service.inward import InwardGround, unavailable
from mitmsec.service.missed import Misses
from mitmsec.service.name_relays import NameRelays
from mitmsec.service.owners import Owners
from mitmsec.service.scopes import Scope
from mitmsec.service.standing import StandingScope
from mitmsec.service.udp_flows import UdpFlows
from mitmsec_redirect.backend import Backend, BackendKind
from mitmsec_redirect.connect_hook import ConnectHook
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
    order: OpenRun | StartService
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
        self._waiting: asyncio.TimerHandle | None = None  # until it is listened again for more that was missed

    def begin(self, kind: BackendKind, scope: Scope) -> None:
        """Raises BackendUnavailable, ProgramRejected, OSError: UDP cannot be seen, or no gate have what comes in."""
        ground = self._ground
        self._misses.policy = ground.policy.fingerprint
        self._udp.open(scope)
        self._tell_unlimited(ground.policy)
        assert ground.hook is not None
        self._listen()
        standing = scope if isinstance(scope, StandingScope) else None
        self.inward = InwardGround.open(ground.policy, ground.hook, ground.network, standing)
        if kind is BackendKind.NFTABLES:  # which is for where eBPF cannot be used
            return self._tell_shortfalls()
        whose = partial(self._who_accepts, scope)
        incoming = Incoming(
            name=ground.name, whose=whose, selects=scope.selects, policy=ground.policy, listens=self._listens
        )
        self._incoming = IncomingWatch.begin(
            scope,
            incoming,
            ground.shared.record,
            ground.shared.log,
            paths=ground.processes.paths,
            inward=self.inward,
            pins=ground.pins,
        )
        self._tell_shortfalls()

    def _tell_shortfalls(self) -> None:
        """What the kernel will not have told of callers: on record and in the log, each kind once."""
        hook = self._ground.hook
        seen = (hook if isinstance(hook, ConnectHook) else None, self._udp, self._incoming)
        found = [one.shortfall for one in seen if one is not None and one.shortfall is not None]
        for untold, shortfall in {one.untold: one for one in reversed(found)}.items():
            self._ground.shared.log(f"{shortfall}. {shortfall.remedy}")
            detail = f"{untold}: {shortfall.why}"
            self._ground.shared.record(ServiceSeen(operation="tells_less", session=self._ground.name, detail=detail))

    def _tell_unlimited(self, policy: Policy) -> None:
        """The policy wants something out of DNS answers that does not come by."""
        if policy.dns_ech is DnsEch.STRIP and self.relays is None:
            self._ground.fault(
                "dns_not_limited",
                "DNS over UDP is not led to the gate here: its answers keep their keys",
                failed=OnFailure.OPEN,
            )

    @property
    def names_fd(self) -> int | None:
        """The ring with a command's DNS, for its gate."""
        return self._udp.names_fd

    @property
    def relays(self) -> NameRelays | None:
        """What a service's DNS is led to."""
        return self._udp.relays

    def govern(self, policy: Policy, selection: Selection | None) -> None:
        """Another policy is in force. Raises BackendUnavailable, ProgramRejected, OSError."""
        if policy.governs_inbound and self.inward is None:
            raise unavailable()
        self._tell_unlimited(policy)
        self._record_missed()
        self._misses.policy = policy.fingerprint
        everything = selection is not None and selection.everything
        if self._incoming is not None:
            self._incoming.govern(policy, everything=everything, pins=self._ground.pins)
        self._udp.govern(everything=everything)

    async def look(self) -> None:
        """Record what was seen since the last time. It takes PERIOD_S: who was missed is asked for while they live."""
        looks = LOOKS if self._missed_fd is None else 1
        for _ in range(looks):
            await asyncio.sleep(PERIOD_S / looks)
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
        for reason, count in hook.lost().items():  # its ring was full; its counters are exact
            self._ground.fault(reason, "more attempts than were collected", count=count)

    def divert_no_more(self) -> None:
        """Nor lead anybody to the gate."""
        if (fd := self._missed_fd) is not None:
            asyncio.get_running_loop().remove_reader(fd)
        if self._waiting is not None:
            self._waiting.cancel()
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

    @property
    def _missed_fd(self) -> int | None:
        return self._ground.hook.missed_fd if self._ground.hook is not None else None

    def _listen(self) -> None:
        if (fd := self._missed_fd) is not None:
            asyncio.get_running_loop().add_reader(fd, self._heard)

    def _heard(self) -> None:
        """Take it now, and what follows in a moment: who is refused may try again at once, as often as it can."""
        loop, fd = asyncio.get_running_loop(), self._missed_fd
        assert fd is not None
        loop.remove_reader(fd)
        self._take_missed()
        self._waiting = loop.call_later(PERIOD_S / LOOKS, self._listen)

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

    def _listens(self, inbound: Inbound, process: Process) -> None:
        if self.inward is not None:
            self.inward.heard(inbound, process)

    def _who_accepts(self, scope: Scope, inbound: Inbound) -> Owner:
        """Who has, or could have, accepted a connection."""

        def read() -> Owner:
            return listening.whose(self._ground.processes, inbound, scope.pids)

        return self._owners.told_by(inbound, read) if inbound.pid else Owner(Process(pid=0))
