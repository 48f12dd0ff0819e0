"""Inspectors at work on one part, with a net under each: what goes wrong in one is a value, never an exception.

    part ──► Guarded ──► each inspection in turn ──► Findings
                              │ raises, answers nonsense, or has used up its time
                              ▼
                         InspectorFault, told once; that inspection is not asked again

The caller applies the policy: `on_finding` to findings, `on_failure` to faults. A call that never returns can only be
ended by `limited`, which the caller brings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial
from typing import Any, cast

from mitmsec.core.inspection import Inspection, Inspector, Part, Unpacker, Unread
from mitmsec.core.model import Finding, Value


class TooLong(BaseException):  # not for an inspector to swallow
    """A call was interrupted."""


Limited = Callable[[Callable[[], Any]], Any]
"""Makes a call, and gives what it comes to. Raises TooLong."""


def unlimited[T](call: Callable[[], T]) -> T:
    """For calls that nobody interrupts."""
    return call()


class FaultKind(StrEnum):
    """How an inspector fails."""

    ERROR = "error"
    SIZE = "size"  # the part is larger than the inspector takes
    TIMEOUT = "timeout"
    UNREAD = "unread"  # it works, and says what it could not look at


class InspectorFault(Value, frozen=True):
    """`inspector` did not look at all of a part. `detail` holds no content: it may be recorded."""

    inspector: str
    kind: FaultKind
    detail: str
    location: str = ""
    """Of what is UNREAD; it stands in `detail`, too."""


class Inspected(Value, frozen=True):
    """What one call brought to light."""

    findings: tuple[Finding, ...] = ()
    faults: tuple[InspectorFault, ...] = ()


class Guarded:
    """All inspections of one part. `budget_s` is what each inspector may use for the whole part, by `clock` (seconds).

    `limited` is around each inspector's calls: one that is interrupted fails alone. A fault while the inspections are
    opened is told by the first `feed` or `close`.
    """

    __slots__ = ("_budget_s", "_clock", "_early", "_limited", "_live", "_used_s")

    def __init__(
        self,
        inspectors: Sequence[Inspector],
        part: Part,
        *,
        clock: Callable[[], float],
        budget_s: float,
        limited: Limited = unlimited,
    ) -> None:
        self._clock = clock
        self._limited = limited
        self._budget_s = budget_s
        self._live: dict[str, Inspection] = {}
        self._used_s = {inspector.name: 0.0 for inspector in inspectors}
        self._early: tuple[InspectorFault, ...] = ()
        for inspector in inspectors:
            try:
                inspection = limited(partial(_opened, inspector, part, inspectors))
            except (Exception, TooLong) as error:
                self._early += (broken(inspector.name, error),)
            else:
                if inspection is not None:
                    self._live[inspector.name] = inspection

    @property
    def idle(self) -> bool:
        """There is nothing to tell and nobody to ask: the part need not be fed."""
        return not self._live and not self._early

    def feed(self, data: bytes) -> Inspected:
        """`data` goes to every inspection that still works."""
        return self._ask(lambda inspection: inspection.feed(data))

    def close(self) -> Inspected:
        """The part is complete. Afterwards nobody is asked again."""
        inspected = self._ask(lambda inspection: inspection.close())
        self._live.clear()
        return inspected

    def _ask(self, question: Callable[[Inspection], Sequence[Finding | Unread]]) -> Inspected:
        findings: list[Finding] = []
        faults, self._early = list(self._early), ()
        for name, inspection in list(self._live.items()):
            begun_s = self._clock()
            try:
                answer = self._limited(partial(_answer, question, inspection))
            except (Exception, TooLong) as error:
                faults.append(broken(name, error))
                del self._live[name]
                continue
            findings += [one for one in answer if isinstance(one, Finding)]  # found in time or not, it is true
            faults += [unread(name, one) for one in answer if isinstance(one, Unread)]
            self._used_s[name] += self._clock() - begun_s
            if self._used_s[name] > self._budget_s:
                detail = f"used {self._used_s[name]:.3f} s of {self._budget_s:.3f} s"
                faults.append(InspectorFault(inspector=name, kind=FaultKind.TIMEOUT, detail=detail))
                del self._live[name]
        return Inspected(findings=tuple(findings), faults=tuple(faults))


def _answer(question: Callable[[Inspection], Sequence[Finding | Unread]], asked: Inspection) -> list[Finding | Unread]:
    return checked(question(asked))  # whose answer may be computed only as it is read


def checked(answer: Sequence[Finding | Unread]) -> list[Finding | Unread]:
    """An inspector's answer. Raises TypeError for what is none."""
    told = list(answer)
    for one in told:
        if not isinstance(one, Finding | Unread):
            raise TypeError("not a Finding")
    return told


def unread(name: str, one: Unread) -> InspectorFault:
    """What an inspector says it could not look at."""
    detail = f"{one.why} ({one.location})"
    return InspectorFault(inspector=name, kind=FaultKind.UNREAD, detail=detail, location=one.location)


def _opened(inspector: Inspector, part: Part, all_of_them: Sequence[Inspector]) -> Inspection | None:
    if hasattr(inspector, "open_within"):  # isinstance() of a protocol takes ten times as long
        return cast("Unpacker", inspector).open_within(part, all_of_them)
    return inspector.open(part)


def broken(name: str, error: BaseException) -> InspectorFault:
    """What an inspector raised, or was interrupted by."""
    if isinstance(error, TooLong):
        return InspectorFault(inspector=name, kind=FaultKind.TIMEOUT, detail=str(error))
    # Only the type: a message may quote the content.
    return InspectorFault(inspector=name, kind=FaultKind.ERROR, detail=type(error).__name__)
