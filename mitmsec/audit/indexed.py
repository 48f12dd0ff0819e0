"""From an event to its rows in the index: what it is found by. See mitmsec.audit.index."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b

import msgspec

from mitmsec.audit.criteria import FACETS, Facet, facets_of, searched
from mitmsec.audit.envelope import Fields

NOTHING = 0  # the number of what an event does not have
KEY_CHARACTERS = 12  # 36^12 < 2^63
HOUR_S = 3600
COUNTED: tuple[Facet, ...] = ("app", "host", "rule", "outcome", "detector", "severity")
COARSE_H = (24, 168)  # how many hours a count is of, where it is not one

VOLUME_LIMIT_BYTES = 1 << 48  # of one connection; sums of them stay below 2^63
_LETTERS = bytes(byte if chr(byte).isalnum() and byte < 128 else 32 for byte in range(256))

type Naming = Callable[[str, str], int]  # facet and text to the text's number, from 1 on


class Rows(msgspec.Struct):
    """Of the index's tables, in the order of their columns."""

    found: list[tuple[int, ...]] = msgspec.field(default_factory=list)
    keys: list[tuple[int, int]] = msgspec.field(default_factory=list)
    words: list[tuple[int, str]] = msgspec.field(default_factory=list)


def rows_of(events: Iterable[tuple[int, Fields]], name: Naming) -> Rows:
    """The rows of numbered events."""
    rows = Rows()
    for seq, event in events:
        numbers = {facet: name(facet, text) for facet, text in facets_of(event).items()}
        hour = hour_of(str(event.get("time"))[:13])
        sent, received = _volume(event.get("bytes"))
        rows.found.append((seq, hour, *(numbers.get(facet, NOTHING) for facet in FACETS), sent, received))
        rows.keys += [(key, seq) for key in keys_of(event)]
        rows.words.append((seq, words_in("\n".join(searched(event)))))
    return rows


def words_in(text: str) -> str:
    """Its runs of a-z and 0-9, whatever the case, with spaces between: words as searches compare them.

    All else parts words, letters of other scripts, too: so a run that stands whole in what is searched for stands whole
    in every event that says that.
    """
    return text.casefold().encode(errors="replace").translate(_LETTERS).decode()


def keys_of(event: Fields) -> set[int]:
    """What it is found by: its own id, and its connection's."""
    return {key_of(text) for text in (event.get("id"), event.get("connection")) if isinstance(text, str)}


def key_of(text: str) -> int:
    """What an id is found by. Ids that begin with a time keep their order, so that new ones lie together."""
    text = text.removesuffix(".open")
    head = text[:KEY_CHARACTERS]
    if len(head) == KEY_CHARACTERS and head.isascii() and head.isalnum():
        return int(head, 36)
    return int.from_bytes(blake2b(text.encode(errors="replace"), digest_size=7).digest())


@lru_cache(64)
def hour_of(until_hour: str) -> int:
    """Hours since 1970, of the first 13 characters of a time in UTC; 0 of what is none."""
    try:
        return int(datetime.fromisoformat(until_hour).replace(tzinfo=UTC).timestamp() // HOUR_S)
    except (ValueError, OverflowError):
        return 0


def _volume(moved: object) -> tuple[int, int]:
    if not isinstance(moved, dict):
        return 0, 0
    return _bounded(moved.get("sent")), _bounded(moved.get("received"))


def _bounded(count: object) -> int:
    return min(max(count, 0), VOLUME_LIMIT_BYTES) if isinstance(count, int) else 0
