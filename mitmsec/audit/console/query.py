"""What a page is asked to show, as it stands in its address: filters that can be shared, and taken off one by one."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from urllib.parse import urlencode

from msgspec import field
from msgspec.structs import replace

from mitmsec.audit.criteria import Filter, parse_time
from mitmsec.audit.event import Kind, Outcome
from mitmsec.audit.overview import Among
from mitmsec.core.model import Action, Severity, Value

TEXT_LIMIT_CHARACTERS = 500
WORDS = ("app", "host", "rule", "session", "text")
CHOICES: dict[str, type[StrEnum]] = {"kind": Kind, "action": Action, "outcome": Outcome, "severity": Severity}
TIMES = ("since", "until")
NAMES = ("text", "app", "host", "action", "kind", "outcome", "rule", "severity", "detector", "session", *TIMES)


class Chip(Value, frozen=True):
    """A filter that is on, and the address without it."""

    name: str
    value: str
    without: str


class Query(Value, frozen=True):
    """Filters by name, in the order of NAMES; what could not be read stands in `wrong`."""

    given: dict[str, str] = field(default_factory=dict)
    wrong: tuple[str, ...] = ()

    def address(self, path: str, **changed: str | None) -> str:
        """`path` with these filters, of which some are other ones, or (None) off."""
        given = {**self.given, **changed}
        known = [name for name in NAMES if name in given]
        pairs = [(name, value) for name in (*known, *(sorted(given.keys() - set(NAMES)))) if (value := given[name])]
        return f"{path}?{urlencode(pairs)}" if pairs else path

    def chips(self, path: str) -> list[Chip]:
        return [
            Chip(name=name, value=value, without=self.address(path, **{name: None}))
            for name, value in self.given.items()
        ]

    def among(self) -> Among:
        return Among(detector=self.given.get("detector"), severity=self.given.get("severity"))

    def filter(self, now: datetime) -> Filter:
        """Raises nothing: what is no filter was left out by `read`."""
        given = self.given
        words = {name: given.get(name) for name in WORDS}
        wanted = replace(Filter(), **words)
        for name, kind in CHOICES.items():
            if name in given and name != "severity":
                wanted = replace(wanted, **{name: kind(given[name])})
        for name in TIMES:
            if name in given:
                wanted = replace(wanted, **{name: _instant(given[name], now)})
        if wanted.kind is None and ("severity" in given or "detector" in given):
            wanted = replace(wanted, kind=Kind.FINDING)
        return wanted


def read(pairs: Iterable[tuple[str, str]], now: datetime) -> Query:
    """The filters of an address; other names in it are no business of this."""
    last = {name: value.strip()[:TEXT_LIMIT_CHARACTERS] for name, value in pairs if name in NAMES and value.strip()}
    given = {name: last[name] for name in NAMES if name in last}
    wrong = tuple(name for name, value in given.items() if not _is_read(name, value, now))
    return Query(given={name: value for name, value in given.items() if name not in wrong}, wrong=wrong)


def _is_read(name: str, value: str, now: datetime) -> bool:
    try:
        if name in CHOICES:
            CHOICES[name](value)
        elif name in TIMES:
            _instant(value, now)
    except (ValueError, OverflowError):
        return False
    return True


def _instant(text: str, now: datetime) -> datetime:
    instant = parse_time(text, now)
    return instant if instant.tzinfo is not None else instant.replace(tzinfo=UTC)
