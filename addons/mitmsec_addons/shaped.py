"""Inspections that look for shapes (`sightings`): what was sighted becomes findings: ten are told."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mitmsec.core.inspection import Part, place
from mitmsec.core.model import NOTHING_CLEAR, Clear, Finding, Severity, Value
from mitmsec_addons.sightings import Shapes, Sighting, Sightings

FINDINGS_LIMIT = 10  # told one by one in each part; then it has been looked at enough
SURE_ENOUGH = 0.5  # what is less so is not told


class Telling(Value, frozen=True):
    """How an inspector words what it has found."""

    detector: str
    severity: Severity
    what: str  # in the plural, for those that are not told one by one
    summary: Callable[[Sighting], str]
    evidence: Callable[[Sighting], str]
    """No more of it than a person needs to know it again."""
    severity_of: Callable[[Sighting], Severity] | None = None
    """Where it is not the same for all."""


class ShapeInspection:
    """One part being read (mitmsec.core.inspection.Inspection). With the tenth finding the rest is left unread."""

    __slots__ = ("_part", "_read_bytes", "_sightings", "_telling")

    def __init__(self, shapes: Shapes, part: Part, telling: Telling) -> None:
        self._part, self._telling = part, telling
        self._sightings = Sightings(shapes, sure=SURE_ENOUGH, enough=FINDINGS_LIMIT)
        self._read_bytes = 0

    def feed(self, data: bytes) -> Sequence[Finding]:
        """What `data` makes certain."""
        self._read_bytes += len(data)
        return self._findings(self._sightings.feed(data))

    def close(self) -> Sequence[Finding]:
        """What only the end proves; behind it whether there was more to look at."""
        findings = self._findings(self._sightings.close())
        ended = self._sightings.ended
        if ended is not None and ended < self._read_bytes:
            rest = f"there may be more {self._telling.what}; the rest of this part was not looked through"
            findings.append(self._finding(rest, "", 1.0, None))
        return findings

    def _findings(self, sightings: Sequence[Sighting]) -> list[Finding]:
        return [self._seen(one) for one in sightings]

    def _seen(self, one: Sighting) -> Finding:
        telling = self._telling
        severity = telling.severity_of(one) if telling.severity_of is not None else None
        return self._finding(
            telling.summary(one),
            telling.evidence(one),
            one.confidence,
            one.offset,
            len(one.what),
            severity,
            Clear.of(one.what),
        )

    def _finding(
        self,
        summary: str,
        evidence: str,
        confidence: float,
        offset: int | None,
        size_bytes: int = 0,
        severity: Severity | None = None,
        clear: Clear = NOTHING_CLEAR,
    ) -> Finding:
        return Finding(
            detector=self._telling.detector,
            severity=severity or self._telling.severity,
            confidence=confidence,
            summary=summary,
            evidence=evidence,
            location=place(self._part, offset),
            offset=offset,
            size_bytes=size_bytes,
            clear=clear,
        )
