"""The UDP flows of a session on their way from the kernel to the gate, which puts them on record under the policy.

    hook ── ring ──► take() ──► table ── ended, or lives long ──► whose it is, with its hash ──► UdpFlowTold ──► gate
      │                │ whose is it? asked at once: it may end at any moment
      │                └─ more than NEW_LIMIT between two looks ──┐
      └─ ring full ───────────────────────────────────────────────┴──► counted, and one fault says how many

Nobody waits for any of this: the datagrams are on their way. Without a gate, flows wait for the next one.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable
from typing import Protocol

from mitmsec.audit.event import FaultSeen
from mitmsec.core.messages import UdpFlowTold
from mitmsec.core.model import Confidence, OnFailure, Process
from mitmsec.service.background import Background
from mitmsec.service.owners import told as known_now
from mitmsec_redirect.hashes import Remembered
from mitmsec_redirect.owner import Owner
from mitmsec_redirect.udp_hook import Drained
from mitmsec_redirect.udp_records import UdpFlow
from mitmsec_redirect.udp_table import Counted, Told, UdpTable

NEW_LIMIT = 512  # flows between two looks, of which there are ten a second: what the log, too, can take
WAITING_LIMIT = 8192  # flows that have ended while there was no gate
OWNERS_LIMIT = 512
FINISH_S, FLUSH_PAUSE_S = 10.0, 0.01  # a gate that died is replaced by then
LOST = "udp_not_recorded"


class Hook(Counted, Protocol):
    """Where flows come from: mitmsec_redirect.udp_hook.UdpHook."""

    @property
    def lost(self) -> int: ...
    def drain(self, most: int) -> Drained: ...


class Around(Protocol):
    """What a session says of flows, and does with them."""

    def owner_of(self, flow: UdpFlow, at_ns: int) -> Owner: ...
    def hashed(self, owner: Owner) -> Awaitable[Process]: ...
    def selects(self, process: Process) -> bool: ...
    def tell_gate(self, told: UdpFlowTold) -> bool:
        """False: there is none that listens now."""


class Datagrams:
    """Of one session. `take` is to be called when the hook has something, `look` ten times a second."""

    def __init__(self, hook: Hook, around: Around, session: str) -> None:
        self._hook, self._around, self._session = hook, around, session
        self._table: UdpTable[Owner] = UdpTable(hook, self._owner)
        self._owners: Remembered[object, Owner] = Remembered(OWNERS_LIMIT)
        self._waiting: deque[UdpFlowTold] = deque()
        self._unhashed: dict[tuple[int, bool], Told[Owner]] = {}
        self._background = Background()
        self._room = NEW_LIMIT
        self._lost, self._told_lost = 0, 0  # beyond the hook's own count; all that was told
        self._last: UdpFlow | None = None

    def take(self) -> None:
        """Whose the new flows are is asked at once."""
        drained = self._hook.drain(self._room)
        for record in drained.told:
            ended = self._table.heard(record)
            if isinstance(record, UdpFlow):
                self._room -= 1
            if ended is None and isinstance(record, UdpFlow):
                self._lost, self._last = self._lost + 1, record
                self._hook.take(record.key)  # its next datagram begins it anew, when there may be room
            for one in ended or ():
                self._tell(one)
        self._lost += drained.beyond
        self._last = drained.last or self._last

    def look(self) -> list[FaultSeen]:
        """Tell what time has ended, and what had to wait; the fault, if flows were lost."""
        self.take()
        self._room = NEW_LIMIT
        for one in self._table.due(time.monotonic_ns()):
            self._tell(one)
        self._flush()
        return self._losses()

    async def finish(self) -> list[FaultSeen]:
        """The session ends: tell all flows as ended. What no gate has taken in FINISH_S is lost, and counted so."""
        self._background.cancel()
        self.take()
        for one in (*self._unhashed.values(), *self._table.finish(time.monotonic_ns())):
            self._hand(one, known_now(one.known))
        deadline_s = time.monotonic() + FINISH_S
        while self._flush() and time.monotonic() < deadline_s:
            await asyncio.sleep(FLUSH_PAUSE_S)
        self._lost += len(self._waiting)
        return self._losses()

    def _flush(self) -> bool:
        """Tell the gate what had to wait; whether some of it still has to."""
        while self._waiting and self._around.tell_gate(self._waiting[0]):
            self._waiting.popleft()
        return bool(self._waiting)

    def _owner(self, flow: UdpFlow) -> Owner:
        """Once for each program of a process: they send to many places."""
        who = (flow.pid, flow.uid, flow.caller) if flow.caller is not None else None
        owner = self._owners.find(who) if who is not None else None
        if owner is None:
            owner = self._around.owner_of(flow, flow.at_ns)
            if who is not None and owner.process.confidence is Confidence.KERNEL:
                self._owners.keep(who, owner)
        return owner

    def _tell(self, told: Told[Owner]) -> None:
        is_known = told.known.sha256 is None or told.known.sha256.done()
        if is_known or len(self._unhashed) >= WAITING_LIMIT:
            self._hand(told, known_now(told.known))
        else:
            self._unhashed[told.number, told.ended] = told
            self._background.begin(self._tell_hashed(told))

    async def _tell_hashed(self, told: Told[Owner]) -> None:
        process = await self._around.hashed(told.known)
        del self._unhashed[told.number, told.ended]
        self._hand(told, process)

    def _hand(self, told: Told[Owner], process: Process) -> None:
        """Who is not selected is nobody's business."""
        if not told.flow.selected and not self._around.selects(process):
            return
        message = UdpFlowTold(
            flow=f"{self._session}-udp-{told.number:x}",
            process=process,
            local=told.flow.local,
            remote=told.flow.remote,
            direction=told.flow.direction,
            duration_ms=max(told.until_ns - told.flow.at_ns, 0) // 1_000_000,
            ended=told.ended,
            sent=told.sent,
            received=told.received,
            seen=told.seen,
        )
        if len(self._waiting) < WAITING_LIMIT:
            self._waiting.append(message)
            self._flush()
        else:
            self._lost += 1

    def _losses(self) -> list[FaultSeen]:
        lost = self._lost + self._hook.lost
        count, self._told_lost = lost - self._told_lost, lost
        if count <= 0:
            return []
        last, self._last = self._last, None
        by = f"; the last one is {last.comm or 'a program'}'s, to {last.remote}" if last is not None else ""
        detail = f"more UDP flows than are kept{by}"
        pid = last.pid if last is not None else None
        return [FaultSeen(what=LOST, detail=detail, failed=OnFailure.OPEN, session=self._session, pid=pid, count=count)]
