"""Inspectors that see all of a part at once: kept whole, within bounds, and shown once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core.inspection import Part, PartKind, Unread
from mitmsec.core.model import Finding
from mitmsec_addons.whole import WholeInspector

PART = Part(flow="f", kind=PartKind.BODY, sent=True, host="h")


class Needle(WholeInspector):
    name = "needle"
    limit_bytes = 16

    def wants(self, part: Part) -> bool:
        return part.kind is PartKind.BODY

    def look(self, part: Part, content: bytes) -> Iterator[Finding]:
        if (at := content.find(b"needle")) >= 0:
            yield self.finding(part, at, "a needle")


@given(st.lists(st.binary(max_size=5), max_size=5), st.data())
def test_it_finds_the_same_however_content_is_sliced_and_nothing_before_the_end(
    slices: list[bytes], data: st.DataObject
) -> None:
    slices.insert(data.draw(st.integers(0, len(slices))), b"needle")
    inspection = Needle().open(PART)
    assert inspection is not None
    told = [one for piece in slices for one in inspection.feed(piece)]
    content = b"".join(slices)
    if len(content) > Needle.limit_bytes:
        assert told == [Unread(why="longer than 16 bytes, which is all that it keeps", location="request.body")]
        assert inspection.close() == ()
    else:
        assert told == []
        assert [one.location for one in inspection.close()] == [f"request.body+{content.find(b'needle')}"]  # type: ignore[union-attr]


def test_parts_that_it_does_not_want_are_not_kept() -> None:
    assert Needle().open(Part(flow="f", kind=PartKind.URL, sent=True, host="h")) is None


def test_what_says_how_long_it_is_can_be_masked_and_a_subclass_has_to_look() -> None:
    told = Needle().finding(PART, 7, "a needle", size_bytes=6)
    assert (told.offset, told.size_bytes) == (7, 6)
    assert Needle().finding(PART, 7, "a needle").offset is None
    with pytest.raises(NotImplementedError):
        WholeInspector().look(PART, b"")
