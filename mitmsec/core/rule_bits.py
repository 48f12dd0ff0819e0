"""Rules as bits: which rules does a value let through, as far as one condition is concerned?

    port 443 ──► 0b1101          bit n is rule n; a rule without the condition has its bit in every answer
    address  ──► 0b0111
                 ──────  and
                 0b0101  ──► the lowest bit is the first rule

Whatever the number of rules, an answer is a look-up or two. What a peer can choose freely is remembered within a bound.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from operator import or_

from mitmsec.core.host_lists import Holding, Listed
from mitmsec.core.selector import merged, networks, parse_address, text_matches
from mitmsec.core.units import is_glob

REMEMBERED = 4096  # values of one condition; then all are forgotten: a bound, not a cache to tune
SHORT_TEXTS, SHORT_CHARACTERS = 16, 256

type Rules = int


def lowest(rules: Rules) -> int | None:
    """The number of the first rule."""
    return (rules & -rules).bit_length() - 1 if rules else None


def numbers(rules: Rules) -> Iterator[int]:
    """All of them, in order."""
    while rules:
        first = rules & -rules
        yield first.bit_length() - 1
        rules ^= first


def free(written: Iterable[Sequence[object]]) -> Rules:
    """The rules that have no such condition."""
    return sum(1 << number for number, values in enumerate(written) if not values)


def _by_value[Word](written: Sequence[Sequence[Word]]) -> dict[Word, Rules]:
    found: dict[Word, Rules] = {}
    for number, words in enumerate(written):
        bit = 1 << number  # one object, however many words it stands for
        for word in words:
            known = found.get(word)
            found[word] = bit if known is None else known | bit
    return found


class Ports:
    """A condition on ports, as each rule has it."""

    __slots__ = ("_from", "_rules")

    def __init__(self, written: Sequence[Sequence[tuple[int, int]]]) -> None:
        turns: dict[int, Rules] = {0: 0}  # at these ports these rules begin or end
        for number, ranges in enumerate(written):
            for low, high in merged(ranges):
                for port in (low, high + 1):
                    turns[port] = turns.get(port, 0) ^ (1 << number)
        self._from = sorted(turns)
        self._rules: list[Rules] = []
        rules = free(written)
        for port in self._from:
            rules ^= turns[port]
            self._rules.append(rules)

    def rules(self, port: int) -> Rules:
        return self._rules[bisect_right(self._from, port) - 1]


class Words[Word]:
    """A condition that holds for the values that are written, and no others. None: not known, and fulfils nothing."""

    __slots__ = ("_by_word", "_free")

    def __init__(self, written: Sequence[Sequence[Word]]) -> None:
        self._free = free(written)
        self._by_word = {word: self._free | rules for word, rules in _by_value(written).items()}

    def rules(self, word: Word | None) -> Rules:
        return self._free if word is None else self._by_word.get(word, self._free)


class Listings:
    """A condition that holds for what one of the lists holds whose names are written."""

    __slots__ = ("_by_list", "_free", "_known", "_lists")

    def __init__(self, written: Sequence[Sequence[str]], lists: Listed) -> None:
        self._free = free(written)
        self._by_list = Words(written)
        self._lists = lists
        self._known: dict[Holding, Rules] = {0: self._free}

    def rules(self, holding: Holding) -> Rules:
        known = self._known.get(holding)
        if known is None:
            make_room(self._known)
            known = self._known[holding] = self._find(holding)
        return known

    def _find(self, holding: Holding) -> Rules:
        return reduce(or_, map(self._by_list.rules, self._lists.names_of(holding)), self._free)


class Hosts:
    """A condition on names: patterns, and lists that hold them."""

    __slots__ = ("_below", "_exact", "_listings", "_written")

    def __init__(self, written: Sequence[Sequence[str]], lists: Listed) -> None:
        self._listings = Listings(written, lists)
        self._exact: dict[str, Rules] = {}
        self._below: dict[str, Rules] = {}  # by what stands behind "*."
        for number, patterns in enumerate(written):
            for pattern in patterns:
                those, name = (self._below, pattern[2:]) if pattern.startswith("*.") else (self._exact, pattern)
                those[name] = those.get(name, 0) | 1 << number
        self._written = frozenset([*self._exact, *self._below])

    def rules(self, names: Sequence[str], holding: Holding) -> Rules:
        """`names`: one, and those above it; none at all where there is no name. `holding`: which lists hold it."""
        found = self._listings.rules(holding)
        if self._written.isdisjoint(names):  # nearly always
            return found
        return reduce(or_, [self._below.get(name, 0) for name in names[1:]], found | self._exact.get(names[0], 0))


class Addresses:
    """A condition on addresses: a look-up for each length of a prefix that is in use."""

    __slots__ = ("_by_prefix", "_free", "_known")

    def __init__(self, written: Sequence[Sequence[str]]) -> None:
        self._free = free(written)
        self._by_prefix: dict[tuple[int, int], dict[int, Rules]] = {}  # version, bits behind it → prefix → rules
        self._known: dict[str, Rules] = {}
        for number, each in enumerate(written):
            for network in networks(each):
                behind = network.max_prefixlen - network.prefixlen
                prefixes = self._by_prefix.setdefault((network.version, behind), {})
                prefix = int(network.network_address) >> behind
                prefixes[prefix] = prefixes.get(prefix, 0) | 1 << number

    def rules(self, address: str) -> Rules:
        if not self._by_prefix:
            return self._free
        known = self._known.get(address)
        if known is None:
            make_room(self._known)
            known = self._known[address] = self._find(address)
        return known

    def _find(self, text: str) -> Rules:
        found = self._free
        address = parse_address(text)
        if address is not None:
            value = int(address)
            for (version, behind), prefixes in self._by_prefix.items():
                if version == address.version:
                    found |= prefixes.get(value >> behind, 0)
        return found


class Globs:
    """A condition that holds if one of the texts that are shown matches one of the globs."""

    __slots__ = ("_free", "_globs", "_known", "_words")

    def __init__(self, written: Sequence[Sequence[str]]) -> None:
        self._free = free(written)
        self._words = Words(written)  # a glob among them is a text that itself matches
        globs = {text for each in written for text in each if is_glob(text)}
        self._globs = [(glob, self._words.rules(glob)) for glob in globs]
        self._known: dict[tuple[str, ...], Rules] = {}

    def rules(self, shown: tuple[str, ...]) -> Rules:
        known = self._known.get(shown)
        if known is None:
            known = self._find(shown)
            if is_short(shown):
                make_room(self._known)
                self._known[shown] = known
        return known

    def _find(self, shown: tuple[str, ...]) -> Rules:
        found = self._free
        for text in shown:
            found |= self._words.rules(text)
            for glob, rules in self._globs:
                if text_matches(glob, text):
                    found |= rules
        return found


def is_short(shown: tuple[str, ...]) -> bool:
    """Of what a client offers: short enough to be remembered. It may offer thousands, and others each time."""
    return len(shown) <= SHORT_TEXTS and sum(map(len, shown)) <= SHORT_CHARACTERS


def make_room[Value](known: dict[Value, Rules]) -> None:
    """For another value that is to be remembered."""
    if len(known) >= REMEMBERED:
        known.clear()
