"""CSV (RFC 4180) for spreadsheets: one row an event, the same columns for every kind.

A spreadsheet takes a cell that begins with `=` and the like for a formula, and runs it; so such a cell gets an
apostrophe before it. What is not printable is escaped: no cell holds the end of a line, an escape sequence or a
character that turns the text behind it around.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable

import msgspec

from mitmsec.audit.envelope import Fields
from mitmsec.audit.export.reading import Source, host, item, program
from mitmsec.core.printable import shown

FORMULA_SIGNS = frozenset("=+-@\t\r\n＝＋－＠")  # the wide ones, too: some spreadsheets read them as the others


def _of(*path: str) -> Callable[[Fields], object]:
    return lambda event: item(event, *path)


COLUMNS: dict[str, Callable[[Fields], object]] = {
    **{name: _of(name) for name in ("seq", "id", "time", "kind", "producer", "session", "connection")},
    "app": program,
    "pid": _of("process", "pid"),
    "user": lambda event: item(event, "process", "user") or item(event, "user"),
    "exe_sha256": _of("process", "sha256"),
    "parent_pid": _of("process", "parent", "pid"),
    "parent_exe": _of("process", "parent", "exe"),
    "attribution": _of("process", "confidence"),
    **{name: _of(name) for name in ("direction", "protocol")},
    "host": host,
    "local_address": _of("local", "address"),
    "local_port": _of("local", "port"),
    "remote_address": _of("remote", "address"),
    "remote_port": _of("remote", "port"),
    **{name: _of(name) for name in ("action", "outcome", "rule", "reason", "policy", "error", "duration_ms")},
    "bytes_sent": _of("bytes", "sent"),
    "bytes_received": _of("bytes", "received"),
    "client_tls": _of("tls", "client", "version"),
    "sni": _of("tls", "client", "sni"),
    "ja4": _of("tls", "client", "ja4"),
    "server_tls": _of("tls", "server", "version"),
    "server_certificate": _of("tls", "server", "certificate_sha256"),
    "server_verified": _of("tls", "server", "verified"),
    **{name: _of(name) for name in ("method", "url", "http_version", "status", "request_bytes", "response_bytes")},
    **{name: _of(name) for name in ("content_type", "answered_by")},
    **{name: _of(name) for name in ("detector", "severity", "confidence", "summary", "evidence", "location")},
    **{name: _of(name) for name in ("verdict", "item", "serial", "names", "not_after", "path", "sha256", "subject")},
    **{name: _of(name) for name in ("operation", "command", "what", "detail", "failed", "count")},
}


def header() -> bytes:
    """The first line: what the columns are called."""
    return _row(list(COLUMNS))


def line(event: Fields, source: Source) -> bytes:
    """One row, without the end of the line."""
    return _row([cell(value(event)) for value in COLUMNS.values()])


def cell(value: object) -> str:
    """`value` as a spreadsheet may see it."""
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case int() | float():
            return str(value)
        case str():
            return f"'{shown(value)}" if value.lstrip(" ")[:1] in FORMULA_SIGNS else shown(value)
        case _:
            return cell(_listed(value))


def _listed(value: object) -> str:
    is_plain = isinstance(value, list) and all(isinstance(one, str) for one in value)
    return " ".join(value) if is_plain and isinstance(value, list) else msgspec.json.encode(value).decode()


def _row(cells: list[str]) -> bytes:
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="").writerow(cells)
    return out.getvalue().encode()
