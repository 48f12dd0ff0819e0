"""Inspectors at work on one flow: each finding recorded, each failure recorded, and what follows from either.

    Part ──► Watch.open ──► Reading.feed* ──► close
                               │ undo the content coding, at most a few SLICE_BYTES at a time
                               │ join what came: JOIN_BYTES, or all that is there when `settle` or `close` says so
                               ▼
                            Guarded (core.inspecting) ──► findings ─► recorded ─► on_finding: go on | Blocked
                                                          faults ───► recorded ─► on_failure: go on | Blocked

Joining is what makes a peer that sends single bytes cheap: an inspector looks at its window again in every call. Where
`prompt`, whoever feeds must call `settle` before anything that was fed goes on; else it may take its time.

An inspector may compute for CALL_LIMIT_S in one call and for PART_LIMIT_S on one part. That is the process's own time,
not the clock's, so a busy machine makes nobody fail. A call that goes on for longer is interrupted, and only that
inspector asked no more.

Where a reading has inspections that are awaited (`waits`), it is read with `read`, by somebody who can wait; `abandon`
tells those that the part broke off.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from enum import Enum, auto
from typing import TYPE_CHECKING

from msgspec.structs import replace

from mitmsec.audit.event import FaultSeen, FindingSeen
from mitmsec.core.inspecting import FaultKind, Guarded, Inspected
from mitmsec.core.inspection import AnyInspector, AwaitedInspector, Inspector, Part
from mitmsec.core.model import NOTHING_CLEAR, Decision, Delivery, Finding, OnFailure, OnFinding
from mitmsec.core.quarantine import About
from mitmsec.engine.awaiting import Awaited
from mitmsec.engine.content import Decoder, Identity, Undecodable, decoder, is_coded
from mitmsec.engine.limited import limited
from mitmsec.engine.pages import Page
from mitmsec.engine.seams import Recorder
from mitmsec.engine.turns import STEP_BYTES, Paced

if TYPE_CHECKING:
    from mitmsec.engine.plain_addons import PlainAddons
    from mitmsec.engine.quarantine import Kept, Quarantine

PART_LIMIT_S = 60.0
JOIN_BYTES = 1 << 16
NOT_INSPECTED = "not_inspected"
INSPECTOR_FAILED = "inspector_failed"
ADDON_FAILED = "addon_failed"

_STOPS = (OnFinding.BLOCK, OnFinding.QUARANTINE)

Mask = Callable[[int, int], bool]
"""Offset and size, in the content as it travels; whether that was possible."""


class Blocked(Exception):
    """The flow must not go on: `finding` says why, or it is None and a failure of ours is the reason.

    `answer`: what its client is told, in the words of its protocol, before the end, which is no reset then.
    """

    def __init__(self, reason: str, finding: Finding | None = None, answer: bytes = b"") -> None:
        super().__init__(reason)
        self.finding, self.answer = finding, answer


class Asks(Enum):
    """Which inspectors read a part."""

    ALL = auto()
    AT_ONCE = auto()  # those whose answer is there when the call returns
    AWAITED = auto()


class Improper(Blocked):
    """A request that is not admitted: an addon has made another one of it. `page`: what its client is told."""

    def __init__(self, page: Page, reason: str) -> None:
        super().__init__(reason)
        self.page = page


class Watch:
    """The inspectors of one flow's decision. Raises Blocked when made, where one is missing and that closes."""

    def __init__(
        self,
        flow: str,
        decision: Decision,
        inspectors: Mapping[str, AnyInspector],
        on_failure: OnFailure,
        recorder: Recorder,
        addons: PlainAddons | None = None,
        quarantine: Quarantine | None = None,
    ) -> None:
        self.addons = addons
        """Plain ones of mitmproxy's, which may change what they see. Nothing here asks them."""
        self._quarantine = quarantine
        self._flow, self._decision, self._on_failure, self._recorder = flow, decision, on_failure, recorder
        self.unread: dict[Reading, None] = {}
        """Readings that hold content which no inspector has been asked about."""
        self._inspectors: list[Inspector] = []
        self._awaited: list[AwaitedInspector] = []
        for inspector in (inspectors[name] for name in decision.inspect if name in inspectors):
            if isinstance(inspector, AwaitedInspector):
                self._awaited.append(inspector)
            else:
                self._inspectors.append(inspector)
        for detail in () if addons is None else addons.unusable:
            self.failed(ADDON_FAILED, detail)
        for name in decision.inspect:
            if name not in inspectors:
                self.failed(NOT_INSPECTED, f"no inspector is called {name!r}")

    def __bool__(self) -> bool:
        return bool(self._inspectors or self._awaited)

    @property
    def waits(self) -> bool:
        """Some inspectors have to be awaited."""
        return bool(self._awaited)

    @property
    def unpacks(self) -> bool:
        """Some inspectors read what lies in the content."""
        return any(hasattr(inspector, "open_within") for inspector in self._inspectors)

    @property
    def acts(self) -> bool:
        """Whether a finding does something to what it was found in."""
        return self._decision.on_finding is not OnFinding.ALERT

    @property
    def masks(self) -> bool:
        """Whether what is found is masked, as far as it can be."""
        return self._decision.on_finding is OnFinding.REDACT

    @property
    def _quarantines(self) -> bool:
        return self._decision.on_finding is OnFinding.QUARANTINE

    @property
    def delivery(self) -> Delivery:
        """What of a body waits for an answer."""
        return self._decision.delivery

    @property
    def prompt(self) -> bool:
        """Whether what inspectors say can end the flow, so that they must be asked before anything goes on."""
        return self.acts or self._on_failure is OnFailure.CLOSED

    def settle(self) -> None:
        """Have everything read that was fed. Raises Blocked."""
        while self.unread:
            next(iter(self.unread)).settle()

    def open(self, part: Part, codings: str = "", asks: Asks = Asks.ALL) -> Reading | None:
        """A reading of `part`, or None where no inspector has business. Raises Blocked."""
        awaited = Awaited(self._awaited if asks is not Asks.AT_ONCE else (), part)
        inspectors = [*self._inspectors, *(awaited.within if self.unpacks else ())]
        if asks is Asks.AWAITED:
            inspectors = []
        guarded = Guarded(inspectors, part, clock=time.process_time, budget_s=PART_LIMIT_S, limited=limited)
        if guarded.idle and awaited.idle:
            return None
        kept = None if self._quarantine is None or not self._quarantines else self._quarantine.kept()
        reading = Reading(self, guarded, None if awaited.idle else awaited, part, kept)
        if codings:
            reading.decode(codings)
        return reading

    def look(self, part: Part, data: bytes) -> None:
        """A reading of a part that is there as a whole. Raises Blocked."""
        reading = self.open(part)
        if reading is not None:
            try:
                reading.has_all()
                reading.feed(data)
                reading.close()
            finally:
                reading.abandon()

    def told(self, inspected: Inspected, mask: Mask | None, part: Part, codings: str, kept: Kept | None) -> None:
        """Record, mask by `mask` what is to be, and put `kept` under quarantine; raises Blocked when the decision says
        so. `codings`: under which the part travels.
        """
        stops: Finding | None = None
        for finding in inspected.findings:
            clear = finding.clear if self._decision.keep_evidence_s is not None else NOTHING_CLEAR
            finding = replace(finding, clear=NOTHING_CLEAR)
            verdict = self._verdict(finding, mask)
            if verdict in _STOPS and stops is None:
                stops = finding
            if part.name:
                finding = replace(finding, location=f"{finding.location} in {part.name}")
            item = "" if kept is None else kept.put(self._about(finding, part, codings))
            said = FindingSeen(flow=self._flow, finding=finding, verdict=verdict, item=item, clear=clear)
            self._recorder.record(said)
        if stops is not None:
            raise Blocked(f"{stops.detector}: {stops.summary}", stops)
        for fault in inspected.faults:
            what = NOT_INSPECTED if fault.kind is FaultKind.UNREAD else INSPECTOR_FAILED
            self.failed(what, f"{fault.inspector}: {fault.kind}, {fault.detail}")

    def _about(self, finding: Finding, part: Part, codings: str) -> About:
        return About(
            flow=self._flow,
            rule=self._decision.rule,
            detector=finding.detector,
            summary=finding.summary,
            location=finding.location,
            host=part.host,
            method=part.method,
            url=part.url,
            content_type=part.content_type,
            codings=codings,
            name=part.name or part.file_name,
            sent=part.sent,
        )

    def _verdict(self, finding: Finding, mask: Mask | None) -> OnFinding:
        """What becomes of it: where it cannot be masked, it does not go on at all."""
        if not self.masks:
            return self._decision.on_finding
        is_masked = mask is not None and finding.offset is not None and mask(finding.offset, finding.size_bytes)
        return OnFinding.REDACT if is_masked else OnFinding.BLOCK

    def failed(self, what: str, detail: str) -> None:
        """Record; raises Blocked where failures close."""
        self._recorder.record(FaultSeen(what=what, detail=detail[:512], failed=self._on_failure, flow=self._flow))
        if self._on_failure is OnFailure.CLOSED:
            raise Blocked(f"{what}: {detail}")


class Reading(Paced):
    """One part being read by all inspectors that want it. Methods raise Blocked."""

    def __init__(
        self, watch: Watch, guarded: Guarded, awaited: Awaited | None, part: Part, kept: Kept | None = None
    ) -> None:
        super().__init__()
        self._watch, self._awaited, self._part, self._kept = watch, awaited, part, kept
        self._codings = ""
        self.unfolds = False
        """What travels may be less than what is read: somebody must be able to wait until it has caught up."""
        self._guarded: Guarded | None = guarded
        self._decoder: Decoder = Identity()
        self.mask: Mask | None = None
        """Makes content unreadable that has not gone on yet."""
        self._pieces: list[bytes] = []
        self._size_bytes = 0

    @property
    def waits(self) -> bool:
        """Somebody has to be awaited: it has to be read with `read`."""
        return self._awaited is not None

    def decode(self, codings: str) -> None:
        """What is fed from now on travels under these content codings."""
        self.unfolds, self._codings = self.unfolds or is_coded(codings), codings
        try:
            self._decoder = decoder(codings)
        except Undecodable as error:
            self._give_up(error)

    def feed(self, data: bytes) -> None:
        """As `Paced.feed`; never behind where nothing unfolds."""
        if self.unfolds:
            return super().feed(data)
        for _ in self.steps(data):
            pass

    def has_all(self) -> None:
        """What is fed next is the last of the part."""
        if self._kept is not None:
            self._kept.is_ended = True

    def steps(self, data: bytes) -> Iterator[None]:
        if self._kept is not None:
            self._kept.add(data)
        try:
            for piece in self._decoder.feed(data):
                if self._guarded is None:
                    return
                step_bytes = STEP_BYTES if self.unfolds else len(piece)
                for at in range(0, len(piece), step_bytes):
                    self._add(piece[at : at + step_bytes])
                    if self._size_bytes >= (STEP_BYTES if self.unfolds else JOIN_BYTES):
                        self.settle()
                    yield
        except Undecodable as error:
            self._give_up(error)

    def settle(self) -> None:
        """Ask about what was fed."""
        data = self._take()
        if data and self._guarded is not None:
            self._ask(self._guarded.feed, data)

    def close(self) -> None:
        """The part is complete, or broke off."""
        self.leave()
        try:
            self.settle()
            if self._guarded is not None:
                guarded, self._guarded = self._guarded, None
                self._ask(guarded.close)
        finally:
            if self._awaited is None:
                self._forget()

    async def read(self, data: bytes, *, ends: bool) -> None:
        """The next bytes, as they travel, and whether the part is complete with them. Returns when all have looked."""
        if self._awaited is None:
            if data:
                self.feed(data)
            await self.catch_up()
        elif data:
            if self._kept is not None:
                self._kept.add(data)
            try:
                for piece in self._decoder.feed(data):
                    self._add(piece)
                    if self._size_bytes >= JOIN_BYTES:
                        await self._settled()
            except Undecodable as error:
                self._give_up(error)
        await self._settled()
        if ends:
            self.close()
            if self._awaited is not None:
                self._hear(await self._awaited.close())
                self._awaited = None
                self._forget()

    def abandon(self) -> None:
        """Nobody is awaited any longer: the part broke off, or the flow is over."""
        awaited, self._awaited = self._awaited, None
        if awaited is not None:
            awaited.abandon()
        self._forget()

    def _forget(self) -> None:
        if self._kept is not None:
            self._kept.leave()

    async def _settled(self) -> None:
        data = self._take()
        if data and self._guarded is not None:
            self._ask(self._guarded.feed, data)
        if data and self._awaited is not None:
            self._hear(await self._awaited.feed(data))

    def _add(self, piece: bytes) -> None:
        if not self._pieces:
            self._watch.unread[self] = None
        self._pieces.append(piece)
        self._size_bytes += len(piece)

    def _take(self) -> bytes:
        if not self._pieces:
            return b""
        del self._watch.unread[self]
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._size_bytes = 0
        return data

    def _ask(self, method: Callable[..., Inspected], *words: bytes) -> None:
        self._hear(method(*words))

    def _hear(self, inspected: Inspected) -> None:
        if inspected.findings or inspected.faults:
            self._watch.told(inspected, self.mask, self._part, self._codings, self._kept)

    def _give_up(self, error: Exception) -> None:
        self.settle()  # what could be decoded counts
        self._guarded = None
        self.abandon()
        self._watch.failed(NOT_INSPECTED, str(error))


async def stopped_by(reading: Awaitable[None]) -> Blocked | None:
    """What it raises as Blocked."""
    try:
        await reading
    except Blocked as blocked:
        return blocked
    return None
