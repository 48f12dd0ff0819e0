"""An event read for an export: what is there and of the right type, else None. So a format is total over any event.

Whoever can write the log's file can put anything into it, and what stands in an event was mostly said by strangers.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import SplitResult, urlsplit

from mitmsec.audit.envelope import Fields
from mitmsec.core.model import Action, Direction, Endpoint, Value

INTEGER_LIMIT = 2**53  # beyond it, readers of JSON round
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
UDP_PROTOCOLS = frozenset({"quic", "udp"})
BLOCKED, OPEN = "blocked", "open"


class Source(Value, frozen=True):
    """Where events are from."""

    host: str  # this machine's name
    version: str  # of mitmsec
    log: str = ""  # the log's own name; empty: it has none


def item(event: Fields, *path: str) -> Any:
    """What lies at `path`, whatever it is."""
    found: Any = event
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def text(event: Fields, *path: str) -> str | None:
    """A text that is not empty."""
    found = item(event, *path)
    return found if isinstance(found, str) and found else None


def number(event: Fields, *path: str) -> int | None:
    """An integer that every reader of JSON takes for what it is, not negative: the log has no others."""
    found = item(event, *path)
    is_one = isinstance(found, int) and not isinstance(found, bool) and 0 <= found < INTEGER_LIMIT
    return found if is_one else None


def texts(event: Fields, *path: str) -> list[str]:
    """A list's texts."""
    found = item(event, *path)
    return [one for one in found if isinstance(one, str)] if isinstance(found, list) else []


def address(event: Fields, side: str) -> str | None:
    """The IP address of `local` or `remote`, as canonical text."""
    try:
        return Endpoint.of(text(event, side, "address") or "", 0).address
    except ValueError:
        return None


def port(event: Fields, side: str) -> int | None:
    """0..65535."""
    found = number(event, side, "port")
    return found if found is not None and found <= 0xFFFF else None


def instant(event: Fields, *path: str) -> datetime | None:
    """A point in time, of RFC 3339 text."""
    try:
        return datetime.fromisoformat(text(event, *path) or "").astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def time_ms(event: Fields, *path: str) -> int:
    """Milliseconds since 1970; 0 where that is no time."""
    return since_1970_ms(instant(event, *path)) or 0


def since_1970_ms(time: datetime | None) -> int | None:
    """Not negative."""
    return None if time is None else max(0, (time - EPOCH) // timedelta(milliseconds=1))


def stamp(event: Fields, *path: str) -> str | None:
    """A point in time as the log writes them, whichever way it was written."""
    return written(instant(event, *path))


def written(time: datetime | None) -> str | None:
    """RFC 3339, UTC, microseconds."""
    return None if time is None else time.isoformat(timespec="microseconds").replace("+00:00", "Z")


def began(event: Fields) -> datetime | None:
    """When a connection's first byte came: its duration before the event."""
    ended, lasted_ms = instant(event, "time"), number(event, "duration_ms")
    if ended is None or lasted_ms is None:
        return None
    try:
        return ended - timedelta(milliseconds=lasted_ms)
    except OverflowError:
        return None


def host(event: Fields) -> str | None:
    """The name that was spoken to, as far as it is known."""
    return text(event, "remote", "host") or text(event, "host") or next(iter(texts(event, "names")), None)


def program(event: Fields) -> str | None:
    """The executable's path, else the process's name."""
    return text(event, "process", "exe") or text(event, "process", "name")


def transport(event: Fields) -> str | None:
    """`tcp` or `udp`, where the event lets one know."""
    if "datagrams" in event or text(event, "protocol") in UDP_PROTOCOLS:
        return "udp"
    return "tcp" if "bytes" in event or event.get("tls") else None


def is_inbound(event: Fields) -> bool:
    """Somebody else opened the connection."""
    return text(event, "direction") == Direction.INBOUND


def was_blocked(event: Fields) -> bool:
    """By the policy or by a finding."""
    return text(event, "outcome") == BLOCKED or text(event, "action") == Action.BLOCK


def split_url(url: str | None) -> SplitResult | None:
    """Its parts; None for what is no URL."""
    try:
        parts = urlsplit(url or "")
        _ = parts.port, parts.hostname  # which raise as well
    except ValueError:
        return None
    return parts if parts.scheme and parts.netloc else None


def summary(event: Fields) -> str:
    """One sentence for people, in the words of the event."""
    kind = text(event, "kind") or "event"
    match kind:
        case "connection":
            words = [text(event, "action"), text(event, "protocol"), _to(event), text(event, "outcome")]
        case "request":
            status = number(event, "status")
            words = [text(event, "method"), text(event, "url"), None if status is None else str(status)]
        case "finding":
            words = [text(event, "detector"), text(event, "summary"), text(event, "verdict")]
        case "certificate":
            words = ["issued for", *texts(event, "names")]
        case "policy":
            words = ["policy loaded:", text(event, "path")]
        case "fault":
            words = [text(event, "what"), text(event, "detail")]
        case _:
            words = [kind, text(event, "operation"), text(event, "detail") or text(event, "subject")]
    return " ".join(word for word in words if word) or kind


def _to(event: Fields) -> str | None:
    where, at = host(event) or address(event, "remote"), port(event, "remote")
    return where if where is None or at is None else f"{where}:{at}"


def made(**fields: Any) -> Fields:
    """The fields that are something: no None, no empty text, list or table."""
    return {key: value for key, value in fields.items() if value is not None and value not in ("", [], {})}


def pruned(value: Any) -> Any:
    """`value` without what says nothing, at any depth."""
    match value:
        case dict():
            return made(**{key: pruned(one) for key, one in value.items()})
        case list():
            return [pruned(one) for one in value]
        case _:
            return value
