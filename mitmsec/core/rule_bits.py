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

from mitmsec.core.selector import host_patterns, merged, networks, parse_address, text_matches
from mitmsec.core.units import is_glob

REMEMBERED = 4096  # values of one condition; then all are forgotten: a bound, not a cache to tune

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
        self._by_word: dict[Word, Rules] = {}
        for number, words in enumerate(written):
            bit = 1 << number  # one object, however many words it stands for
            for word in words:
                known = self._by_word.get(word)
                self._by_word[word] = bit if known is None else known | bit

    def rules(self, word: Word | None) -> Rules:
        return self._free if word is None else self._free | self._by_word.get(word, 0)


class Hosts:
    """A condition on names."""

    __slots__ = ("_by_pattern", "_free")

    def __init__(self, written: Sequence[Sequence[str]]) -> None:
        self._by_pattern = Words(written)
        self._free = free(written)

    def rules(self, name: str | None) -> Rules:
        found = self._free
        if name is not None:
            for pattern in host_patterns(name):
                found |= self._by_pattern.rules(pattern)
        return found


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
        known = self._known.get(address)
        if known is None:
            _make_room(self._known)
            known = self._known[address] = self._find(address)
        return known

    def _find(self, text: str) -> Rules:
        address, found = parse_address(text), self._free
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
            _make_room(self._known)
            known = self._known[shown] = self._find(shown)
        return known

    def _find(self, shown: tuple[str, ...]) -> Rules:
        found = self._free
        for text in shown:
            found |= self._words.rules(text)
            for glob, rules in self._globs:
                if text_matches(glob, text):
                    found |= rules
        return found


def _make_room[Value](known: dict[Value, Rules]) -> None:
    if len(known) >= REMEMBERED:
        known.clear()
