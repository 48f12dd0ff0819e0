"""OCSF 1.8.0 (Open Cybersecurity Schema Framework), as SIEMs and security lakes take it: one JSON object an event.

    connection  ► 4001 Network Activity          certificate ┐
    request     ► 4002 HTTP Activity             ca, policy  ├► 3004 Entity Management
    finding     ► 2006 Data Security Finding     review      ┘
                  2004 Detection Finding         service      ► 6002 Application Lifecycle
    any other   ► 0 Base Event                   fault        ► 6008 Application Error

`raw_data_hash` is the SHA-256 of the event's line in the log, so that one can be held against the other. What has no
place in OCSF stands in `unmapped`, under its own name. The tests validate every kind against the schema.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from mitmsec.audit.envelope import Fields, canonical
from mitmsec.audit.export import ocsf_objects as objects
from mitmsec.audit.export.reading import (
    OPEN,
    Source,
    began,
    host,
    item,
    made,
    number,
    pruned,
    since_1970_ms,
    summary,
    text,
    texts,
    time_ms,
    was_blocked,
)

VERSION = "1.8.0"
NETWORK, HTTP, DATA_FINDING, DETECTION, ENTITY, LIFECYCLE, ERROR, BASE = 4001, 4002, 2006, 2004, 3004, 6002, 6008, 0
OTHER = 99
MAPPED = frozenset(  # what has its place in OCSF
    {"bytes", "connection", "content_type", "count", "datagrams", "detector", "direction", "duration_ms", "error", "id"}
    | {"kind", "local", "names", "not_after", "operation", "outcome", "path", "protocol", "reason", "remote"}
    | {"request_bytes", "response_bytes", "rule", "seq", "serial", "severity", "status", "subject", "summary", "time"}
    | {"url", "user", "what", "detail", "host", "http_version", "flaw", "item", "policy", "sha256"}
)
ATTRIBUTION = ("claimed_exe", "confidence", "container", "package", "services", "signer", "source", "unit")  # likewise

# What an outcome is among a connection's activities; a middle device's end is a reset.
OPENED, CLOSED, RESET, FAILED, REFUSED = 1, 2, 3, 4, 5
ACTIVITIES = {
    "blocked": RESET, "client_closed": CLOSED, "client_rejected": FAILED, "completed": CLOSED, "cut": RESET,
    "fault": FAILED, "malformed": FAILED, "open": OPENED, "origin_certificate": FAILED, "origin_refused": REFUSED,
    "origin_reset": RESET, "origin_timeout": FAILED, "origin_unreachable": FAILED, "stranger": RESET,
}  # fmt: skip
SUCCESSES = frozenset({"completed", "open", "client_closed"})
METHODS = {
    "CONNECT": 1, "DELETE": 2, "GET": 3, "HEAD": 4, "OPTIONS": 5, "POST": 6, "PUT": 7, "TRACE": 8, "PATCH": 9,
}  # fmt: skip
INFORMATIONAL, LOW, MEDIUM, HIGH = 1, 2, 3, 4
SEVERITIES = {"info": INFORMATIONAL, "low": LOW, "medium": MEDIUM, "high": HIGH}
ALLOWED, DENIED, OBSERVED, MODIFIED = 1, 2, 3, 4
# action_id, disposition_id
PASSED, KEPT, STOPPED = (ALLOWED, 1), (ALLOWED, 17), (DENIED, 2)
VERDICTS = {"alert": (OBSERVED, 19), "redact": (MODIFIED, 11), "block": STOPPED, "quarantine": (DENIED, 3)}
ABOUT_DATA = frozenset({"iban", "keywords", "national_id", "payment_card", "secrets"})
CREATE, READ, UPDATE, DELETE, ACTIVATE = 1, 2, 3, 4, 10
CA_ACTIVITIES = {"created": CREATE, "initialised": CREATE, "imported": CREATE, "removed": DELETE}
POLICY_ENTITY = 5
STARTED, ENDED, ENABLED, DISABLED = 3, 4, 6, 7
LIFE = {"started": STARTED, "stopped": ENDED, "ended": ENDED, "switched_on": ENABLED, "switched_off": DISABLED}


def line(event: Fields, source: Source) -> bytes:
    """`event` as JSON, without the end of the line."""
    return msgspec.json.encode(record(event, source))


def record(event: Fields, source: Source) -> Fields:
    """`event` as an OCSF event."""
    match text(event, "kind"):
        case "connection":
            return _common(event, source, NETWORK, *_connection(event))
        case "request":
            return _common(event, source, HTTP, *_request(event))
        case "finding":
            is_data = text(event, "detector") in ABOUT_DATA
            return _common(event, source, DATA_FINDING if is_data else DETECTION, *_finding(event, is_data=is_data))
        case "certificate" | "ca" | "policy" | "review":
            return _common(event, source, ENTITY, *_entity(event))
        case "service":
            return _common(event, source, LIFECYCLE, *_service(event, source))
        case "fault":
            return _common(event, source, ERROR, *_fault(event))
        case _:
            return _common(event, source, BASE, OTHER, {})


def _common(event: Fields, source: Source, class_uid: int, activity: int, own: Fields) -> Fields:
    profiles = ["host", "security_control", *(["network_proxy"] if "proxy_tls" in own else [])]
    envelope = canonical(event)
    action, disposition = _disposition(event)
    return {
        "category_uid": class_uid // 1000,
        "class_uid": class_uid,
        "activity_id": activity,
        "type_uid": class_uid * 100 + activity,
        "severity_id": _severity(event),
        "time": time_ms(event, "time"),
        "message": summary(event),
        "metadata": _metadata(event, source, profiles),
        "raw_data_hash": {"algorithm_id": objects.SHA_256, "value": hashlib.sha256(envelope).hexdigest()},
        "raw_data_size": len(envelope),
        "action_id": action,
        "disposition_id": disposition,
        **made(
            actor=objects.actor(event),
            device={"hostname": source.host, "type_id": objects.UNKNOWN_DEVICE} if source.host else None,
            count=number(event, "count"),
            unmapped=_unmapped(event),
        ),
        **own,
    }


def _unmapped(event: Fields) -> Fields:
    """What has no place of its own, under its own name."""
    process = event.get("process")
    rest = {key: value for key, value in event.items() if key not in MAPPED and key != "process"}
    if isinstance(process, dict):
        rest["process"] = {key: process.get(key) for key in ATTRIBUTION}
    return pruned(rest)  # type: ignore[no-any-return]


def _metadata(event: Fields, source: Source, profiles: list[str]) -> Fields:
    return made(
        version=VERSION,
        product={"name": "mitmsec", "vendor_name": "mitmsec", "version": source.version},
        profiles=profiles,
        uid=text(event, "id"),
        correlation_uid=text(event, "connection"),
        sequence=number(event, "seq"),
        original_time=text(event, "time"),
        log_provider=source.log,
    )


def _severity(event: Fields) -> int:
    match text(event, "kind"):
        case "finding":
            return SEVERITIES.get(text(event, "severity") or "", 0)
        case "fault":
            return MEDIUM
        case _:
            return LOW if was_blocked(event) else INFORMATIONAL


def _disposition(event: Fields) -> tuple[int, int]:
    """What was done with it: action and disposition of the profile security_control."""
    if (verdict := VERDICTS.get(text(event, "verdict") or "")) is not None:
        return verdict
    if was_blocked(event) or text(event, "failed") == "closed":
        return STOPPED
    match text(event, "action"):
        case "capture":
            return KEPT
        case None:
            return PASSED if text(event, "kind") == "request" else (OBSERVED, 17)
        case _:
            return PASSED


# --- by kind: the activity, and what only this class has --------------------------------------------------------------
def _connection(event: Fields) -> tuple[int, Fields]:
    outcome = text(event, "outcome") or ""
    own = made(
        **objects.endpoints(event),
        connection_info=objects.connection_info(event),
        traffic=objects.traffic(event),
        duration=number(event, "duration_ms"),
        start_time=since_1970_ms(began(event)),
        end_time=None if outcome == OPEN else time_ms(event, "time"),
        app_protocol_name=text(event, "protocol"),
        tls=objects.client_tls(event),
        proxy_tls=objects.server_tls(event),
        ja4_fingerprint_list=objects.ja4(event),
        firewall_rule=made(name=text(event, "rule"), desc=text(event, "reason")) if text(event, "rule") else None,
        policy=made(uid=text(event, "policy")),
        status_id=1 if outcome in SUCCESSES else 2,
        status_code=outcome,
        status_detail=text(event, "error"),
    )
    if not own.keys() & {"src_endpoint", "dst_endpoint"}:
        own["dst_endpoint"] = {"name": objects.UNKNOWN}  # the schema wants one
    return ACTIVITIES.get(outcome, 0), own


def _request(event: Fields) -> tuple[int, Fields]:
    method, status = text(event, "method") or "", number(event, "status")
    return METHODS.get(method, OTHER), made(
        http_response=None if status is None else made(
            code=status, length=number(event, "response_bytes"), content_type=text(event, "content_type")
        ),
        dst_endpoint=made(hostname=host(event)),
        connection_info=objects.connection_info(event),
        status_code=text(event, "outcome"),
    ) | {
        "http_request": made(
            http_method=method if method in METHODS else None,
            url=objects.url(event),
            version=text(event, "http_version"),
            length=number(event, "request_bytes"),
        ),
    }  # fmt: skip


def _finding(event: Fields, *, is_data: bool) -> tuple[int, Fields]:
    detector, score = text(event, "detector") or objects.UNKNOWN, item(event, "confidence")
    found = made(evidence=text(event, "evidence"), location=text(event, "location"), item=text(event, "item"))
    own = made(
        finding_info=made(
            uid=text(event, "id") or objects.UNKNOWN,
            title=text(event, "summary") or detector,
            types=[detector],
            analytic={"name": detector, "type_id": 1},
            created_time=time_ms(event, "time"),
        ),
        confidence_score=round(min(max(score, 0), 1) * 100) if isinstance(score, int | float) else None,
        status_id=1,
        is_alert=True,
    )
    evidence = made(data=found, dst_endpoint=made(hostname=host(event)))
    if is_data:
        data = {"data_lifecycle_state_id": 2, "detection_system_id": 1, "detection_pattern": detector}
        return CREATE, own | made(data_security=data, dst_endpoint=made(hostname=host(event)))
    return CREATE, own | made(evidences=[evidence] if evidence else [])


def _entity(event: Fields) -> tuple[int, Fields]:
    kind = text(event, "kind")
    if kind == "certificate":
        names = texts(event, "names")
        data = made(names=names, not_after=text(event, "not_after"), flaw=text(event, "flaw"))
        return CREATE, _managed("certificate", next(iter(names), None), text(event, "serial"), data)
    if kind == "policy":
        own = _managed("policy", text(event, "path"), text(event, "policy"), made(sha256=text(event, "sha256")))
        return ACTIVATE, {"entity": own["entity"] | {"type_id": POLICY_ENTITY}}
    operation = text(event, "operation")
    if kind == "review":
        return READ, _managed("quarantined content", text(event, "item"), None, {}) | made(comment=operation)
    data = made(not_after=text(event, "not_after"), detail=text(event, "detail"))
    own = _managed("certificate authority", text(event, "subject"), text(event, "sha256"), data)
    return CA_ACTIVITIES.get(operation or "", UPDATE), own | made(comment=operation)


def _managed(what: str, name: str | None, uid: str | None, data: Any) -> Fields:
    return {"entity": made(type=what, type_id=OTHER, name=name or what, uid=uid, data=data)}


def _service(event: Fields, source: Source) -> tuple[int, Fields]:
    operation = text(event, "operation") or ""
    activity = LIFE.get(operation) or LIFE.get(operation.rpartition("_")[2], OTHER)
    return activity, made(
        app={"name": "mitmsec", "vendor_name": "mitmsec", "version": source.version},
        activity_name=operation,
        status_detail=text(event, "detail"),
    )


def _fault(event: Fields) -> tuple[int, Fields]:
    return 1, made(status_id=2, status_code=text(event, "what"), status_detail=text(event, "detail"))
