"""What the log holds of one event: its envelope, canonical JSON that can be hashed and given to anyone.

Keys are ASCII and sorted, text is UTF-8, numbers are integers or hundredths; so the bytes are RFC 8785's canonical form
and a third party can hash an event that it was given as JSON. An envelope stays below ENVELOPE_LIMIT_BYTES whatever a
peer sent: long text is cut, marked with an ellipsis, and the event says `clipped`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from mitmsec.audit.event import (
    CaSeen,
    CertificateSeen,
    ConnectionSeen,
    FaultSeen,
    FindingSeen,
    Kind,
    Outcome,
    PolicySeen,
    RequestSeen,
    ReviewSeen,
    Seen,
    ServiceSeen,
)
from mitmsec.core.model import Direction, Process, Value

ENVELOPE_LIMIT_BYTES = 60_000  # an entry of a tiled log has a 16-bit length
CLIPS = ((16_384, 1024), (2_048, 256), (256, 64), (32, 32))  # longest text in characters, longest list

Fields = dict[str, Any]
SYSTEMS_FACTS = frozenset({"package", "services", "signer", "uid", "unread"})
ADDONS = frozenset({"modified_by", "seen_by"})  # which are said where there are any
REVIEWS_OWN = frozenset({"detail", "keys", "people"})  # likewise


class Draft(Value, frozen=True):
    """An event that is complete but for its number."""

    kind: Kind
    id: str
    time: str  # RFC 3339, UTC, microseconds: text that sorts
    producer: str
    session: str
    fields: Fields


def sealed(draft: Draft, seq: int) -> tuple[Fields, bytes]:
    """`draft` as event `seq`, and its envelope."""
    whole: Fields = {
        **draft.fields,
        "id": draft.id,
        "kind": draft.kind.value,
        "producer": draft.producer,
        "seq": seq,
        "time": draft.time,
    }
    if draft.session:
        whole["session"] = draft.session
    encoded = canonical(whole)
    limits = iter(CLIPS)  # the last ones are enough for any event: it has few fields
    while len(encoded) > ENVELOPE_LIMIT_BYTES:
        text_limit, list_limit = next(limits)
        whole = {**_clipped(whole, text_limit, list_limit), "clipped": True}
        encoded = canonical(whole)
    return whole, encoded


def canonical(value: Mapping[str, Any]) -> bytes:
    """`value` as canonical JSON (RFC 8785). Keys must be ASCII and floats hundredths; see `hundredths`."""
    return _ENCODER.encode(value)


def hundredths(value: float) -> float | int:
    """`value`, held within 0..1, in the one spelling that all JSON writers share: an integer or two decimals."""
    rounded = round(min(value, 1.0), 2) if value > 0 else 0.0  # what is no number is not greater than 0
    return int(rounded) if rounded == int(rounded) else rounded


def _clipped(value: Any, text_limit: int, list_limit: int) -> Any:
    match value:
        case str():
            return value if len(value) <= text_limit else value[: text_limit - 1] + "…"
        case dict():
            return {key: _clipped(item, text_limit, list_limit) for key, item in value.items()}
        case list() | tuple():
            return [_clipped(item, text_limit, list_limit) for item in value[:list_limit]]
        case _:
            return value


# --- from what was seen to the fields of an event ---------------------------------------------------------------------
def fields_of(
    seen: Seen,
    owner: Process | None = None,
    host: str | None = None,
    direction: Direction = Direction.OUTBOUND,
) -> tuple[Kind, Fields]:
    """The kind of event that `seen` is, and the fields it has beside the common ones.

    `owner`, `host` and `direction` are the flow's, as its gate told them, for a producer that only knows its id.
    """
    match seen:
        case ConnectionSeen():
            return Kind.CONNECTION, _connection(seen)
        case RequestSeen():
            plain = {key: item for key, item in _plain(seen).items() if item or key not in ADDONS}
            request = _without_none(_renamed(plain), "outcome", "answered_by")
            return Kind.REQUEST, _directed(_owned(request, owner, host), direction)
        case FindingSeen():
            return Kind.FINDING, _directed(_owned(_finding(seen), owner, host), direction)
        case ReviewSeen():
            return Kind.REVIEW, {key: value for key, value in _plain(seen).items() if value or key not in REVIEWS_OWN}
        case CertificateSeen():
            return Kind.CERTIFICATE, _without_none(_renamed(_plain(seen)), "flaw")
        case PolicySeen():
            return Kind.POLICY, {key: value for key, value in _plain(seen).items() if key != "certificates" or value}
        case CaSeen():
            return Kind.CA, _without_none(_plain(seen), "detail", "user")
        case ServiceSeen():
            return Kind.SERVICE, _without_none(_plain(seen), "user", "status", "session")
        case FaultSeen():
            return Kind.FAULT, _fault(seen, owner, host)
        case _:
            raise TypeError(f"{type(seen).__name__} is no event by itself")


def host_of(fields: Fields) -> object:
    """What an event is about: a name where there is one, else an address; None if it is about neither."""
    remote, names = _mapping(fields.get("remote")), fields.get("names")
    named = remote.get("host") or remote.get("address") or fields.get("host")
    return named or (names[0] if names and isinstance(names, list | tuple) else None)


def _mapping(value: Any) -> Fields:
    return value if isinstance(value, dict) else {}


def event_id(seen: ConnectionSeen) -> str:
    """A connection's event is known by its flow; the one written while it lives, by the flow and `.open`."""
    return f"{seen.flow}.open" if seen.outcome is Outcome.OPEN else seen.flow


def is_open(event: str) -> bool:
    """Whether this is the id of a connection's event that was written while it lived."""
    return event.endswith(".open")


def _connection(seen: ConnectionSeen) -> Fields:
    plain = _plain(seen)
    fields = {
        key: plain[key]
        for key in ("direction", "protocol", "action", "rule", "reason", "duration_ms", "tls", "outcome")
    }
    if seen.policy:
        fields["policy"] = seen.policy
    fields["process"] = _process(seen.process)
    fields["connection"] = seen.flow
    fields["local"] = {"address": seen.local.address, "port": seen.local.port}
    fields["remote"] = {"address": seen.remote.address, "port": seen.remote.port, "host": seen.host}
    if seen.named_by is not None:
        fields["remote"]["named_by"] = seen.named_by.value
    if seen.asked is not None:
        fields["asked"] = {"address": seen.asked.address, "port": seen.asked.port}
    for key, sent, received in (
        ("bytes", seen.bytes_sent, seen.bytes_received),
        ("datagrams", seen.datagrams_sent, seen.datagrams_received),
    ):
        if sent is not None and received is not None:
            fields[key] = {"sent": sent, "received": received}
    if seen.through:
        fields["through"] = seen.through
    if seen.error:
        fields["error"] = seen.error
    return fields


def _finding(seen: FindingSeen) -> Fields:
    finding = _plain(seen.finding)
    for place in ("offset", "size_bytes", "clear"):  # for masking, which `location` says to people; and for the vault
        finding.pop(place, None)
    finding["confidence"] = hundredths(seen.finding.confidence)
    named = {"item": seen.item} if seen.item else {}
    return {**finding, "connection": seen.flow, "verdict": seen.verdict.value, **named}


def _fault(seen: FaultSeen, owner: Process | None, host: str | None) -> Fields:
    fields = _without_none(_renamed(_plain(seen)), "failed", "pid", "connection", "session")
    return fields if owner is None else _owned(fields, owner, host)


def _owned(fields: Fields, owner: Process | None, host: str | None) -> Fields:
    return {**fields, "process": None if owner is None else _process(owner), "host": host}


def _process(process: Process) -> Fields:
    """Without what only one system has where it has none: Windows its own facts, Unix the user's number."""
    lacks: tuple[object, ...] = (None, [], ())
    return {key: item for key, item in _plain(process).items() if item not in lacks or key not in SYSTEMS_FACTS}


def _directed(fields: Fields, direction: Direction) -> Fields:
    """Only of a flow that came in it is said."""
    return {**fields, "direction": direction.value} if direction is Direction.INBOUND else fields


def _plain(value: msgspec.Struct) -> Fields:
    plain: Fields = msgspec.to_builtins(value)
    plain.pop("type", None)  # the tag of a message on the wire
    return plain


def _renamed(fields: Fields) -> Fields:
    return {("connection" if key == "flow" else key): item for key, item in fields.items()}


def _without_none(fields: Fields, *optional: str) -> Fields:
    return {key: item for key, item in fields.items() if key not in optional or item not in (None, "")}


_ENCODER = msgspec.json.Encoder(order="sorted")
