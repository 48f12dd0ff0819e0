"""The formats by name: how an event is written in each, and what stands before the first."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mitmsec.audit.envelope import Fields
from mitmsec.audit.export import Format, cef, csv_rows, ecs, jsonl, ocsf, syslog_lines
from mitmsec.audit.export.reading import Source

type Writes = Callable[[Fields, Source], bytes]


LINES: dict[Format, Writes] = {
    Format.CEF: cef.line,
    Format.CSV: csv_rows.line,
    Format.ECS: ecs.line,
    Format.JSONL: jsonl.line,
    Format.OCSF: ocsf.line,
    Format.SYSLOG: syslog_lines.line,
}


def header(form: Format) -> bytes:
    """What a file begins with, the end of its line included; mostly nothing."""
    return csv_rows.header() + ending(form) if form is Format.CSV else b""


def ending(form: Format) -> bytes:
    """Of a line in a file (RFC 4180 for CSV)."""
    return b"\r\n" if form is Format.CSV else b"\n"


def in_file(form: Format) -> Writes:
    """How an event is written to a file: a line, with its end."""
    writes, end = LINES[form], ending(form)
    return lambda event, source: writes(event, source) + end


def in_syslog(form: Format) -> Writes:
    """How an event is sent to a syslog server: counted, and in this format within the message."""
    content = jsonl.line if form is Format.SYSLOG else LINES[form]
    message = partial(syslog_lines.line, content=content)
    return lambda event, source: syslog_lines.framed(message(event, source))
