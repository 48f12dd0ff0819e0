from __future__ import annotations

import pytest

from mitmsec.core.inspecting import FaultKind, Guarded, InspectorFault
from mitmsec.core.inspection import Part, PartKind, Unread, place


@pytest.mark.parametrize(
    ("kind", "told"),
    [(PartKind.BODY, "request.body+7"), (PartKind.URL, "request.url"), (PartKind.STREAM, "request.stream+7")],
)
def test_short_parts_have_no_offsets(kind: PartKind, told: str) -> None:
    part = Part(flow="f", kind=kind, sent=True, host="h")
    assert place(part, 7) == told
    assert place(part) == f"request.{kind}"


def test_what_lies_in_an_archive_is_told_with_its_way_there() -> None:
    part = Part(flow="f", kind=PartKind.BODY, sent=False, host="h", path="a.zip!letter.txt")
    assert place(part, 26) == "response.body!a.zip!letter.txt+26"


class HalfBlind:
    """Says that there is something it cannot read, and goes on."""

    name = "half_blind"

    def open(self, part: Part) -> HalfBlind:
        return self

    def feed(self, data: bytes) -> list[Unread]:
        return [Unread(why="encrypted", location="request.body!a.txt")]

    def close(self) -> list[Unread]:
        return []


def test_what_an_inspector_could_not_look_at_is_told_as_a_failure_each_time_it_says_so() -> None:
    part = Part(flow="f", kind=PartKind.BODY, sent=True, host="h")
    guarded = Guarded([HalfBlind()], part, clock=lambda: 0.0, budget_s=1.0)
    fault = InspectorFault(
        inspector="half_blind",
        kind=FaultKind.UNREAD,
        detail="encrypted (request.body!a.txt)",
        location="request.body!a.txt",
    )
    assert guarded.feed(b"1").faults == (fault,)
    assert guarded.feed(b"2").faults == (fault,)
