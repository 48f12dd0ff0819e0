"""ECS: only names that the schema has, of the types that it gives them; all else below `mitmsec`."""

from __future__ import annotations

import ipaddress
import json
import re
from typing import Any

import pytest
from export_events import HERE, LATER, REAL, events
from hypothesis import given

from mitmsec.audit.envelope import Fields
from mitmsec.audit.export import ecs
from mitmsec.audit.export.reading import Source

# Of the field reference of ECS 8.17: those that are written, with their types.
FIELDS = {
    "@timestamp": "date", "ecs.version": "keyword", "message": "keyword", "event.kind": "keyword",
    "event.category": "keywords", "event.type": "keywords", "event.dataset": "keyword", "event.module": "keyword",
    "event.provider": "keyword", "event.action": "keyword", "event.outcome": "keyword", "event.reason": "keyword",
    "event.id": "keyword", "event.sequence": "long", "event.severity": "long", "event.duration": "long",
    "event.start": "date", "event.end": "date", "host.hostname": "keyword", "observer.product": "keyword",
    "observer.vendor": "keyword", "observer.version": "keyword", "observer.type": "keyword", "process.pid": "long",
    "process.executable": "keyword", "process.name": "keyword", "process.start": "date",
    "process.hash.sha256": "keyword", "process.parent.pid": "long", "process.parent.executable": "keyword",
    "process.parent.name": "keyword", "process.parent.start": "date", "process.parent.hash.sha256": "keyword",
    "user.name": "keyword", "user.id": "keyword", "network.direction": "keyword", "network.protocol": "keyword",
    "network.transport": "keyword", "network.type": "keyword", "network.bytes": "long", "network.packets": "long",
    "url.original": "keyword", "url.scheme": "keyword", "url.domain": "keyword", "url.port": "long",
    "url.path": "keyword", "url.query": "keyword", "http.version": "keyword", "http.request.method": "keyword",
    "http.request.bytes": "long", "http.response.status_code": "long", "http.response.bytes": "long",
    "http.response.mime_type": "keyword", "tls.version": "keyword", "tls.version_protocol": "keyword",
    "tls.cipher": "keyword", "tls.curve": "keyword", "tls.next_protocol": "keyword", "tls.resumed": "boolean",
    "tls.client.server_name": "keyword", "tls.server.hash.sha256": "keyword", "rule.name": "keyword",
    "rule.description": "keyword", "error.code": "keyword", "error.message": "keyword",
    **{f"{side}.{name}": kind for side in ("source", "destination") for name, kind in (
        ("ip", "ip"), ("port", "long"), ("domain", "keyword"), ("bytes", "long"), ("packets", "long"),
    )},
}  # fmt: skip
CATEGORIES = {  # of event.category and event.type: those allowed that are used
    "configuration", "file", "intrusion_detection", "malware", "network", "process", "web",
    "access", "allowed", "change", "connection", "creation", "denied", "end", "error", "info", "start",
}  # fmt: skip
DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: value}
    return {name: leaf for key, one in value.items() for name, leaf in leaves(one, f"{path}.{key}".lstrip(".")).items()}


def is_of(kind: str, value: Any) -> bool:
    match kind:
        case "keyword":
            return isinstance(value, str)
        case "keywords":
            return isinstance(value, list) and set(value) <= CATEGORIES
        case "long":
            return type(value) is int and abs(value) < 2**63
        case "boolean":
            return isinstance(value, bool)
        case "date":
            return bool(DATE.fullmatch(value))
        case _:
            return str(ipaddress.ip_address(value)) == value


def written(event: Fields) -> dict[str, Any]:
    line = ecs.line(event, HERE)
    assert b"\n" not in line
    record: dict[str, Any] = json.loads(line)
    return record


@given(events())
def test_every_name_is_one_of_the_schema_and_has_its_type(event: Fields) -> None:
    record = written(event)
    record.pop("mitmsec")
    found = leaves(record)
    assert found.keys() <= FIELDS.keys()
    assert {name: value for name, value in found.items() if not is_of(FIELDS[name], value)} == {}


def test_a_connection() -> None:
    record = written(REAL[1])
    assert record["event"]["type"] == ["connection", "end", "allowed"]
    assert record["event"]["start"] == "2026-11-03T09:59:59.969000Z"
    assert record["source"] == {"ip": "127.0.0.1", "port": 40000, "bytes": 120}
    assert record["destination"] == {"ip": "192.0.2.7", "port": 443, "domain": "api.example.com", "bytes": 4500}
    assert (record["tls"]["version"], record["tls"]["version_protocol"]) == ("1.3", "tls")
    assert record["tls"]["server"] == {"hash": {"sha256": "cd" * 32}}
    assert record["rule"]["name"] == "defaults"
    assert record["mitmsec"]["tls"]["client"] == {"ja4": "t13d"}
    assert record["mitmsec"]["process"]["grandparent"] == {"pid": 1}


def test_what_came_in_is_ingress() -> None:
    record = next(written(event) for event in REAL if event.get("direction") == "inbound")
    assert (record["network"]["direction"], record["source"]["ip"], record["network"]["type"]) == (
        "ingress", "::2", "ipv6"
    )  # fmt: skip


def test_datagrams_are_packets() -> None:
    record = next(written(event) for event in REAL if "datagrams" in event)
    assert (record["network"]["transport"], record["network"]["packets"]) == ("udp", 7)


@pytest.mark.parametrize(
    ("kind", "outcome"), [("connection", "success"), ("request", "success"), ("fault", "failure"), ("ca", "unknown")]
)
def test_outcomes(kind: str, outcome: str) -> None:
    assert next(written(event) for event in REAL if event["kind"] == kind)["event"]["outcome"] == outcome


def test_findings_are_alerts_and_malware_is_called_so() -> None:
    categories = [written(event)["event"] for event in REAL if event["kind"] == "finding"]
    assert [(one["kind"], one["category"], one["severity"]) for one in categories] == [
        ("alert", ["intrusion_detection"], 73), ("alert", ["malware"], 47), ("alert", ["malware"], 47)
    ]  # fmt: skip


def test_a_kind_of_a_later_version_goes_out_whole() -> None:
    record = written(LATER)
    assert (record["event"]["dataset"], record["mitmsec"]["new"]) == ("mitmsec", [1])


def test_a_version_of_tls_that_is_spelt_otherwise_stays_as_it_is() -> None:
    assert written({"tls": {"client": {"version": "QUIC"}}})["tls"] == {"version": "QUIC"}


def test_a_log_without_a_name_says_none() -> None:
    assert "log" not in ecs.record(REAL[0], Source(host="h", version="1"))["mitmsec"]
