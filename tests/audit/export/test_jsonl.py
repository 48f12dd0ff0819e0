"""JSON Lines: exactly the line whose hash is in the tree."""

from __future__ import annotations

import json

from audit_events import draft, request
from export_events import HERE, events
from hypothesis import given

from mitmsec.audit.envelope import Fields, sealed
from mitmsec.audit.export import jsonl


def test_a_line_is_the_event_as_it_is_in_the_log() -> None:
    event, envelope = sealed(draft(request()), 7)
    assert jsonl.line(event, HERE) == envelope


@given(events())
def test_a_line_is_one_line_and_json(event: Fields) -> None:
    line = jsonl.line(event, HERE)
    assert b"\n" not in line
    assert json.loads(line) == json.loads(json.dumps(event))
