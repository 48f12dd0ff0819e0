"""Programs and what they have connected to, gathered from the log's connection events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from mitmsec.service.audit_table import destination

type Event = Mapping[str, Any]


class Destination(msgspec.Struct):
    """Connections of one program that look alike: how many, and what they carried together."""

    direction: str
    where: str
    action: str
    outcome: str
    count: int = 0
    sent_bytes: int | None = None  # None: of none of them is it known (UDP)
    received_bytes: int | None = None
    last: str = ""


class App(msgspec.Struct):
    """One program in one process, as far as its owner is known: `source` and `confidence` say how."""

    process: Event
    destinations: dict[tuple[str, str, str, str], Destination] = msgspec.field(default_factory=dict)
    last: str = ""

    @property
    def connections(self) -> int:
        return sum(destination.count for destination in self.destinations.values())


def gathered(events: Iterable[Event]) -> list[App]:
    """The programs of these connection events, who was heard of last standing last.

    A connection that was on record while it lived counts once, as it ended.
    """
    newest: dict[str, Event] = {}
    for event in events:
        newest.pop(event["connection"], None)
        newest[event["connection"]] = event
    apps: dict[tuple[object, ...], App] = {}
    for event in newest.values():
        process = event["process"]
        key = (process["pid"], process["started"], process["exe"], process["name"], process["confidence"])
        app = apps.pop(key, None) or App(process)
        apps[key] = app  # anew at the end
        _add(app, event)
    return list(apps.values())


def _add(app: App, event: Event) -> None:
    key = (event["direction"], destination(event), event["action"], event["outcome"])
    known = app.destinations.setdefault(key, Destination(*key))
    known.count += 1
    if (carried := event.get("bytes")) is not None:
        known.sent_bytes = (known.sent_bytes or 0) + carried["sent"]
        known.received_bytes = (known.received_bytes or 0) + carried["received"]
    known.last = app.last = event["time"]
