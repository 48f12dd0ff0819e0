"""Further files of a bundle: as `audit export` writes them."""

from __future__ import annotations

import csv
import io

import msgspec
from audit_events import connection, draft, finding

from mitmsec.audit.envelope import sealed
from mitmsec.service.bundle_formats import FORMATS

EVENTS = [sealed(draft(seen), seq)[0] for seq, seen in enumerate((connection(), finding()))]


def test_each_format_has_a_line_for_every_event() -> None:
    assert [(form.name, form.file) for form in FORMATS] == [
        ("csv", "events.csv"),
        ("ocsf", "events.ocsf.jsonl"),
        ("ecs", "events.ecs.jsonl"),
    ]
    as_csv, *as_json = (form.written(EVENTS) for form in FORMATS)
    rows = list(csv.DictReader(io.StringIO(as_csv.decode(), newline="")))
    assert [row["id"] for row in rows] == [event["id"] for event in EVENTS]
    for content in as_json:
        assert len([msgspec.json.decode(line) for line in content.splitlines()]) == 2
