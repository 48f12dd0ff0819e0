"""Of what was sighted the sure is told, some of it one by one and all of it counted."""

from __future__ import annotations

import re

from mitmsec.core.inspection import Part, PartKind
from mitmsec.core.model import Severity
from mitmsec_addons.shaped import FINDINGS_LIMIT, SURE_ENOUGH, ShapeInspection, Telling
from mitmsec_addons.sightings import Shape, Shapes
from mitmsec_addons.triggers import Trigger


def number(what: bytes, context: bytes) -> float:
    return int(what) / 100


SHAPES = Shapes([Shape("number", Trigger(r"\d{2}"), re.compile(rb"(?<!\d)\d{2}(?!\d)"), number)])
TELLING = Telling(
    detector="numbers",
    severity=Severity.LOW,
    what="numbers",
    summary=lambda one: f"a {one.shape}",
    evidence=lambda one: f"{one.what[:1].decode()}…",
)


def part(kind: PartKind = PartKind.BODY) -> Part:
    return Part(flow="f", kind=kind, sent=True, host="h")


def test_what_is_not_sure_enough_is_neither_told_nor_counted() -> None:
    inspection = ShapeInspection(SHAPES, part(), TELLING)
    found = [*inspection.feed(b"49 50 " * (FINDINGS_LIMIT + 2)), *inspection.close()]
    assert [one.confidence for one in found] == [SURE_ENOUGH] * FINDINGS_LIMIT + [1.0]
    assert [one.evidence for one in found] == ["5…"] * FINDINGS_LIMIT + [""]
    assert (found[0].summary, found[0].location) == ("a number", "request.body+3")
    assert (found[-1].summary, found[-1].location) == ("2 more numbers in the same part", "request.body")
