r"""Syslog (RFC 5424): a header, structured data, and the event in one of the other formats as the message.

    <109>1 2026-11-03T10:00:00.000000Z host mitmsec - finding [mitmsec@32473 seq="7" …] {"detector":…}

Over TLS each is preceded by its length (RFC 5425 §4.3, octet counting), in a file it is a line. mitmsec has no
enterprise number of its own; 32473 is the one that RFC 5612 keeps for examples.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from mitmsec.audit.envelope import Fields
from mitmsec.audit.export import jsonl
from mitmsec.audit.export.reading import Source, host, number, program, text, was_blocked
from mitmsec.core.printable import shown

LOG_AUDIT = 13  # facility
ERROR, WARNING, NOTICE, INFORMATIONAL = 3, 4, 5, 6
SEVERITIES = {"high": ERROR, "medium": WARNING, "low": NOTICE}
NIL = "-"
OURS = "mitmsec@32473"
SEQUENCE_LIMIT = 2**31 - 1  # RFC 5424 §7.3.1
_PRINTABLE = re.compile(r"[^\x21-\x7e]")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)", re.ASCII)

type Content = Callable[[Fields, Source], bytes]


def line(event: Fields, source: Source, content: Content = jsonl.line) -> bytes:
    """One message; `content` makes what it carries. Nothing in it ends a line."""
    time = text(event, "time") or ""
    header = (
        f"<{LOG_AUDIT * 8 + severity(event)}>1",
        time if _TIME.fullmatch(time) else NIL,
        _word(source.host, 255),
        "mitmsec",
        _word(text(event, "producer"), 128),
        _word(text(event, "kind"), 32),
        _data(event, source),
    )
    return " ".join(header).encode() + b" " + content(event, source)


def framed(message: bytes) -> bytes:
    """With its length before it, for a stream (RFC 5425 §4.3, RFC 6587 §3.4.1)."""
    return b"%d %b" % (len(message), message)


def severity(event: Fields) -> int:
    """3..6 of syslog's severities."""
    match text(event, "kind"):
        case "finding":
            return SEVERITIES.get(text(event, "severity") or "", INFORMATIONAL)
        case "fault":
            return WARNING
        case _:
            return NOTICE if was_blocked(event) else INFORMATIONAL


def _word(value: str | None, limit: int) -> str:
    """What a field of the header may be: printable ASCII without spaces."""
    return _PRINTABLE.sub("?", value or "")[:limit] or NIL


def _data(event: Fields, source: Source) -> str:
    seq = number(event, "seq")
    own = {
        "seq": None if seq is None else str(seq),
        "id": text(event, "id"),
        "log": source.log,
        "connection": text(event, "connection"),
        "app": program(event),
        "host": host(event),
        "action": text(event, "action"),
        "outcome": text(event, "outcome"),
        "rule": text(event, "rule"),
        "detector": text(event, "detector"),
        "verdict": text(event, "verdict"),
    }
    meta = "" if seq is None else f'[meta sequenceId="{seq % SEQUENCE_LIMIT + 1}"]'
    origin = f'[origin software="mitmsec" swVersion="{_parameter(source.version)}"]'
    return f"{meta}{origin}[{OURS}{''.join(f' {key}="{_parameter(value)}"' for key, value in own.items() if value)}]"


def _parameter(value: str) -> str:
    return re.sub(r'(["\\\]])', r"\\\1", shown(value))
