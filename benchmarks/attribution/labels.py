"""The truth about flows, one JSON object a line: written by callers (`Label`) and by the origin (`Sighting`). Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Label:
    """Who called `connect()` or `accept()` or, for UDP, sent or received, in its own words or those of its parent."""

    flow: int
    pattern: str
    pid: int
    started_s: float
    """Unix time, exact to a clock tick (0.01 s)."""
    exe: str


@dataclass(frozen=True, slots=True)
class Sighting:
    """What the far end saw: whose flow by address, the caller's address, and whose flow by the first bytes."""

    flow: int
    peer: str
    port: int
    token: int | None


def line(record: Label | Sighting) -> bytes:
    """The record as one line, short enough for `write()` to append it in one piece."""
    return json.dumps(asdict(record), separators=(",", ":")).encode() + b"\n"


def labels(lines: Iterable[str]) -> list[Label]:
    """Raises ValueError for a line that is not a label."""
    return [_read(Label, text) for text in lines if text.strip()]


def sightings(lines: Iterable[str]) -> list[Sighting]:
    """Raises ValueError for a line that is not a sighting."""
    return [_read(Sighting, text) for text in lines if text.strip()]


def corpus(made: Iterable[Label], seen: Iterable[Sighting]) -> Iterable[str]:
    """The labelled corpus for people and other tools: each label with the far end's view, or null, in flow order."""
    views = {sighting.flow: asdict(sighting) for sighting in seen}
    for label in sorted(made, key=lambda label: label.flow):
        yield json.dumps(asdict(label) | {"seen": views.get(label.flow)})


def token(first_bytes: bytes) -> int | None:
    """The number that a flow carries: `=4711` and a newline, or a request for `/4711`; None where there is none."""
    head = first_bytes.partition(b"\n")[0].rstrip(b"\r")
    digits = head[1:] if head.startswith(b"=") else head.removeprefix(b"GET /").partition(b" ")[0]
    return int(digits) if digits.isdigit() and len(digits) < 9 else None  # isdigit of bytes: ASCII only


def _read[T: (Label, Sighting)](kind: type[T], text: str) -> T:
    try:
        fields: dict[str, Any] = json.loads(text)
        return kind(**fields)
    except TypeError as wrong:
        raise ValueError(f"no {kind.__name__}: {text[:120]!r}") from wrong
