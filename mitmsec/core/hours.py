"""Times of the week at which a rule holds, as they are written, and the moment at which one ends.

    "Mon-Fri 08:00-18:00"    "Sat,Sun"    "22:00-06:00 Europe/Berlin"
     days     hours                       the hours behind midnight belong to the day on which they began

They are read off a clock on the wall of their zone (`local`: of this machine): in the night in which an hour comes
twice, both are meant, and one that is left out does not come. What a zone is stands in the policy itself (its TZif
data, RFC 8536), so that everybody who has the policy reads the same clock.
"""

from __future__ import annotations

import re
import struct
from bisect import bisect_right
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta, tzinfo
from io import BytesIO
from itertools import accumulate
from operator import or_

from mitmsec.core.rule_bits import Rules

LOCAL = "local"
MINUTES_A_DAY = 24 * 60
MINUTES_A_WEEK = 7 * MINUTES_A_DAY
EVER = (1 << MINUTES_A_WEEK) - 1
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_SPAN = re.compile(r"([a-z]{3})(?:-([a-z]{3}))?")
_HOURS = re.compile(r"([0-9]{1,2}):([0-9]{2})-([0-9]{1,2}):([0-9]{2})")
_ZONE = re.compile(r"[A-Za-z0-9_+-]+(?:/[A-Za-z0-9_+-]+)*")
_WANTED = 'wanted: "Mon-Fri 08:00-18:00", "Sat,Sun", "22:00-06:00 Europe/Berlin"'

type Zones = tuple[tuple[str, bytes], ...]
"""Names, and what they stand for (TZif). UTC stands for itself."""


class Week:
    """The minutes of a week, from Monday's first, at which something holds."""

    __slots__ = ("minutes", "zone")

    def __init__(self, minutes: int, zone: str) -> None:
        self.minutes, self.zone = minutes, zone

    @classmethod
    def of(cls, text: str) -> Week:
        """What a person wrote. Raises ValueError with a sentence that says what to write."""
        words = text.split()
        days = hours = None
        if words and _is_days(words[0]):
            days = _days(words.pop(0))
        if words and "-" in words[0] and ":" in words[0]:
            hours = _hours(words.pop(0))
        zone = words.pop(0) if words and (days or hours) else LOCAL
        if words or not (days or hours) or not _ZONE.fullmatch(zone):
            raise ValueError(f'"{text}" is no time of the week; {_WANTED}')
        minutes = 0
        start, length = hours or (0, MINUTES_A_DAY)
        for day in days or range(len(DAYS)):
            minutes |= ((1 << length) - 1) << (day * MINUTES_A_DAY + start)
        return cls((minutes | minutes >> MINUTES_A_WEEK) & EVER, zone)


def _is_days(word: str) -> bool:
    return word[:3].lower() in DAYS and not word[3:4].isalpha()


def _days(word: str) -> list[int]:
    days: list[int] = []
    for part in word.lower().split(","):
        span = _SPAN.fullmatch(part)
        if span is None or span[1] not in DAYS or (span[2] or span[1]) not in DAYS:
            raise ValueError(f'"{word}" are no days; write them as "Mon-Fri" or "Sat,Sun"')
        first, last = DAYS.index(span[1]), DAYS.index(span[2] or span[1])
        days += [day % 7 for day in range(first, last + (1 if last >= first else 8))]
    return days


def _hours(word: str) -> tuple[int, int]:
    """The minute of the day at which they begin, and how many there are."""
    found = _HOURS.fullmatch(word)
    if found is None:
        raise ValueError(f'"{word}" are no hours; write them as "08:00-18:00"')
    begin, end = int(found[1]) * 60 + int(found[2]), int(found[3]) * 60 + int(found[4])
    if begin >= MINUTES_A_DAY or end > MINUTES_A_DAY or int(found[2]) > 59 or int(found[4]) > 59:
        raise ValueError(f'"{word}" are no hours of a day, which has 00:00 to 24:00')
    if begin == end:
        raise ValueError(f'"{word}" is no time at all; for the whole day leave the hours out')
    return begin, (end - begin) % MINUTES_A_DAY or MINUTES_A_DAY


def covers(wide: Sequence[str], narrow: Sequence[str]) -> bool:
    """Whether one of `wide` holds whenever one of `narrow` does; both well written. None at all: always."""
    if not wide or not narrow:
        return not wide
    minutes: dict[str, int] = {}
    for week in map(Week.of, wide):
        minutes[week.zone] = minutes.get(week.zone, 0) | week.minutes
    if EVER in minutes.values():
        return True
    return all(not week.minutes & ~minutes.get(week.zone, 0) for week in map(Week.of, narrow))


class Clocks:
    """What the clocks in each zone show."""

    __slots__ = ("_zones",)

    def __init__(self, zones: Zones) -> None:
        """Raises ValueError for data that is no zone's."""
        self._zones: dict[str, tzinfo] = {"UTC": UTC}
        if not zones:
            return
        from zoneinfo import ZoneInfo  # few policies have any, and every process of a run would load it

        for name, data in zones:
            try:
                self._zones[name] = ZoneInfo.from_file(BytesIO(data), name)
            except (ValueError, struct.error) as error:
                raise ValueError(f'what this machine has as the time zone "{name}" is none: {error}') from error

    def at(self, zone: str, at_s: float) -> datetime:
        return datetime.fromtimestamp(at_s, self._zones[zone])

    def minute_of_week(self, zone: str, at_s: float) -> int:
        shown = self.at(zone, at_s)
        return shown.weekday() * MINUTES_A_DAY + shown.hour * 60 + shown.minute

    def end_s(self, written: date | datetime) -> int:
        """When it is over, as Unix seconds: a day with its last second, a moment at once; locally if not said else.

        Raises ValueError for the last day that there is.
        """
        if written == date.max:
            raise ValueError(f"{written} is the calendar's last day: for a rule that does not expire leave this out")
        if not isinstance(written, datetime):
            written = datetime.combine(written + timedelta(days=1), datetime.min.time())
        return int((written if written.tzinfo else written.replace(tzinfo=self._zones[LOCAL])).timestamp())


class Times:
    """The conditions `time` and `expires`, as each rule has them. An answer holds for a minute, and is remembered."""

    __slots__ = ("_always", "_clocks", "_ended", "_ends_s", "_from_s", "_rules", "_until_s", "_weeks")

    def __init__(self, times: Sequence[Sequence[str]], ends_s: Sequence[int | None], zones: Zones) -> None:
        self._clocks = Clocks(zones)
        self._always = sum(1 << number for number, each in enumerate(times) if not each)
        rules: dict[str, Rules] = {}
        for number, each in enumerate(times):
            for text in each:
                rules[text] = rules.get(text, 0) | 1 << number
        self._weeks = [(Week.of(text), mine) for text, mine in rules.items()]
        mortal = sorted((end_s, 1 << number) for number, end_s in enumerate(ends_s) if end_s is not None)
        self._ends_s = [end_s for end_s, _ in mortal]
        self._ended = [*accumulate((rule for _, rule in mortal), or_, initial=0)]  # after none of them, one, two
        self._from_s = self._until_s = 0  # so long the last answer holds
        self._rules: Rules = 0

    def rules(self, at_s: float) -> Rules:
        """All that hold at this moment (Unix seconds)."""
        if not self._from_s <= at_s < self._until_s:
            self._find(at_s)
        return self._rules

    def _find(self, at_s: float) -> None:
        ended = bisect_right(self._ends_s, at_s)
        minute_s = int(at_s // 60) * 60
        self._from_s = max([minute_s, *self._ends_s[:ended][-1:]])
        self._until_s = min([minute_s + 60, *self._ends_s[ended : ended + 1]])
        self._rules = self._always
        for week, rules in self._weeks:
            if week.minutes >> self._clocks.minute_of_week(week.zone, at_s) & 1:
                self._rules |= rules
        self._rules &= ~self._ended[ended]
