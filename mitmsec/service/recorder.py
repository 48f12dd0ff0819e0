"""The recorder process: every producer's events into one log, and captured bytes into capture files.

    producers ──► Inlet ──► Intake.judge ──┬─ Admitted ─► stamp ─► Committer ─► disk ─► Committed
                    ▲                      ├─ Aside ────► table of flows, capture file
                    │  reads the gates     ├─ Awaited ──► read the session's gate, ask again; at most AWAITED_S
                    └──────────────────────┘─ Refused, Excess ──► counted; one fault a tick

A worker's word on a flow can overtake the gate's, for they have sockets of their own; so an unknown flow makes the
gate's socket be read first. If the gate's own queue was full, its word is further behind: then the worker's waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
from bisect import insort
from collections import Counter
from collections.abc import Awaitable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, assert_never

from msgspec.structs import replace

from mitmsec.audit.committer import Committer
from mitmsec.audit.envelope import Draft, Fields, fields_of, is_open
from mitmsec.audit.event import (
    BytesSeen,
    ConnectionSeen,
    FaultSeen,
    FindingSeen,
    FlowHanded,
    Kind,
    Outcome,
    SealedSeen,
    SecretsSeen,
    Seen,
    ServiceSeen,
)
from mitmsec.audit.flows import Flow
from mitmsec.audit.following import Following
from mitmsec.audit.inlet import Inlet
from mitmsec.audit.intake import Admitted, Aside, Awaited, Excess, Intake, Judgement, Refused, Source, held
from mitmsec.audit.producer import CAPTURE_LOST
from mitmsec.audit.recovery import LogDamaged
from mitmsec.audit.store import FILE_NAME, LogUnwritable, Store
from mitmsec.channel import Channel, close_all
from mitmsec.core.content_orders import ORDERS, ContentOrder
from mitmsec.core.messages import (
    CaptureOpen,
    Fault,
    Message,
    ProducerUp,
    RecorderSettings,
    Role,
    SessionFlush,
    SessionFlushed,
)
from mitmsec.seal import LogKeyRefused, open_log_signer
from mitmsec.service import child
from mitmsec.service.captures import Captures
from mitmsec.service.content_desk import ContentDesk, Keep
from mitmsec.service.content_ground import opened_desk
from mitmsec.service.disk_thread import DiskThread
from mitmsec.service.log_lock import alone
from mitmsec.service.quarantine_folder import QuarantineFolder

TICK_S = 0.25
AWAITED_S = 1.0  # how long a worker's word on an unknown flow waits for the gate's
AWAITED_LIMIT = 64  # such messages of one producer; it is not read on while it has as many
AHEAD = 8192  # messages of one producer read out of turn: more than an honest one has under way
DRAIN_S = 10.0  # for producers to end once the supervisor has
COMMIT_S = 10.0  # for the disk to take the rest after that

ACCEPTS: tuple[type[Message], ...] = (RecorderSettings, ProducerUp, CaptureOpen, SessionFlush, *ORDERS)


class Recorder:
    """The program of the recorder process; see mitmsec.service.child."""

    def __init__(self, control: Channel) -> None:
        self._control = control
        self._inlets: list[Inlet] = []
        self._awaited: dict[str, list[tuple[float, Inlet, int, Seen]]] = {}  # flow → until, producer, number, message
        self._refused: Counter[tuple[Inlet, str, str]] = Counter()
        self._flushes: set[str] = set()
        self._counts: Counter[tuple[str, Kind]] = Counter()
        self._intake = Intake()
        self._captures = Captures(
            lambda session, why: self._fault("capture_failed", why, session=session),
            lambda session, flow, why: self._fault("capture_incomplete", f"flow {flow}: {why}", session=session),
        )
        self._quarantine: QuarantineFolder | None = None
        self._disk: DiskThread | None = None
        self._content: ContentDesk
        self._unwritten: dict[str, asyncio.Future[None]] = {}  # by the ids of events of our own that somebody waits for
        self._is_open = False
        self._changed = asyncio.Event()
        self._committer: Committer
        self._ticking: asyncio.Task[None]

    # -- the supervisor ------------------------------------------------------------------------------------------------
    async def start(self, settings: Any, fds: list[int]) -> Message | None:
        """Open or recover the log. The answer is a Fault if that cannot be, and nobody is listened to then."""
        close_all(fds)
        assert isinstance(settings, RecorderSettings)
        folder = Path(settings.folder)
        await alone(folder)
        following = Following(folder)  # before any key is read
        try:
            is_new = not (folder / FILE_NAME).exists()  # a log of its own has a key of its own
            store = Store(folder, signer := open_log_signer(folder, makes_another=is_new))
        except (LogKeyRefused, LogDamaged) as error:
            return Fault(what="log_damaged" if isinstance(error, LogDamaged) else "log_key_refused", detail=str(error))
        except (LogUnwritable, OSError) as error:  # of the key's file, too
            return Fault(what="log_unwritable", detail=str(error))
        self._committer = Committer(
            store, following, self._settled, self._on_committed, self._tell_inlets, self._on_recovered
        )
        self._ticking = asyncio.get_running_loop().create_task(self._tick())
        self._content = opened_desk(
            folder, signer.key.name, self._recorded, self._fault, self._control.send, is_new=is_new
        )
        self._is_open = True
        if settings.quarantine:
            self._disk = DiskThread("quarantine")
            self._quarantine = QuarantineFolder(
                Path(settings.quarantine), self._disk, self._on_quarantined, self._not_quarantined
            )
        return None

    def told(self, message: Any, fds: list[int]) -> None:
        match message, fds:
            case _ if not self._is_open:
                close_all(fds)
            case ProducerUp(), [descriptor]:
                source = Source(message.role, message.session, message.worker)
                self._attach(socket.socket(fileno=descriptor), source)
            case CaptureOpen(), [descriptor]:
                self._captures.open(message.session, descriptor, message.command)
            case SessionFlush(), _:
                close_all(fds)
                self._flushes.add(message.session)
                self._committer.poke()
            case ContentOrder(), _:
                self._content.ask(message, fds)
            case _:
                close_all(fds)

    async def stop(self) -> None:
        """Read every producer to its end, for a bounded time, and commit."""
        if not self._is_open:
            return
        self._ticking.cancel()
        await self._all_ended(DRAIN_S)
        for inlet in list(self._inlets):
            inlet.read(AHEAD)
            inlet.close()
        self._judge_awaited(until_s=None)
        if self._disk is not None:
            await self._disk.idle(COMMIT_S)
            self._disk.close()
        await self._content.idle(COMMIT_S)
        self._content.close()
        self._report_refusals()
        self._captures.close_all()
        self._committer.poke()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._committer.drained(), COMMIT_S)
        if left := await self._committer.close():
            print(f"mitmsec recorder: {left} events are not known to be on disk", file=sys.stderr)

    async def _all_ended(self, deadline_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                while self._inlets:
                    self._changed.clear()
                    await self._changed.wait()

    # -- producers -----------------------------------------------------------------------------------------------------
    def _attach(self, sock: socket.socket, source: Source) -> None:
        loop = asyncio.get_running_loop()
        inlet = Inlet(sock, source, loop, self._on_message, self._on_malformed, self._on_end)
        inlet.tell(failing=self._committer.failing)
        self._inlets.append(inlet)

    def _on_message(self, inlet: Inlet, seen: Seen) -> None:
        number, seen = inlet.received - 1, held(inlet.source, seen)
        judged = self._judge(inlet, seen)
        if inlet.source.role is Role.WORKER and isinstance(judged, Awaited | Refused):  # the gate's word may lie there
            self._read_gates(inlet.source.session)
            judged = self._judge(inlet, seen)
        self._act(inlet, number, seen, judged)
        if isinstance(judged, Awaited):
            inlet.awaiting.append(number)
            until_s = time.monotonic() + AWAITED_S
            self._awaited.setdefault(judged.flow, []).append((until_s, inlet, number, seen))
        else:
            self._committer.poke()
        if self._saturated(inlet):
            inlet.pause()

    def _judge(self, inlet: Inlet, seen: Seen) -> Judgement:
        return self._intake.judge(inlet.source, seen, time.monotonic())

    def _act(self, inlet: Inlet, number: int, seen: Seen, judged: Judgement) -> None:
        match judged:
            case Awaited():
                pass  # it has to wait
            case Refused():
                self._refused[inlet, "not_permitted", judged.what] += 1
            case Excess():
                self._refused[inlet, "faults_dropped", "more than it may report"] += 1
                self._follow(inlet, seen)
            case Aside():
                self._aside(inlet, seen, judged.flow)
            case Admitted(keep_evidence_s=int(kept_s)) if isinstance(seen, FindingSeen):
                event = os.urandom(8).hex()
                one = Keep(event=event, session=judged.session, fields=judged.fields, clear=seen.clear, keep_s=kept_s)
                insort(inlet.awaiting, number)
                self._content.keep(one, partial(self._kept, inlet, number, replace(judged, id=event)))
                self._follow(inlet, seen)
            case Admitted():
                self._admit(judged, str(inlet.source))
                self._follow(inlet, seen)
            case _:
                assert_never(judged)

    def _kept(self, inlet: Inlet, number: int, judged: Admitted, content: Fields) -> None:
        """What was found is on disk, or is not going to be: now the event that says so may follow."""
        inlet.awaiting.remove(number)
        self._admit(replace(judged, fields={**judged.fields, **content}), str(inlet.source))
        self._resume()

    def _aside(self, inlet: Inlet, seen: Seen, flow: Flow | None) -> None:
        session = inlet.source.session
        match seen:
            case FlowHanded():
                self._retry(seen.flow)
            case BytesSeen():
                self._captures.piece(session, seen, time.time_ns(), flow)
            case SecretsSeen():
                self._captures.secrets(session, seen.lines)
            case SealedSeen() if self._quarantine is not None:
                self._quarantine.piece(inlet.source, seen, time.monotonic())

    def _follow(self, inlet: Inlet, seen: Seen) -> None:
        """What an event means for the capture file, or the quarantine."""
        match seen:
            case FindingSeen() if seen.item and self._quarantine is not None:
                self._quarantine.expect(inlet.source, seen.flow, seen.item)
            case ConnectionSeen() if seen.outcome is not Outcome.OPEN:
                self._captures.ended(inlet.source.session, seen, time.time_ns())
            case FaultSeen() if seen.what == CAPTURE_LOST:
                self._captures.lost(inlet.source.session, seen.count)

    def _read_gates(self, session: str) -> None:
        for inlet in list(self._inlets):
            if inlet.source.role is Role.GATE and inlet.source.session == session:
                inlet.read(AHEAD)

    def _on_malformed(self, inlet: Inlet, why: str) -> None:
        """No honest producer sends one. `why` may quote it, so a constant is recorded; nothing more is read."""
        del why
        self._refused[inlet, "malformed_message", "not read any further"] += 1
        inlet.close()
        self._on_end(inlet)

    def _on_end(self, inlet: Inlet) -> None:
        self._inlets.remove(inlet)
        if self._quarantine is not None:
            self._quarantine.ended(inlet.source)
        self._report_refusals()
        self._changed.set()
        self._committer.poke()

    def _saturated(self, inlet: Inlet) -> bool:
        """What this producer says next is left to the kernel, whatever becomes of the others'."""
        crowded = self._committer.full and inlet.has_its_share
        return crowded or inlet.full or len(inlet.awaiting) >= AWAITED_LIMIT

    def _resume(self) -> None:
        for inlet in self._inlets:
            if not self._saturated(inlet):
                inlet.resume()

    # -- what waits ----------------------------------------------------------------------------------------------------
    def _retry(self, flow: str) -> None:
        for _, inlet, number, seen in self._awaited.pop(flow, []):
            inlet.awaiting.remove(number)
            self._act(inlet, number, seen, self._judge(inlet, seen))

    def _judge_awaited(self, until_s: float | None) -> None:
        """Refuse what has waited until `until_s`; with None, everything that waits."""
        for flow, waiting in list(self._awaited.items()):
            while waiting and (until_s is None or waiting[0][0] <= until_s):
                _, inlet, number, seen = waiting.pop(0)
                inlet.awaiting.remove(number)
                self._refused[inlet, "not_permitted", f"{type(seen).__name__} of a flow that no gate told of"] += 1
            if not waiting:
                del self._awaited[flow]

    def _report_refusals(self) -> None:
        refused, self._refused = self._refused, Counter()
        for (inlet, what, detail), count in refused.items():
            self._fault(what, f"{inlet.source}: {detail}", session=inlet.source.session, count=count)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now_s = time.monotonic()
            self._judge_awaited(now_s)
            self._report_refusals()
            self._intake.flows.expire(now_s)
            self._captures.tick(time.time_ns())
            self._content.tick(now_s)
            if self._committer.index_died():
                self._fault("index_stopped", "searches get slower until the recorder is begun again")
            self._resume()
            self._committer.poke()

    # -- the log -------------------------------------------------------------------------------------------------------
    def _admit(self, event: Admitted, producer: str) -> None:
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        number = event.id or os.urandom(8).hex()
        self._committer.add(Draft(event.kind, number, stamp, producer, event.session, event.fields))

    def _recorded(self, kind: Kind, fields: Fields) -> Awaitable[None]:
        """Returns once that is on disk."""
        number = os.urandom(8).hex()
        self._unwritten[number] = future = asyncio.get_running_loop().create_future()
        self._admit(Admitted(kind, fields, "", number), Role.RECORDER.value)
        return future

    def _fault(self, what: str, detail: str, session: str = "", count: int = 1) -> None:
        kind, fields = fields_of(FaultSeen(what=what, detail=detail, count=count))
        self._admit(Admitted(kind, fields, session), Role.RECORDER.value)

    def _on_quarantined(self, source: Source, seen: SealedSeen, size_bytes: int, sha256: str) -> None:
        missing = "" if seen.is_whole else ", not all of what was found"
        detail = f"{seen.item}, {size_bytes} bytes, sha256 {sha256}{missing}"
        kind, fields = fields_of(ServiceSeen(operation="quarantined", detail=detail))
        named = {"connection": seen.flow, "item": seen.item}
        self._admit(Admitted(kind, {**fields, **named}, source.session), Role.RECORDER.value)

    def _not_quarantined(self, source: Source | None, flow: str, why: str) -> None:
        """What was found has been stopped all the same."""
        session = "" if source is None else source.session
        kind, fields = fields_of(FaultSeen(what="quarantine_failed", detail=why, failed="closed", flow=flow))
        self._admit(Admitted(kind, fields, session), Role.RECORDER.value)

    def _settled(self) -> Sequence[tuple[Inlet, int]]:
        return [(inlet, inlet.settled) for inlet in self._inlets]

    def _on_committed(self, drafts: Sequence[Draft]) -> None:
        self._counts.update((draft.session, draft.kind) for draft in drafts if draft.session and not is_open(draft.id))
        for draft in drafts:
            if (future := self._unwritten.pop(draft.id, None)) is not None and not future.done():
                future.set_result(None)
        self._resume()
        for session in list(self._flushes):
            if self._session_over(session):
                self._flushes.discard(session)
                self._answer(session)

    def _on_recovered(self, tries: int, why: str) -> None:
        self._tell_inlets()
        self._fault("log_unwritable", why, count=tries)

    def _tell_inlets(self) -> None:
        for inlet in self._inlets:
            inlet.tell(failing=self._committer.failing)

    def _session_over(self, session: str) -> bool:
        alive = any(inlet.source.session == session for inlet in self._inlets)
        waiting = any(inlet.source.session == session for items in self._awaited.values() for _, inlet, _, _ in items)
        unsynced = self._quarantine is not None and self._quarantine.holds(session)
        if alive or waiting or unsynced or self._content.holds(session) or not self._captures.is_complete(session):
            return False
        return not self._committer.holds(session)  # which may be the fault of a capture that failed just now

    def _answer(self, session: str) -> None:
        self._captures.close(session)
        self._intake.forget(session)
        kinds = (Kind.CONNECTION, Kind.REQUEST, Kind.FINDING, Kind.FAULT)
        connections, requests, findings, faults = (self._counts.pop((session, kind), 0) for kind in kinds)
        answer = SessionFlushed(
            session=session, connections=connections, requests=requests, findings=findings, faults=faults
        )
        self._control.send(answer)


def main() -> None:
    """Serve on the control channel whose descriptor is the first argument."""
    child.main(ACCEPTS, Recorder)
