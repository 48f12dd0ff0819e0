"""Elastic Common Schema 8.17: one JSON object an event, for Elasticsearch and what reads its fields.

Field names are ECS's own; what has none stands below `mitmsec`, under the name that it has in the log.
"""

from __future__ import annotations

from typing import Any

import msgspec

from mitmsec.audit.envelope import Fields
from mitmsec.audit.export.reading import (
    OPEN,
    Source,
    address,
    began,
    host,
    is_inbound,
    item,
    made,
    number,
    port,
    pruned,
    split_url,
    stamp,
    summary,
    text,
    texts,
    transport,
    was_blocked,
    written,
)

VERSION = "8.17.0"
MAPPED = frozenset(
    {"bytes", "content_type", "datagrams", "direction", "duration_ms", "id", "kind", "local", "method", "process"}
    | {"protocol", "reason", "remote", "request_bytes", "response_bytes", "rule", "seq", "status", "time", "url"}
    | {"error", "host", "http_version", "tls", "user"}
)
MAPPED_OF_PROCESS = frozenset({"exe", "name", "parent", "pid", "sha256", "started", "uid", "user"})
NS_PER_MS = 1_000_000
# kind → event.category, event.type
CATEGORIES: dict[str, tuple[list[str], list[str]]] = {
    "connection": (["network"], ["connection"]),
    "request": (["web", "network"], ["access"]),
    "finding": (["intrusion_detection"], ["info"]),
    "certificate": (["configuration"], ["creation"]),
    "ca": (["configuration"], ["change"]),
    "policy": (["configuration"], ["change"]),
    "review": (["file"], ["access"]),
    "service": (["process"], ["info"]),
    "fault": (["process"], ["error"]),
}
MALWARE = frozenset({"malware", "yara", "icap"})
SEVERITIES = {"info": 10, "low": 21, "medium": 47, "high": 73}  # as Elastic's rules have them
SUCCESSES = frozenset({"completed", "open", "client_closed"})
LESS_OF_TLS = frozenset({"version", "cipher", "sni", "alpn", "group", "certificate_sha256", "resumed"})  # mapped


def line(event: Fields, source: Source) -> bytes:
    """`event` as JSON, without the end of the line."""
    return msgspec.json.encode(record(event, source))


def record(event: Fields, source: Source) -> Fields:
    """`event` with the names of ECS."""
    return made(
        **{"@timestamp": stamp(event, "time")},
        ecs={"version": VERSION},
        message=summary(event),
        event=_event(event),
        host=made(hostname=source.host),
        observer={"product": "mitmsec", "vendor": "mitmsec", "version": source.version, "type": "proxy"},
        process=_process(item(event, "process")),
        user=_user(event),
        network=_network(event),
        **_sides(event),
        url=_url(event),
        http=_http(event),
        tls=_tls(event),
        rule=made(name=text(event, "rule"), description=text(event, "reason")),
        error=_error(event),
        mitmsec=_own(event, source),
    )


def _event(event: Fields) -> Fields:
    kind = text(event, "kind") or ""
    category, types = CATEGORIES.get(kind, ([], ["info"]))
    is_malware = text(event, "detector") in MALWARE
    lasted_ms = number(event, "duration_ms")
    return made(
        kind="alert" if kind == "finding" else "event",
        category=["malware"] if is_malware else category,
        type=[*types, *_more_types(event, kind)],
        dataset=f"mitmsec.{kind}" if kind in CATEGORIES else "mitmsec",
        module="mitmsec",
        provider=text(event, "producer"),
        action=_action(event, kind),
        outcome=_outcome(event, kind),
        reason=text(event, "reason") or text(event, "detail"),
        id=text(event, "id"),
        sequence=number(event, "seq"),
        severity=SEVERITIES.get(text(event, "severity") or ""),
        duration=None if lasted_ms is None else lasted_ms * NS_PER_MS,
        start=written(began(event)),
        end=stamp(event, "time") if kind == "connection" and text(event, "outcome") != OPEN else None,
    )


def _more_types(event: Fields, kind: str) -> list[str]:
    if kind not in ("connection", "request"):
        return []
    ends = ["start" if text(event, "outcome") == OPEN else "end"] if kind == "connection" else []
    return [*ends, "denied" if was_blocked(event) else "allowed"]


def _action(event: Fields, kind: str) -> str | None:
    words = (text(event, name) for name in ("action", "verdict", "operation", "what"))
    return next((word for word in words if word), "issued" if kind == "certificate" else None)


def _outcome(event: Fields, kind: str) -> str:
    match kind:
        case "connection":
            return "success" if text(event, "outcome") in SUCCESSES else "failure"
        case "request":
            return "failure" if was_blocked(event) else "success"
        case "fault":
            return "failure"
        case _:
            return "unknown"


def _process(found: Any, *, with_parent: bool = True) -> Fields:
    if not isinstance(found, dict):
        return {}
    return made(
        pid=number(found, "pid"),
        executable=text(found, "exe"),
        name=text(found, "name"),
        start=stamp(found, "started"),
        hash=made(sha256=text(found, "sha256")),
        parent=_process(found.get("parent"), with_parent=False) if with_parent else None,  # ECS has no grandparents
    )


def _user(event: Fields) -> Fields:
    uid = number(event, "process", "uid")
    return made(name=text(event, "process", "user") or text(event, "user"), id=None if uid is None else str(uid))


def _network(event: Fields) -> Fields:
    ip = address(event, "remote")
    sent, received = number(event, "bytes", "sent"), number(event, "bytes", "received")
    packets = number(event, "datagrams", "sent"), number(event, "datagrams", "received")
    directed = "direction" in event or text(event, "kind") == "request"
    return made(
        direction=("ingress" if is_inbound(event) else "egress") if directed else None,
        protocol=text(event, "protocol"),
        transport=transport(event),
        type=None if ip is None else "ipv6" if ":" in ip else "ipv4",
        bytes=None if sent is None or received is None else sent + received,
        packets=None if None in packets else sum(one or 0 for one in packets),
    )


def _sides(event: Fields) -> Fields:
    sent, received = {}, {}
    for key, name in (("bytes", "bytes"), ("datagrams", "packets")):
        sent[name], received[name] = number(event, key, "sent"), number(event, key, "received")
    ours = made(ip=address(event, "local"), port=port(event, "local"), **sent)
    theirs = made(ip=address(event, "remote"), port=port(event, "remote"), domain=host(event), **received)
    return {"source": theirs, "destination": ours} if is_inbound(event) else {"source": ours, "destination": theirs}


def _url(event: Fields) -> Fields:
    whole = text(event, "url")
    parts = split_url(whole)
    split = {} if parts is None else {
        "scheme": parts.scheme, "domain": parts.hostname, "port": parts.port, "path": parts.path, "query": parts.query
    }  # fmt: skip
    return made(original=whole, **split)


def _http(event: Fields) -> Fields:
    if text(event, "kind") != "request":
        return {}
    return made(
        version=(text(event, "http_version") or "").removeprefix("HTTP/"),
        request=made(method=text(event, "method"), bytes=number(event, "request_bytes")),
        response=made(
            status_code=number(event, "status"),
            bytes=number(event, "response_bytes"),
            mime_type=(text(event, "content_type") or "").partition(";")[0].strip(),
        ),
    )


def _tls(event: Fields) -> Fields:
    """ECS has one leg: the program's; of the origin's only the certificate."""
    version = text(event, "tls", "client", "version") or ""
    protocol, _, digits = version.replace("v", " ").partition(" ")
    resumed = item(event, "tls", "server", "resumed")
    return made(
        version=digits or version,
        version_protocol=protocol.lower() if digits else "",
        cipher=text(event, "tls", "client", "cipher"),
        curve=text(event, "tls", "client", "group"),
        next_protocol=text(event, "tls", "client", "alpn"),
        resumed=resumed if isinstance(resumed, bool) else None,
        client=made(server_name=text(event, "tls", "client", "sni")),
        server=made(hash=made(sha256=text(event, "tls", "server", "certificate_sha256"))),
    )


def _error(event: Fields) -> Fields:
    if text(event, "kind") == "fault":
        return made(code=text(event, "what"), message=text(event, "detail"))
    return made(message=text(event, "error"))


def _own(event: Fields, source: Source) -> Fields:
    """What ECS has no name for."""
    rest = {key: value for key, value in event.items() if key not in MAPPED}
    process = item(event, "process")
    if isinstance(process, dict):
        rest["process"] = {key: value for key, value in process.items() if key not in MAPPED_OF_PROCESS}
        rest["process"]["grandparent"] = item(process, "parent", "parent")
    for leg in ("client", "server"):
        facts = item(event, "tls", leg)
        if isinstance(facts, dict):
            rest.setdefault("tls", {})[leg] = {key: value for key, value in facts.items() if key not in LESS_OF_TLS}
    return pruned(rest | {"log": source.log, "names": texts(event, "names")})  # type: ignore[no-any-return]
