"""Inspections that look for shapes (`sightings`): what was sighted becomes findings: some told, all counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from mitmsec.core.inspection import Part, place
from mitmsec.core.model import Finding, Severity, Value
from mitmsec_addons.sightings import Shapes, Sighting, Sightings

FINDINGS_LIMIT = 10  # told one by one in each part; the others are only counted
SURE_ENOUGH = 0.5  # what is less so is not told


class Telling(Value, frozen=True):
    """How an inspector words what it has found."""

    detector: str
    severity: Severity
    what: str  # in the plural, for those that are only counted
    summary: Callable[[Sighting], str]
    evidence: Callable[[Sighting], str]
    """No more of it than a person needs to know it again."""


class ShapeInspection:
    """One part being read (mitmsec.core.inspection.Inspection)."""

    __slots__ = ("_part", "_sightings", "_telling", "_told")

    def __init__(self, shapes: Shapes, part: Part, telling: Telling) -> None:
        self._part, self._telling = part, telling
        self._sightings = Sightings(shapes)
        self._told = 0

    def feed(self, data: bytes) -> Sequence[Finding]:
        """What `data` makes certain."""
        return self._findings(self._sightings.feed(data))

    def close(self) -> Sequence[Finding]:
        """What only the end proves; behind it how many were not told one by one."""
        findings = self._findings(self._sightings.close())
        if (more := self._told - FINDINGS_LIMIT) > 0:
            findings.append(self._finding(f"{more} more {self._telling.what} in the same part", "", 1.0, None))
        return findings

    def _findings(self, sightings: Iterable[Sighting]) -> list[Finding]:
        sure = [one for one in sightings if one.confidence >= SURE_ENOUGH]
        room = max(FINDINGS_LIMIT - self._told, 0)
        self._told += len(sure)
        return [self._seen(one) for one in sure[:room]]

    def _seen(self, one: Sighting) -> Finding:
        summary, evidence = self._telling.summary(one), self._telling.evidence(one)
        return self._finding(summary, evidence, one.confidence, one.offset, len(one.what))

    def _finding(
        self, summary: str, evidence: str, confidence: float, offset: int | None, size_bytes: int = 0
    ) -> Finding:
        return Finding(
            detector=self._telling.detector,
            severity=self._telling.severity,
            confidence=confidence,
            summary=summary,
            evidence=evidence,
            location=place(self._part, offset),
            offset=offset,
            size_bytes=size_bytes,
        )
