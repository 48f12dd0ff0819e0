"""Does one rule take every name that another takes? By patterns, and by lists that may hold a million names.

A list within a list is found by the names themselves, once for each pair that is asked about. An answer errs to "no".
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from mitmsec.core.host_lists import Holding, Listed, is_list
from mitmsec.core.names import parents
from mitmsec.core.rules import Rule
from mitmsec.core.selector import host_covers, host_patterns


class CoveredNames:
    """Answers for the rules of one policy."""

    def __init__(self, lists: Listed) -> None:
        self._lists = lists
        self._known: dict[tuple[str, frozenset[str], Holding], bool] = {}

    def expect(self, rules: Iterable[Rule]) -> None:
        """These will be asked about, though not whether one list lies within another: long lists cost less so."""
        entries = {entry for rule in rules for entry in (*rule.host, *rule.categories)}
        self._lists.expect([self._suffix(entry) for entry in entries])

    def covers(self, wide: Rule, narrow: Rule) -> bool:
        """Whether every name that fulfils `narrow`'s conditions on it fulfils `wide`'s."""
        return all(
            not written or any(self.all_within(each, written) for each in (narrow.host, narrow.categories) if each)
            for written in (wide.host, wide.categories)
        )

    def clues(self, rule: Rule) -> Iterator[str]:
        """Of rules that cover this one and have a condition on names, each has one of these written there."""
        for written in (rule.host, rule.categories):
            if written:
                yield from self._clues(written[0])

    def count(self, entries: Collection[str]) -> int:
        """How many patterns and names of lists these entries are."""
        return sum(self._lists.named(entry).count if is_list(entry) else 1 for entry in entries)

    def spelt(self, entries: Collection[str]) -> Iterator[str]:
        """Patterns, and `.name` for a name of a list and all below it."""
        for entry in entries:
            if is_list(entry):
                yield from (f".{name}" for name in self._lists.named(entry).names())
            else:
                yield entry

    def _clues(self, entry: str) -> Iterator[str]:
        suffix = self._suffix(entry)
        if is_list(entry):
            yield entry
        yield f"*.{suffix}"
        yield from host_patterns(suffix)
        yield from self._lists.names_of(self._lists.holding(suffix))

    def _suffix(self, entry: str) -> str:
        """What stands behind the star of a pattern; of a list the first name."""
        return next(self._lists.named(entry).names(), "") if is_list(entry) else entry.removeprefix("*.")

    def all_within(self, narrow: Collection[str], wide: Collection[str]) -> bool:
        """Whether the entries `wide`, patterns and lists, take every name that the others do."""
        patterns = frozenset(entry for entry in wide if not is_list(entry))
        lists = self._lists.bits(wide)
        return all(self._is_within(entry, patterns, lists) for entry in narrow)

    def _is_within(self, entry: str, patterns: frozenset[str], lists: Holding) -> bool:
        if not is_list(entry):
            return bool(self._lists.holding(entry.removeprefix("*.")) & lists) or host_covers(patterns, entry)
        if self._lists.bit(entry) & lists:
            return True
        key = entry, patterns, lists
        if key not in self._known:
            names = self._lists.named(entry).names()
            self._known[key] = all(self._is_all_within(name, patterns, lists) for name in names)
        return self._known[key]

    def _is_all_within(self, name: str, patterns: frozenset[str], lists: Holding) -> bool:
        """Whether the name is, and everything below it."""
        if self._lists.holding(name) & lists or any(f"*.{parent}" in patterns for parent in parents(name)):
            return True
        return f"*.{name}" in patterns and name in patterns
