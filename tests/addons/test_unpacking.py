"""What lies in something is shown to the rule's inspectors, with where it lies, and whatever goes wrong is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
from container_stage import CARD

from mitmsec.core.inspection import Inspector, Part, PartKind, Unread
from mitmsec.core.model import Finding
from mitmsec_addons.containers import Entry, Event, Mark, Reader, Unreadable
from mitmsec_addons.unpack_budget import DEPTH
from mitmsec_addons.unpacking import HEAD_BYTES, NAME_LIMIT_CHARACTERS, NAME_OF, UnpackingInspector
from mitmsec_addons.whole import WholeInspector

PART = Part(flow="f", kind=PartKind.BODY, sent=True, host="h", url="http://h/x", file_name="x")


class Said:
    """A reader that says what it was told to, when it is fed."""

    def __init__(self, events: Sequence[Event]) -> None:
        self._events = list(events)

    def feed(self, data: bytes) -> Iterator[Event]:
        while self._events:
            yield self._events.pop(0)

    def close(self) -> Iterator[Event]:
        yield from ()


class Scripted(UnpackingInspector):
    """Unpacks what begins with `box` to what it was told to."""

    name = "scripted"

    def __init__(self, *events: Event, clock: Callable[[], float] = lambda: 0.0) -> None:
        super().__init__((), clock)
        self._events = events

    def choose(self, head: bytes, part: Part, names: frozenset[str]) -> Reader | None:
        return Said(self._events) if head.startswith(b"box") else None


class Seen(WholeInspector):
    """Tells all parts that it is shown, and what is in them; of a bomb it dies."""

    name = "seen"

    def look(self, part: Part, content: bytes) -> Iterator[Finding]:
        if part.path.endswith(NAME_OF):
            return
        if content == b"bomb":
            raise LookupError("the password is hunter2")
        yield self.finding(part, None, f"{part.file_name}|{part.content_type}|{content.decode()}")


def told(
    unpacker: UnpackingInspector, *others: Inspector, data: bytes = b"box", part: Part = PART
) -> list[Finding | Unread]:
    inspection = unpacker.open_within(part, [unpacker, *others])
    assert inspection is not None
    return [*inspection.feed(data), *inspection.close()]


def summaries(*events: Event) -> list[tuple[str, str]]:
    found = told(Scripted(*events), Seen())
    return [(one.summary if isinstance(one, Finding) else one.why, one.location) for one in found]


def test_each_entry_is_a_part_of_its_own_at_its_place() -> None:
    assert summaries(
        Entry("folder\\a.txt", content_type="text/plain"), b"one ", b"two", Entry("b"), b"three", Mark.ENDED, Mark.ENDED
    ) == [
        ("a.txt|text/plain|one two", "request.body!folder\\a.txt"),
        ("b||three", "request.body!b"),
    ]


def test_what_is_packed_again_is_unpacked_again_as_deep_as_the_budget_goes() -> None:
    inner = told(Scripted(Entry("box"), b"box"))
    assert inner == [Unread(why=f"is packed more than {DEPTH} times", location="request.body" + "!box" * DEPTH)]


def test_what_cannot_be_read_is_told_at_its_place() -> None:
    assert summaries(Unreadable("damaged"), Entry("a"), Unreadable("encrypted"), Mark.ENDED) == [
        ("damaged", "request.body"), ("encrypted", "request.body!a"),
    ]  # fmt: skip


def test_an_inspector_that_dies_of_an_entry_is_told_without_content_and_sees_the_next() -> None:
    assert summaries(Entry("a"), b"bomb", Entry("b"), b"x") == [
        ("seen: error, LookupError", "request.body!a"), ("b||x", "request.body!b"),
    ]  # fmt: skip


def test_names_are_made_printable_and_bounded() -> None:
    (long, _), (hostile, where) = summaries(Entry("x/" + "n" * 999), b"x", Entry("../\x1b[2J‮.txt"), b"x")
    assert long == "…" + "n" * NAME_LIMIT_CHARACTERS + "||x"
    assert (hostile, where) == ("�[2J�.txt||x", "request.body!../�[2J�.txt")


def test_entries_without_a_name_are_numbered() -> None:
    assert [where for _, where in summaries(Entry(""), b"x", Entry(""), b"y")] == ["request.body!1", "request.body!2"]


def test_what_is_nothing_to_unpack_is_left_to_others() -> None:
    assert told(Scripted(Entry("a"), CARD), data=b"no " * HEAD_BYTES) == []
    assert told(Scripted(Entry("a"), CARD), data=b"") == []


def test_heads_and_urls_hold_nothing() -> None:
    assert Scripted().open_within(Part(flow="f", kind=PartKind.URL, sent=True, host="h"), []) is None
    assert Scripted().open(PART) is not None


def test_what_stands_between_entries_is_shown_to_nobody() -> None:
    assert summaries(b"before", Entry("a"), b"x", Mark.ENDED, b"behind") == [("a||x", "request.body!a")]


def test_a_subclass_has_to_choose() -> None:
    with pytest.raises(NotImplementedError):
        UnpackingInspector.choose(Scripted(), b"", PART, frozenset())


def test_there_are_no_words() -> None:
    with pytest.raises(ValueError, match="scripted has no words"):
        UnpackingInspector.__init__(Scripted(), ("x",), lambda: 0.0)


def test_a_spent_budget_ends_all_depths_and_is_told_once() -> None:
    bomb = Scripted(Entry("a"), bytes(5 << 20), Entry("b"), b"never")
    assert told(bomb, Seen())[-1:] == [Unread(why="unpacks to more than 100 times its size", location="request.body")]
    assert "never" not in str(told(bomb, Seen()))
