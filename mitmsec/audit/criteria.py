"""Which events somebody asks for, and whether one event is among them. What an index answers faster, it answers alike.

    event ──► facets   kind, app, host, … each a short text, as indexes and overviews have them
          └─► words    of all that it says, for searches

`meets` is the meaning of a filter; mitmsec.audit.indexing only spares it the events that cannot meet it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from fnmatch import translate
from functools import lru_cache
from typing import Literal, get_args

from mitmsec.audit.envelope import Fields, host_of
from mitmsec.audit.event import Kind, Outcome
from mitmsec.core.model import Action, Endpoint, Severity, Value

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
GLOB_SIGNS = frozenset("*?[")
PATTERNS_KEPT = 64
UNSEARCHED = frozenset({"id", "connection", "time", "started", "session", "item"})  # each its own, and found by itself
SEARCHED_NUMBERS = frozenset({"pid", "port", "status"})


# What events are narrowed and counted by. No enum: these are looked up forty times for each event.
type Facet = Literal[
    "kind", "action", "app", "host", "address", "user", "outcome", "rule", "session", "detector", "severity"
]
FACETS: tuple[Facet, ...] = get_args(Facet.__value__)


class Filter(Value, frozen=True):
    """Which events: those that meet every criterion that is not None."""

    kind: Kind | None = None
    app: str | None = None  # part of the executable's path, or a glob over all of it; whatever its case
    host: str | None = None  # a name and what is below it, an address, or a glob over either
    action: Action | None = None
    outcome: Outcome | None = None
    rule: str | None = None  # a rule's name, or a glob over it
    session: str | None = None  # the run
    user: str | None = None  # whose program, by name
    detector: str | None = None  # of findings
    severity: Severity | None = None  # likewise
    since: datetime | None = None
    until: datetime | None = None
    text: str | None = None  # in a value, from the beginning of a word on; whatever its case
    after: int | None = None  # events behind this number
    before: int | None = None  # events in front of it
    limit: int | None = None  # the newest so many

    def named(self) -> dict[Facet, Callable[[str], bool]]:
        """What a value must be, for each facet that the filter asks about alone; `host` asks about two."""
        exact: dict[Facet, str | None] = {
            "kind": self.kind if self.kind or self.rule is None else Kind.CONNECTION,  # only they have a rule
            "action": self.action,
            "outcome": self.outcome,
            "session": self.session,
            "user": self.user,
            "detector": self.detector,
            "severity": self.severity,
        }
        tests = {facet: _is(str(wanted)) for facet, wanted in exact.items() if wanted is not None}
        if self.app is not None:
            tests["app"] = of_app(self.app)
        if self.rule is not None:
            tests["rule"] = _globbed(self.rule) if _is_glob(self.rule) else _is(self.rule)
        return tests


def parse_time(text: str, now: datetime) -> datetime:
    """An instant: RFC 3339 (without an offset: local time), or a span before `now` such as 10m or 2h.

    Raises ValueError.
    """
    number, unit = text[:-1], text[-1:]
    if unit in UNITS_S and number.isascii() and number.isdecimal():
        try:
            return now - timedelta(seconds=int(number) * UNITS_S[unit])
        except OverflowError as error:
            raise ValueError(f"{text} ago is before all dates") from error
    return datetime.fromisoformat(text).astimezone(UTC)


def stamp(instant: datetime) -> str:
    """As events have it: text that sorts."""
    return instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


# --- one event --------------------------------------------------------------------------------------------------------
def meets(event: Fields, wanted: Filter) -> bool:
    """Whether `event` is one that `wanted` asks for, `limit` apart."""
    seq = event.get("seq")
    if isinstance(seq, int) and not (
        (wanted.after is None or seq > wanted.after) and (wanted.before is None or seq < wanted.before)
    ):
        return False
    time = str(event.get("time"))
    if wanted.since is not None and time < stamp(wanted.since):
        return False
    if wanted.until is not None and time >= stamp(wanted.until):
        return False
    facets = facets_of(event)
    if not all(facet in facets and is_met(facets[facet]) for facet, is_met in wanted.named().items()):
        return False
    if wanted.host is not None and not _is_at(facets, wanted.host):
        return False
    return wanted.text is None or says(event, wanted.text)


def facets_of(event: Fields) -> dict[Facet, str]:
    """Those that it has."""
    process, remote = _mapping(event.get("process")), _mapping(event.get("remote"))
    values: dict[Facet, object] = {
        "kind": event.get("kind"),
        "action": event.get("action"),
        "app": process.get("exe") or process.get("name"),
        "host": host_of(event),
        "address": remote.get("address"),
        "user": process.get("user"),
        "outcome": event.get("outcome"),
        "rule": event.get("rule"),
        "session": event.get("session"),
        "detector": event.get("detector"),
        "severity": event.get("severity"),
    }
    return {facet: value for facet, value in values.items() if isinstance(value, str)}


def says(event: Fields, text: str) -> bool:
    """Whether some value of it has `text`, from the beginning of a word on."""
    wanted = text.casefold()
    return any(_begins_in(value.casefold(), wanted) for value in searched(event))


def searched(event: Fields) -> list[str]:
    """The values of an event that searches look at."""
    values: list[str] = []
    inner: list[object] = [event]
    while inner:  # no recursion: this is half of what it takes to index an event
        value = inner.pop()
        if isinstance(value, dict):
            for name, item in value.items():
                if isinstance(item, str):
                    if name not in UNSEARCHED:
                        values.append(item)
                elif isinstance(item, int):
                    if name in SEARCHED_NUMBERS:
                        values.append(str(item))
                elif item is not None:
                    inner.append(item)
        elif isinstance(value, list):
            inner += value
        elif isinstance(value, str):
            values.append(value)
    return values


def _begins_in(value: str, wanted: str) -> bool:
    at = value.find(wanted)
    while at > 0 and value[at - 1].isalnum() and wanted[:1].isalnum():
        at = value.find(wanted, at + 1)
    return at >= 0


# --- hosts and programs -----------------------------------------------------------------------------------------------
def of_app(wanted: str) -> Callable[[str], bool]:
    """Whether a program's path is meant."""
    if _is_glob(wanted):
        return _globbed(wanted.lower(), lower=True)
    part = wanted.lower()
    return lambda path: part in path.lower()


class HostTest(Value, frozen=True):
    """How hosts are compared with what is asked for: `is_host` with names, `is_address` with where it went."""

    is_host: Callable[[str], bool]
    is_address: Callable[[str], bool] | None


@lru_cache(PATTERNS_KEPT)
def of_host(wanted: str) -> HostTest:
    """A name means what is below it, too, an address only connections to it, and a glob either."""
    host = wanted.lower().lstrip(".")
    try:
        address = Endpoint.of(host.strip("[]"), 0).address
    except ValueError:
        if _is_glob(host):
            fits = _globbed(host)
            return HostTest(fits, fits)
        below = f".{host}"
        return HostTest(lambda name: f".{name}".lower().endswith(below), None)
    return HostTest(_is(address), _is(address))


def _is_at(facets: dict[Facet, str], wanted: str) -> bool:
    test = of_host(wanted)
    if "host" in facets and test.is_host(facets["host"]):
        return True
    return test.is_address is not None and "address" in facets and test.is_address(facets["address"])


def _is(wanted: str) -> Callable[[str], bool]:
    return lambda text: text == wanted


def _is_glob(text: str) -> bool:
    return not GLOB_SIGNS.isdisjoint(text)


def _globbed(pattern: str, *, lower: bool = False) -> Callable[[str], bool]:
    fits = _compiled(pattern).match
    return lambda text: fits(text.lower() if lower else text) is not None


@lru_cache(PATTERNS_KEPT)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(translate(pattern))


def _mapping(value: object) -> Fields:
    return value if isinstance(value, dict) else {}
