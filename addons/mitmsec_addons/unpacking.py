"""Something that holds other things, read as it goes by, and what it holds shown to the inspectors of the same rule.

    part ──► its head ──► choose ──► Reader ──► entry ──► a part of its own ──► Guarded(all inspectors of the rule)
                                       │                                            └► an Unpacking again, deeper
                                       └► what cannot be read ──► Unread
    one Budget for all of it

What is unpacked is not kept: it is shown in slices and forgotten. Names are told, made printable, and used for nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from msgspec.structs import replace

from mitmsec.core.inspecting import FaultKind, Guarded, Inspected, InspectorFault
from mitmsec.core.inspection import SCANS, Inspection, Inspector, Part, PartKind, Unread, place
from mitmsec.core.model import Finding
from mitmsec_addons.containers import Entry, Event, Mark, Passed, Reader, Unreadable
from mitmsec_addons.unpack_budget import Budget, Spent

HEAD_BYTES = 1024  # by which it is known what something is
NAME_LIMIT_CHARACTERS = 100
PATH_LIMIT_CHARACTERS = 400
NAME_OF = " (its name)"
SHORT_NUMBER_DIGITS = 8
_SEPARATORS = re.compile(r"[/\\._]+")  # "4539_1488_0343_6467.txt"
_OF_NUMBERS = frozenset({"file_type", "iban", "national_id", "payment_card", "secrets"})
_NUMBER = re.compile(r"(?:[^0-9]*[0-9]){7}|[\w+/=-]{16}")  # less holds nothing that these find; to ask them takes time
_OUR_OWN = re.compile(r"(?:object|part) [0-9]{1,8}|text|content")  # which readers give
BUDGET_S = 60.0  # computed by each inspector on one entry

type Told = Finding | Unread


class UnpackingInspector:
    """A subclass says its `name` and how to `choose`. Raises ValueError for any words."""

    name = ""

    def __init__(self, words: tuple[str, ...], clock: Callable[[], float]) -> None:
        if words:
            raise ValueError(f"{self.name} has no words: it shows what it unpacks to the other inspectors of a rule")
        self._clock = clock

    def choose(self, head: bytes, part: Part, names: frozenset[str]) -> Reader | None:
        """A reader, or None. `names` are those of all inspectors of the rule."""
        raise NotImplementedError

    def open(self, part: Part) -> Inspection | None:
        """An inspection with nobody to show anything to: it only tells what cannot be read."""
        return self.open_within(part, [self])

    def open_within(self, part: Part, others: Sequence[Inspector]) -> Inspection | None:
        """An inspection of a body or a stream, which shows to `others` what it unpacks."""
        if part.kind not in (PartKind.BODY, PartKind.STREAM):
            return None
        return self.deeper(part, others, Budget(self._clock), 0)

    def deeper(self, part: Part, others: Sequence[Inspector], budget: Budget, depth: int) -> Unpacking:
        """Likewise, of what was unpacked itself."""
        return Unpacking(self, part, others, budget, self._clock, depth)


class _Nested:
    """An unpacker as an inspector of what was unpacked: in the same budget, one deeper."""

    def __init__(self, unpacker: UnpackingInspector, others: Sequence[Inspector], budget: Budget, depth: int) -> None:
        self.name = unpacker.name
        self._unpacker, self._others, self._budget, self._depth = unpacker, others, budget, depth

    def open(self, part: Part) -> Unpacking:
        return self._unpacker.deeper(part, self._others, self._budget, self._depth)


class Unpacking:
    """One part being read."""

    def __init__(
        self,
        unpacker: UnpackingInspector,
        part: Part,
        others: Sequence[Inspector],
        budget: Budget,
        clock: Callable[[], float],
        depth: int,
    ) -> None:
        self._unpacker, self._part, self._others = unpacker, part, others
        self._budget, self._clock, self._depth = budget, clock, depth
        self._inspectors: Sequence[Inspector] = ()
        self._head = b""
        self._reader: Reader | None = None
        self._is_over = False
        self._entry_part: Part | None = None
        self._entry: Guarded | None = None
        self._number = 0

    def feed(self, data: bytes) -> Sequence[Told]:
        """What inspectors find in what `data` makes known."""
        if self._depth == 0:
            self._budget.begins(len(data))
        if self._is_over:
            return ()
        if self._reader is None:
            self._head += data
            return self._begin() if len(self._head) >= HEAD_BYTES else ()
        return self._run(self._reader.feed(data))

    def close(self) -> Sequence[Told]:
        """What only the end makes known."""
        if self._depth == 0:
            self._budget.begins(0)
        told = [*self._begin()] if self._reader is None and not self._is_over else []
        if self._reader is not None and not self._is_over:
            told += self._run(self._reader.close())
        return told + self._end_entry()

    def _begin(self) -> Sequence[Told]:
        data, self._head = self._head, b""
        names = frozenset(one.name for one in self._others)
        self._reader = self._unpacker.choose(data[:HEAD_BYTES], self._part, names) if data else None
        if self._reader is None:
            self._is_over = True
            return ()
        self._inspectors = [
            _Nested(one, self._others, self._budget, self._depth + 1) if isinstance(one, UnpackingInspector) else one
            for one in self._others
        ]
        return self._run(self._reader.feed(data))

    def _run(self, events: Iterable[Event]) -> list[Told]:
        told: list[Told] = []
        try:
            for event in events:
                told += self._one(event)
        except Spent as spent:
            self._is_over = True
            told += self._end_entry()
            if not self._budget.told():
                told.append(Unread(why=str(spent), location=place(self._part)))
        return told

    def _one(self, event: Event) -> Iterable[Told]:
        match event:
            case bytes():
                self._budget.unpacked(len(event))
                return self._show(event)
            case Entry():
                return [*self._end_entry(), *self._begin_entry(event)]
            case Unreadable(why=why):
                return (Unread(why=why, location=place(self._entry_part or self._part)),)
            case Mark.ENDED:
                return self._end_entry()
            case Passed(size_bytes=size_bytes):
                self._budget.unpacked(size_bytes)
                return ()

    def _begin_entry(self, entry: Entry) -> Iterable[Told]:
        self._number += 1
        self._budget.entry(self._depth + 1)
        told = self._look_at_name(entry.name)
        # What an inspector finds in a name stands nowhere in the clear, and locations are recorded.
        name = str(self._number) if told or not entry.name else entry.name
        self._entry_part = self._within(
            name, content_type=entry.content_type, file_name=_printable(name.replace("\\", "/").rpartition("/")[2])
        )
        return told

    def _within(self, name: str, content_type: str = "", file_name: str = "") -> Part:
        path = self._part.path + "!" * bool(self._part.path) + _printable(name)
        return Part(
            flow=self._part.flow,
            kind=PartKind.BODY,
            sent=self._part.sent,
            host=self._part.host,
            method=self._part.method,
            url=self._part.url,
            content_type=content_type,
            file_name=file_name,
            path=path[:PATH_LIMIT_CHARACTERS],
        )

    def _look_at_name(self, name: str) -> list[Told]:
        """What inspectors find in it: it is content like any other."""
        if not name or _OUR_OWN.fullmatch(name):
            return []
        spaced = _SEPARATORS.sub(" ", name)
        has_number = sum(map(str.isdecimal, name)) > SHORT_NUMBER_DIGITS
        return self._look_at(name) or (self._look_at(spaced) if has_number and spaced != name else [])

    def _look_at(self, text: str) -> list[Told]:
        inspectors = [
            one
            for one in self._others
            if not isinstance(one, UnpackingInspector)
            and one.name != SCANS  # its rules are about files
            and (one.name not in _OF_NUMBERS or _NUMBER.search(text))
        ]
        if not inspectors:
            return []
        part = self._within(f"{self._number}{NAME_OF}")
        looking = Guarded(inspectors, part, clock=self._clock, budget_s=BUDGET_S)
        said = (looking.feed(text.encode("utf-8", "replace")), looking.close())
        return [one for inspected in said for one in self._tell(inspected)]

    def _show(self, data: bytes) -> Iterable[Told]:
        """Inspections begin with the first byte: an archive may have thousands of files that are empty."""
        if self._entry_part is None or not data:
            return ()
        if self._entry is None:
            self._entry = Guarded(self._inspectors, self._entry_part, clock=self._clock, budget_s=BUDGET_S)
        return self._tell(self._entry.feed(data))

    def _end_entry(self) -> list[Told]:
        entry, self._entry = self._entry, None
        told = [] if entry is None else [*self._tell(entry.close())]
        self._entry_part = None
        return told

    def _tell(self, inspected: Inspected) -> Iterator[Told]:
        for finding in inspected.findings:
            # What was unpacked is not what travels: nothing can be masked at that offset.
            yield finding if finding.offset is None else replace(finding, offset=None, size_bytes=0)
        for fault in inspected.faults:
            yield self._unread(fault)

    def _unread(self, fault: InspectorFault) -> Unread:
        """What went wrong in an inspector of an entry; of one that unpacks it, what that says itself."""
        if fault.kind is FaultKind.UNREAD:
            return Unread(why=fault.detail.removesuffix(f" ({fault.location})"), location=fault.location)
        where = place(self._entry_part or self._part)
        return Unread(why=f"{fault.inspector}: {fault.kind.value}, {fault.detail}", location=where)


def _printable(name: str) -> str:
    """What is recorded of a name: it can neither move a cursor nor grow for ever."""
    short = name if len(name) <= NAME_LIMIT_CHARACTERS else "…" + name[-NAME_LIMIT_CHARACTERS:]
    return "".join(character if character.isprintable() else "�" for character in short)
