"""Inspections that wait for somebody else, with a net under each: what `core.inspecting.Guarded` is for the others.

    part ──► Awaited ──► each inspection in turn, a task of its own ──► Findings
                              │ raises, answers nonsense, has been given too much, or takes longer than it said
                              ▼
                         InspectorFault, told once; that inspection is cancelled and abandoned

A call that does not end when it is cancelled is left to itself: nobody waits for it any longer.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence

from mitmsec.core.inspecting import FaultKind, Inspected, InspectorFault, broken, checked, unread
from mitmsec.core.inspection import AwaitedInspection, AwaitedInspector, Inspector, Part, PartKind, Unread
from mitmsec.core.model import Finding

KINDS = frozenset({PartKind.BODY, PartKind.STREAM})

Question = Callable[[AwaitedInspection], Awaitable[Sequence[Finding | Unread]]]


class _Live:
    """One inspection, and what it has had so far."""

    __slots__ = ("inspection", "inspector", "used_bytes", "used_s")

    def __init__(self, inspector: AwaitedInspector, inspection: AwaitedInspection) -> None:
        self.inspector, self.inspection = inspector, inspection
        self.used_bytes, self.used_s = 0, 0.0


class Awaited:
    """All inspections of one part. A fault while they begin is told by the first `feed` or `close`."""

    __slots__ = ("_early", "_live", "_task")

    def __init__(self, inspectors: Sequence[AwaitedInspector], part: Part) -> None:
        self._live: list[_Live] = []
        self._task: asyncio.Task[Sequence[Finding | Unread]] | None = None  # the call that is waited for
        self._early: list[InspectorFault] = []
        for inspector in inspectors if part.kind in KINDS else ():
            try:
                inspection = inspector.begin(part)
            except BaseException as error:
                self._early.append(broken(inspector.name, error))
            else:
                if inspection is not None:
                    self._live.append(_Live(inspector, inspection))

    @property
    def idle(self) -> bool:
        """There is nothing to tell and nobody to ask."""
        return not self._live and not self._early

    @property
    def within(self) -> list[Inspector]:
        """Those that are to be shown what unpackers of the same rule unpack of the part."""
        found = (getattr(live.inspection, "within", None) for live in self._live)
        return [inspector for inspector in found if inspector is not None]

    async def feed(self, data: bytes) -> Inspected:
        """`data` goes to every inspection that still works."""
        return await self._ask(lambda inspection: inspection.feed(data), len(data))

    async def close(self) -> Inspected:
        """The part is complete. Afterwards nobody is asked again."""
        inspected = await self._ask(lambda inspection: inspection.close(), 0)
        self._live.clear()
        return inspected

    def abandon(self) -> None:
        """The part broke off. Idempotent."""
        if self._task is not None:
            self._task.cancel()
        while self._live:
            _abandon(self._live.pop())

    async def _ask(self, question: Question, size_bytes: int) -> Inspected:
        findings: list[Finding] = []
        faults, self._early = self._early, []
        for live in tuple(self._live):
            live.used_bytes += size_bytes
            if live.used_bytes > live.inspector.limit_bytes:
                detail = f"takes {live.inspector.limit_bytes} bytes of a part, which has more"
                answer: list[Finding | Unread] | InspectorFault = _fault(live, FaultKind.SIZE, detail)
            else:
                answer = await self._answer(live, question)
            if isinstance(answer, InspectorFault):
                faults.append(answer)
                self._drop(live)
            else:
                findings += [one for one in answer if isinstance(one, Finding)]
                faults += [unread(live.inspector.name, one) for one in answer if isinstance(one, Unread)]
        return Inspected(findings=tuple(findings), faults=tuple(faults))

    async def _answer(self, live: _Live, question: Question) -> list[Finding | Unread] | InspectorFault:
        begun_s = time.monotonic()
        task = self._task = asyncio.get_running_loop().create_task(_asked(live.inspection, question))
        try:
            await asyncio.wait({task}, timeout=max(0.0, live.inspector.limit_s - live.used_s))
        finally:
            self._task = None
            live.used_s += time.monotonic() - begun_s
            if not task.done():
                task.cancel()
                task.add_done_callback(_heard)
        if not task.done():
            return _fault(live, FaultKind.TIMEOUT, f"took longer than {live.inspector.limit_s:.3f} s")
        try:
            return checked(task.result())
        except BaseException as error:  # a cancellation is its own doing: ours comes out of the wait
            return broken(live.inspector.name, error)

    def _drop(self, live: _Live) -> None:
        if live in self._live:  # else it has been abandoned meanwhile
            self._live.remove(live)
            _abandon(live)


async def _asked(inspection: AwaitedInspection, question: Question) -> Sequence[Finding | Unread]:
    try:
        return await question(inspection)
    except (SystemExit, KeyboardInterrupt) as error:  # which would end the loop
        raise RuntimeError(type(error).__name__) from None


def _fault(live: _Live, kind: FaultKind, detail: str) -> InspectorFault:
    return InspectorFault(inspector=live.inspector.name, kind=kind, detail=detail)


def _abandon(live: _Live) -> None:
    with contextlib.suppress(BaseException):
        live.inspection.abandon()


def _heard(task: asyncio.Task[Sequence[Finding | Unread]]) -> None:
    """What a call that nobody waits for came to."""
    if not task.cancelled():
        task.exception()
