"""How a question to the index is put: which hours, in how few rows, and which words. See mitmsec.audit.questions."""

from __future__ import annotations

import re
from datetime import datetime

from mitmsec.audit.criteria import Filter
from mitmsec.audit.indexed import COARSE_H, HOUR_S
from mitmsec.core.model import Value

WORD = re.compile(r"[^\W_]+")
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
    """The words of a text that is searched for. Those that FTS5 may fold in another way than we do are left out."""

    whole: tuple[str, ...] = ()
    begun: str = ""  # the last one, which may go on


def words_of(text: str) -> Words:
    """Whatever is found by them is looked at again: they need only leave nothing out."""
    found = [(word[0].lower(), word.end() == len(text)) for word in WORD.finditer(text) if word[0].isascii()]
    begun = next((word for word, is_last in found if is_last), "")
    return Words(tuple(word for word, is_last in found if not is_last), begun)


def _hour(instant: datetime) -> int:
    return int(instant.timestamp() // HOUR_S)
