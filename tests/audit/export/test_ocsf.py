"""OCSF: every kind of event is valid under the published schema, whatever strangers put into it."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from typing import Any

import pytest
from audit_events import connection, draft
from export_events import HERE, LATER, REAL, events
from hypothesis import given
from jsonschema import Draft202012Validator
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema

from mitmsec.audit.envelope import Fields, canonical, sealed
from mitmsec.audit.event import Outcome
from mitmsec.audit.export import ocsf
from mitmsec.audit.export.reading import Source
from mitmsec.core.model import Action


@cache
def schema() -> OcsfJsonSchemaEmbedded:
    return OcsfJsonSchemaEmbedded(get_ocsf_schema(ocsf.VERSION))


@cache
def validator(class_uid: int, profiles: tuple[str, ...]) -> Draft202012Validator:
    name = schema().lookup_class_name_from_uid(class_uid)
    return Draft202012Validator(schema().get_class_schema(name, list(profiles)))


def flaws(record: dict[str, Any]) -> list[str]:
    """What the schema has against it."""
    found = validator(record["class_uid"], tuple(record["metadata"]["profiles"])).iter_errors(record)
    return [f"{error.json_path}: {error.message}" for error in found]


def written(event: Fields, source: Source = HERE) -> dict[str, Any]:
    line = ocsf.line(event, source)
    assert b"\n" not in line
    record: dict[str, Any] = json.loads(line)
    return record


@pytest.mark.parametrize("event", [*REAL, LATER], ids=lambda event: f"{event['seq']}-{event['kind']}")
def test_every_kind_of_event_is_valid(event: Fields) -> None:
    assert flaws(written(event)) == []


@given(events())
def test_whatever_stands_in_an_event_the_schema_has_nothing_against_it(event: Fields) -> None:
    assert flaws(written(event)) == []


def test_the_oracle_refuses_what_is_not_ocsf() -> None:
    record = written(REAL[0])
    assert flaws(record | {"severity_id": "low"})
    assert flaws(record | {"mitmsec": 1})
    assert flaws({key: value for key, value in record.items() if key != "time"})


def test_each_kind_goes_to_its_class() -> None:
    classes = {(event["kind"], written(event)["class_uid"]) for event in REAL}
    assert classes == {
        ("connection", 4001), ("request", 4002), ("finding", 2006), ("finding", 2004), ("certificate", 3004),
        ("ca", 3004), ("policy", 3004), ("review", 3004), ("service", 6002), ("fault", 6008),
    }  # fmt: skip
    assert written(LATER)["class_uid"] == 0


def test_a_record_can_be_held_against_the_line_in_the_log() -> None:
    record, envelope = written(REAL[0]), canonical(REAL[0])
    assert record["raw_data_hash"]["value"] == hashlib.sha256(envelope).hexdigest()
    assert record["raw_data_size"] == len(envelope)
    assert (record["metadata"]["sequence"], record["metadata"]["uid"]) == (0, "flow-1")
    assert record["metadata"]["log_provider"] == HERE.log


def test_a_connection_says_who_to_whom_and_how_much() -> None:
    record = written(REAL[1])
    assert record["src_endpoint"] == {"ip": "127.0.0.1", "port": 40000}
    assert record["dst_endpoint"] == {"ip": "192.0.2.7", "port": 443, "hostname": "api.example.com"}
    assert record["traffic"] == {"bytes": 4620, "bytes_out": 120, "bytes_in": 4500}
    assert (record["time"] - record["start_time"], record["duration"]) == (31, 31)
    assert record["firewall_rule"] == {"name": "defaults", "desc": "no rule matched"}
    assert record["tls"]["version"] == "TLSv1.3"
    assert record["proxy_tls"] == {"version": "TLSv1.2", "cipher": "ECDHE"}
    process = record["actor"]["process"]
    assert process["file"] == {
        "name": "curl", "path": "/usr/bin/curl", "type_id": 8,
        "hashes": [{"algorithm_id": 3, "algorithm": "SHA-256", "value": "ab" * 32}],
    }  # fmt: skip
    assert process["parent_process"]["parent_process"] == {"pid": 1}
    assert record["unmapped"]["process"]["confidence"] == "kernel"


def test_of_what_came_in_the_stranger_is_the_source() -> None:
    record = next(written(event) for event in REAL if event.get("direction") == "inbound")
    assert record["src_endpoint"]["ip"] == "::2"
    assert record["dst_endpoint"] == {"ip": "::1", "port": 22}
    assert (record["traffic"]["bytes_out"], record["traffic"]["bytes_in"]) == (4500, 120)
    assert record["connection_info"]["direction_id"] == 1


@pytest.mark.parametrize(
    ("action", "outcome", "activity", "disposition"),
    [
        (Action.DECRYPT, Outcome.COMPLETED, 2, (1, 1)),
        (Action.BYPASS, Outcome.OPEN, 1, (1, 1)),
        (Action.CAPTURE, Outcome.ORIGIN_TIMEOUT, 4, (1, 17)),
        (Action.BLOCK, Outcome.BLOCKED, 3, (2, 2)),
        (Action.DECRYPT, Outcome.BLOCKED, 3, (2, 2)),
        (Action.BYPASS, Outcome.ORIGIN_REFUSED, 5, (1, 1)),
        (Action.BYPASS, Outcome.UNSEEN, 0, (1, 1)),
    ],
)
def test_the_disposition_follows_from_the_action(
    action: Action, outcome: Outcome, activity: int, disposition: tuple[int, int]
) -> None:
    record = written(sealed(draft(connection(action=action, outcome=outcome)), 1)[0])
    assert (record["activity_id"], (record["action_id"], record["disposition_id"])) == (activity, disposition)


def test_a_connection_of_whose_ends_nothing_is_known_is_valid_all_the_same() -> None:
    record = written({"kind": "connection", "local": {"port": 1}, "remote": None})
    assert record["dst_endpoint"] == {"name": "Unknown"}
    assert flaws(record) == []


def test_every_outcome_but_that_of_nothing_seen_has_its_activity() -> None:
    assert {outcome.value for outcome in Outcome} - ocsf.ACTIVITIES.keys() == {"unseen"}


def test_findings_say_what_became_of_what_was_found() -> None:
    data, malware, masked = (written(event) for event in REAL if event["kind"] == "finding")
    assert (data["action_id"], data["disposition_id"], data["severity_id"]) == (3, 19, 4)
    assert data["data_security"]["detection_pattern"] == "keywords"
    assert data["confidence_score"] == 90
    assert (malware["action_id"], malware["disposition_id"]) == (2, 3)
    assert malware["evidences"][0]["data"] == {"location": "response.body", "item": "item-1"}
    assert (masked["action_id"], masked["disposition_id"]) == (4, 11)


def test_methods_that_ocsf_does_not_know_are_kept_beside() -> None:
    known, odd = [written(event) for event in REAL if event["kind"] == "request"][:2]
    assert known["http_request"]["http_method"] == "GET"
    assert (odd["activity_id"], odd["unmapped"]["method"]) == (99, "PROPFIND")
    assert odd["http_request"]["url"] == {"url_string": "not a url"}


def test_starts_and_ends_are_told_apart() -> None:
    lives = {event["operation"]: written(event)["activity_id"] for event in REAL if event["kind"] == "service"}
    assert lives == {"run_started": 3, "switched_off": 7, "quarantined": 99}


def test_a_machine_without_a_name_is_no_device() -> None:
    assert "device" not in written(REAL[0], Source(host="", version="1"))
    assert flaws(written(REAL[0], Source(host="", version="1"))) == []
