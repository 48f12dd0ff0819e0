"""Times of the week: how they are written, when they hold, and which hold whenever others do."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import policies
import pytest
from policies import HOUR_S, NOON_S

from mitmsec.core.hours import EVER, Clocks, Times, Week, covers


def at(text: str) -> float:
    """UTC, as ISO 8601 has it."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def holds(time: str, moment: str) -> bool:
    return Times([[time]], [None], policies.ZONES).rules(at(moment)) == 1


@pytest.mark.parametrize(
    ("time", "zone", "minutes"),
    [
        ("Mon-Fri 08:00-18:00", "local", 5 * 600),
        ("Sat,Sun", "local", 2 * 1440),
        ("sun-TUE", "local", 3 * 1440),
        ("Mon,Mon", "local", 1440),
        ("00:00-24:00 UTC", "UTC", 7 * 1440),
        ("22:00-6:00 Europe/Berlin", "Europe/Berlin", 7 * 480),
        ("Sun 23:00-01:00", "local", 120),
        ("Mon local", "local", 1440),
    ],
)
def test_a_time_of_the_week_has_a_zone_and_minutes(time: str, zone: str, minutes: int) -> None:
    week = Week.of(time)
    assert (week.zone, week.minutes.bit_count(), week.minutes & ~EVER) == (zone, minutes, 0)


@pytest.mark.parametrize(
    ("time", "says"),
    [
        ("", "is no time of the week"),
        ("UTC", "is no time of the week"),
        ("Monday", "is no time of the week"),
        ("Mon 08:00-18:00 UTC x", "is no time of the week"),
        ("Mon ../../etc/passwd", "is no time of the week"),
        ("Mon-Fry", '"Mon-Fry" are no days'),
        ("Mon,", '"Mon," are no days'),
        ("Mon-Tue-Wed", "are no days"),
        ("8:00-18", '"8:00-18" are no hours; write them as "08:00-18:00"'),
        ("24:00-01:00", "are no hours of a day"),
        ("08:60-09:00", "are no hours of a day"),
        ("08:00-24:01", "are no hours of a day"),
        ("08:00-08:00", "is no time at all"),
    ],
)
def test_what_is_no_time_of_the_week_is_refused_with_what_to_write(time: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Week.of(time)


@pytest.mark.parametrize(
    ("time", "moment", "is_within"),
    [
        ("Mon-Fri 08:00-18:00 UTC", "2026-01-05T08:00", True),
        ("Mon-Fri 08:00-18:00 UTC", "2026-01-05T07:59:59", False),
        ("Mon-Fri 08:00-18:00 UTC", "2026-01-05T17:59:59", True),
        ("Mon-Fri 08:00-18:00 UTC", "2026-01-05T18:00", False),
        ("Mon-Fri 08:00-18:00 UTC", "2026-01-04T12:00", False),
        ("Mon 08:00-09:00", "2026-01-05T03:30", True),  # local: five hours more
        ("Sun 22:00-06:00 UTC", "2026-01-05T05:59", True),
        ("Sun 22:00-06:00 UTC", "2026-01-05T06:00", False),
        ("Sun 22:00-06:00 UTC", "2026-01-05T22:00", False),
        ("Sun 02:30-03:00 Europe/Berlin", "2026-03-29T00:45", False),  # 01:45; the hour after is left out
        ("Sun 02:30-03:00 Europe/Berlin", "2026-03-29T01:00", False),  # 03:00
        ("Sun 02:30-03:00 Europe/Berlin", "2026-10-25T00:45", True),  # 02:45, in summer
        ("Sun 02:30-03:00 Europe/Berlin", "2026-10-25T01:15", False),  # 02:15, the second time
        ("Sun 02:30-03:00 Europe/Berlin", "2026-10-25T01:45", True),  # 02:45, the second time
        ("08:00-09:00 Europe/Berlin", "2026-07-01T06:30", True),
        ("08:00-09:00 Europe/Berlin", "2026-01-05T07:30", True),
    ],
)
def test_a_time_holds_by_the_clock_on_the_wall(time: str, moment: str, is_within: bool) -> None:
    assert holds(time, moment) is is_within


def test_rules_hold_at_their_times_and_until_they_expire() -> None:
    times = Times([[], ["Mon UTC", "Sat UTC"], ["Tue UTC"], []], [None, None, None, int(NOON_S) + 90], policies.ZONES)
    assert [times.rules(NOON_S + seconds) for seconds in (0, 60, 89, 90, 24 * HOUR_S, 0)] == [
        0b1011, 0b1011, 0b1011, 0b0011, 0b0101, 0b1011,
    ]  # fmt: skip
    assert Times([[], []], [None, None], ()).rules(NOON_S) == 0b11


@pytest.mark.parametrize(
    ("wide", "narrow", "does"),
    [
        ((), (), True),
        ((), ("Mon",), True),
        (("Mon",), (), False),
        (("Mon-Fri",), ("Tue 08:00-09:00",), True),
        (("Mon", "Tue"), ("Mon 22:00-06:00",), True),
        (("Mon",), ("Mon 22:00-06:00",), False),
        (("Mon",), ("Mon UTC",), False),
        (("00:00-24:00 UTC",), ("Mon",), True),
        (("Mon-Thu", "Fri-Sun"), ("Mon UTC",), True),
    ],
)
def test_times_that_hold_whenever_others_do_cover_them(
    wide: tuple[str, ...], narrow: tuple[str, ...], does: bool
) -> None:
    assert covers(wide, narrow) is does


def test_a_day_is_over_at_its_end_and_a_moment_at_once() -> None:
    clocks = Clocks(policies.ZONES)
    assert clocks.end_s(date(2026, 1, 5)) == at("2026-01-05T19:00")
    assert clocks.end_s(datetime(2026, 1, 5, 12, 0)) == at("2026-01-05T07:00")
    assert clocks.end_s(datetime(2026, 1, 5, 12, 0, tzinfo=timezone(timedelta(hours=1)))) == NOON_S
    with pytest.raises(ValueError, match="the calendar's last day: for a rule that does not expire leave this out"):
        clocks.end_s(date.max)


def test_what_is_no_zone_is_told() -> None:
    with pytest.raises(ValueError, match=r'time zone "x" is none: .*magic'):
        Clocks((("x", b"nonsense"),))
    with pytest.raises(ValueError, match='time zone "x" is none'):
        Clocks((("x", b"TZif2"),))
