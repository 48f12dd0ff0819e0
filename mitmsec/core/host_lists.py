"""Lists of names (`@file`, categories): what is kept of each, and which of them hold a name.

    short lists ──► {"bank.example": 0b011, "evil.example": 0b100, …}    bit n: list n holds this name and all below it
    long ones   ──► 0b1000, {"tracker.example", …}                       each by itself: half the time and the memory
    name        ──► a look-up for itself and for each name above it, in these, whatever the number of names in them

A policy refers to a list by its hash. Its text may be elsewhere: a policy without the texts is read, recorded and
passed on, but not asked about a name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from mitmsec.core.model import Value
from mitmsec.core.names import name_and_parents

FILE, CATEGORY = "@", "category:"  # begin the name of a list, which no host has: a file, or one that is shipped
STEP_CHARS = 1 << 17  # so much of a text is taken in at once: some milliseconds
LONG_NAMES = 100_000  # a list with so many

type Holding = int
"""Bit n is the policy's list n."""


def is_list(entry: str) -> bool:
    """Whether an entry of a condition on names stands for a list, and is no pattern."""
    return entry.startswith((FILE, CATEGORY))


class HostList(Value, frozen=True, omit_defaults=True):
    """One list. Its names are comparable (mitmsec.core.names); each stands for itself and everything below."""

    name: str
    """`@` and the file, as a rule has it under `host`; or `category:` and what a rule has under `category`."""
    count: int
    size_bytes: int
    sha256: str
    """Of `text`."""
    text: str = ""
    """The names, one a line, in the order of the file; empty where it is kept elsewhere."""

    @classmethod
    def of(cls, name: str, text: str) -> HostList:
        count = text.count("\n") + 1 if text else 0
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        return cls(name=name, count=count, size_bytes=len(text), sha256=sha256, text=text)

    @property
    def is_here(self) -> bool:
        return len(self.text) == self.size_bytes

    @property
    def reference(self) -> HostList:
        """It without its text."""
        return msgspec.structs.replace(self, text="")

    def steps(self) -> Iterator[list[str]]:
        """Its names, some thousands at once. Raises LookupError where the text is not here."""
        if not self.is_here:
            raise LookupError(f"the names of the list {self.name} are not here")
        begin = 0
        while begin < self.size_bytes:
            end = self.text.find("\n", begin + STEP_CHARS)
            end = self.size_bytes if end < 0 else end
            yield self.text[begin:end].split("\n")
            begin = end + 1

    def names(self) -> Iterator[str]:
        """All of them. Raises LookupError where the text is not here."""
        for step in self.steps():
            yield from step


class Listed:
    """Which of these lists hold a name. Filled at the first question, or before it step by step (`filling`).

    Who knows beforehand which few names matter says so (`expect`), and is spared the filling: that takes some times
    as long as one look at every name.
    """

    __slots__ = ("_by_name", "_expected", "_is_full", "_lists", "_long", "_numbers")

    def __init__(self, lists: Sequence[HostList]) -> None:
        self._lists = lists
        self._numbers = {one.name: number for number, one in enumerate(lists)}
        self._by_name: dict[str, Holding] = {}
        self._long: list[tuple[Holding, set[str]]] = []
        self._expected: dict[str, Holding] = {}  # with each name all above it
        self._is_full = not lists

    def filling(self) -> Iterator[None]:
        """To be gone through by who has other things to do meanwhile; questions may be asked at its end."""
        if not self._is_full:
            yield from self._steps()
            self._is_full = True
            self._expected = {}

    def expect(self, names: Iterable[str]) -> None:
        """So that questions about these are answered. Raises LookupError where a list's names are not here."""
        if self._is_full:
            return
        expected = dict.fromkeys([above for name in names for above in name_and_parents(name)], 0)
        wanted = frozenset(expected)
        for number, one in enumerate(self._lists):
            for step in one.steps():
                for name in wanted.intersection(step):
                    expected[name] |= 1 << number
        self._expected = expected

    def holding(self, name: str) -> Holding:
        """Those that hold `name`. Raises LookupError where a list's names are not here."""
        return self.holding_one_of(name_and_parents(name))

    def holding_one_of(self, names: Sequence[str]) -> Holding:
        """Those that hold a name, of which `names` are itself and all above it. Raises LookupError likewise."""
        by_name, long = self._by_name, self._long
        if not self._is_full:
            by_name, long = self._answering(names[0])
        found = 0
        if by_name:
            for name in names:
                found |= by_name.get(name, 0)
        for bit, held in long:
            if not held.isdisjoint(names):
                found |= bit
        return found

    def bit(self, list_name: str) -> Holding:
        """A list by itself. Raises KeyError."""
        return 1 << self._numbers[list_name]

    def bits(self, entries: Iterable[str]) -> Holding:
        """Those of a condition's entries that are lists. Raises KeyError."""
        return sum(self.bit(name) for name in set(entries) if is_list(name))

    def named(self, list_name: str) -> HostList:
        """Raises KeyError."""
        return self._lists[self._numbers[list_name]]

    def names_of(self, holding: Holding) -> list[str]:
        """What these lists are called."""
        return [one.name for number, one in enumerate(self._lists) if holding >> number & 1]

    def within(self, name: str, list_name: str) -> str | None:
        """By which name this list holds `name`: the nearest. None where it does not."""
        bit = self.bit(list_name)
        if not self.holding(name) & bit:
            return None
        return next(above for above in name_and_parents(name) if self.holding_one_of((above,)) & bit)

    def _answering(self, name: str) -> tuple[dict[str, Holding], list[tuple[Holding, set[str]]]]:
        """What knows about a name before all are taken in."""
        if name in self._expected:
            return self._expected, []
        for _ in self.filling():
            pass
        return self._by_name, self._long

    def _steps(self) -> Iterator[None]:
        self._by_name, self._long = {}, []
        for number, one in enumerate(self._lists):
            yield from (self._long_steps if one.count >= LONG_NAMES else self._short_steps)(1 << number, one)

    def _long_steps(self, bit: Holding, one: HostList) -> Iterator[None]:
        held: set[str] = set()
        self._long.append((bit, held))
        for names in one.steps():
            held.update(names)
            yield

    def _short_steps(self, bit: Holding, one: HostList) -> Iterator[None]:
        by_name = self._by_name
        for names in one.steps():
            for name in names:
                by_name[name] = by_name.get(name, 0) | bit
            yield
