"""How a question to the index is put: which hours, in how few rows, and which words. See mitmsec.audit.questions."""

from __future__ import annotations

from datetime import datetime

from mitmsec.audit.criteria import Filter
from mitmsec.audit.indexed import COARSE_H, HOUR_S, words_in
from mitmsec.core.model import Value

LAST_H = 1 << 40


def hours_of(wanted: Filter) -> tuple[int, int]:
    """The first and the last hour, since 1970, that it may be about."""
    first = 0 if wanted.since is None else _hour(wanted.since)
    return first, LAST_H if wanted.until is None else _hour(wanted.until)


def periods(first_h: int, last_h: int, coarse_until_h: int) -> list[tuple[int, int, int]]:
    """The hours from the first to the last as (level, first period, last period), in order, with as few as can be.

    Periods of more than an hour are only used where they end by `coarse_until_h`.
    """
    if first_h > last_h:
        return []
    for level_h in sorted(COARSE_H, reverse=True):
        begin = -(-first_h // level_h) * level_h
        end = min(last_h + 1, coarse_until_h) // level_h * level_h
        if begin < end:
            before, behind = periods(first_h, begin - 1, coarse_until_h), periods(end, last_h, coarse_until_h)
            return [*before, (level_h, begin, end - level_h), *behind]
    return [(1, first_h, last_h)]


class Words(Value, frozen=True):
    """The words of a text that is searched for, as the index has them."""

    whole: tuple[str, ...] = ()
    begun: str = ""  # the last one, which may go on


def words_of(text: str) -> Words:
    """Whatever is found by them is looked at again: they need only leave nothing out."""
    said = words_in(text)
    words = said.split()
    if not words or said[-1:] == " ":
        return Words(tuple(words))
    return Words(tuple(words[:-1]), words[-1])


def _hour(instant: datetime) -> int:
    return int(instant.timestamp() // HOUR_S)
