"""Of what was sighted the sure is told, some of it one by one and all of it counted."""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from mitmsec.core.inspection import Part, PartKind
from mitmsec.core.model import Severity
from mitmsec_addons.shaped import FINDINGS_LIMIT, SURE_ENOUGH, ShapeInspection, Telling
from mitmsec_addons.sightings import Shape, Shapes
from mitmsec_addons.triggers import Trigger


def number(what: bytes, context: bytes) -> float:
    return int(what) / 100


SHAPES = Shapes([Shape("number", Trigger(r"\d{2}"), re.compile(rb"(?<!\d)\d{2}(?!\d)"), number)])
REST = "there may be more numbers; the rest of this part was not looked through"
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
    found = [*inspection.feed(b"49 50 " * FINDINGS_LIMIT), *inspection.close()]
    assert [one.confidence for one in found] == [SURE_ENOUGH] * FINDINGS_LIMIT + [1.0]
    assert [one.evidence for one in found] == ["5…"] * FINDINGS_LIMIT + [""]
    assert (found[0].summary, found[0].location) == ("a number", "request.body+3")
    assert (found[-1].summary, found[-1].location) == (REST, "request.body")


def test_with_ten_found_the_rest_is_not_looked_through_wherever_it_is_cut() -> None:
    data = (b"99 " * 4 + b"." * 400) * 5
    whole = tuple(_told(data))
    assert whole == ("a number",) * FINDINGS_LIMIT + (REST,)
    assert tuple(_told(*(data[at : at + 7] for at in range(0, len(data), 7)))) == whole
    assert tuple(_told(b" ".join([b"99"] * FINDINGS_LIMIT))) == ("a number",) * FINDINGS_LIMIT


def _told(*slices: bytes) -> Iterator[str]:
    inspection = ShapeInspection(SHAPES, part(), TELLING)
    for data in slices:
        yield from (one.summary for one in inspection.feed(data))
    yield from (one.summary for one in inspection.close())


def test_a_severity_of_its_own() -> None:
    telling = msgspec.structs.replace(TELLING, severity_of=lambda one: Severity.HIGH)
    inspection = ShapeInspection(SHAPES, part(), telling)
    assert [one.severity for one in [*inspection.feed(b"99"), *inspection.close()]] == [Severity.HIGH]
