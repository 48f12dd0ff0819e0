"""From a `connection` event to the flow that it tells of, and to what was made of that: the log is read, not believed.

An event that is no longer what a recorder writes gives no flow, and says why.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

from mitmsec.audit.envelope import Fields
from mitmsec.audit.event import Kind, Outcome
from mitmsec.core.address_names import Agreement
from mitmsec.core.model import Action, Direction, Endpoint, Process, Transport, Value
from mitmsec.core.past_flow import PastFlow, Verdict
from mitmsec.core.sniff import Protocol

FIRST_BYTES = frozenset({"host", "protocol", "alpn", "ja4", "ech"})  # conditions that first bytes answer
OVER_UDP = frozenset({"udp", "quic"})
UNJUDGED = frozenset({Outcome.STRANGER})  # no policy was asked


class NoFlow(Exception):
    """There is nothing in the event that a policy could be asked about; the message says why."""


class PastConnection(Value, frozen=True):
    """The flow of an event, and what was made of it."""

    flow: PastFlow
    recorded: Verdict
    outcome: str
    began: datetime
    policy: str
    """The fingerprint of the policy that decided; empty: not on record."""


def past_connection(event: Fields) -> PastConnection:
    """Raises NoFlow."""
    if event.get("kind") != Kind.CONNECTION:
        raise NoFlow(f"it is of kind {event.get('kind')}, and only connections are decided")
    if str(event.get("outcome")) in UNJUDGED:
        raise NoFlow("nobody had diverted it, and no policy was asked")
    try:
        return PastConnection(
            flow=_flow(event),
            recorded=Verdict(action=Action(event["action"]), rule=str(event["rule"]), reason=str(event["reason"])),
            outcome=str(event["outcome"]),
            began=began(event),
            policy=str(event.get("policy", "")),
        )
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise NoFlow(f"it is not what a recorder writes: {type(error).__name__}: {error}") from error


def began(event: Fields) -> datetime:
    """When the flow began, by the recorder's clock."""
    ended = datetime.fromisoformat(event["time"])
    return datetime.fromtimestamp(ended.timestamp() - int(event["duration_ms"]) / 1000, ended.tzinfo)


def _flow(event: Fields) -> PastFlow:
    client = ((event.get("tls") or {}).get("client")) or {}
    remote, protocol = event["remote"], str(event["protocol"])
    is_udp = protocol in OVER_UDP or "bytes" not in event
    asked = event.get("asked") or remote
    is_hello_read = _is_tls(event)  # of QUIC, by the gate that relays it
    shows_name = "named_by" not in remote and (is_hello_read or not is_udp)
    is_seen = not is_udp and not _is_unread(event) and not _is_unsettled(event)
    return PastFlow(
        process=msgspec.convert(event["process"], Process),
        local=Endpoint.of(event["local"]["address"], event["local"]["port"]),
        remote=Endpoint.of(asked["address"], asked["port"]),
        at_s=began(event).timestamp(),
        transport=Transport.UDP if is_udp else Transport.TCP,
        direction=Direction(event["direction"]),
        protocol=Protocol(protocol) if is_seen or (is_hello_read and is_udp) else None,
        name=msgspec.convert(remote["host"], str | None) if shows_name else None,
        alpn=msgspec.convert(client.get("offers") or (), tuple[str, ...]),
        ja4=msgspec.convert(client.get("ja4"), str | None),
        ech=client.get("ech") is True if is_hello_read else None,
        is_tls=is_hello_read,
        is_malformed=event["outcome"] == Outcome.MALFORMED and protocol == Protocol.TCP,  # else a worker's word
        proven=client.get("name_agrees") == Agreement.AGREE or client.get("name_certified") is True
        if _is_tls(event)
        else None,  # of others it is not on record
        unknown=_unknown(event, client),
    )


def _is_unread(event: Fields) -> bool:
    """The supervisor tells of those that came in past the gate: nobody looked at their bytes."""
    return event.get("producer") != "gate"


def _is_unsettled(event: Fields) -> bool:
    """It may have ended before anybody knew what it spoke: `tcp` is also what is not known for anything else."""
    moved = event.get("bytes") or {}
    has_moved = bool(moved.get("sent") or moved.get("received"))
    return event["protocol"] == Protocol.TCP and not has_moved and event["action"] != Action.CAPTURE


def _is_tls(event: Fields) -> bool:
    return event.get("tls") is not None


def _unknown(event: Fields, client: Fields) -> frozenset[str]:
    unknown: frozenset[str] = frozenset()
    if event["protocol"] == Protocol.TCP and _is_unread(event):
        unknown = FIRST_BYTES
    elif _is_tls(event) and client.get("offers") is None:
        unknown = frozenset({"alpn"})
    elif _is_unsettled(event):
        unknown = frozenset({"protocol"})
    return unknown | {"application", "host"} if event.get("clipped") else unknown
