"""What rules of YARA say about content, as plain values: to be sent, and to be told as findings.

meta: severity = "high", confidence = 80, description = "…"  ──► Hit ──► Finding        no content is in any of them
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from mitmsec.core.model import Severity, Value

DESCRIPTION_LIMIT_CHARACTERS = 100
CONFIDENCE = 0.9  # of a rule that does not say it
_SEVERITIES: Mapping[str, Severity] = {
    "info": Severity.INFO,
    "informational": Severity.INFO,
    "low": Severity.LOW,
    "medium": Severity.MEDIUM,
    "high": Severity.HIGH,
    "critical": Severity.HIGH,
}


class Hit(Value, frozen=True):
    """A rule that matches, and the first place that one of its patterns does; None where it has no patterns."""

    rule: str
    severity: Severity = Severity.MEDIUM
    confidence: float = CONFIDENCE
    description: str = ""
    offset: int | None = None
    pattern: str = ""  # its name in the rule: `$a`
    size_bytes: int = 0


class Hits(Value, frozen=True):
    """What was said about one content: `error` says why it was not scanned to its end."""

    hits: tuple[Hit, ...] = ()
    more: int = 0  # rules that match as well
    error: str = ""


def hit(rule: str, meta: Iterable[tuple[str, Any]], places: Iterable[tuple[int, str, int]]) -> Hit:
    """Of a rule with this `meta`, whose patterns match at `places`: offset, the pattern's name, bytes."""
    told = dict(meta)
    offset, pattern, size_bytes = min(places, default=(None, "", 0))
    return Hit(
        rule=rule,
        severity=_SEVERITIES.get(str(told.get("severity", "")).strip().lower(), Severity.MEDIUM),
        confidence=_confidence(told.get("confidence")),
        description=_printable(str(told.get("description", ""))),
        offset=offset,
        pattern=pattern,
        size_bytes=size_bytes,
    )


def _confidence(told: object) -> float:
    """A fraction, or of a hundred: `0.8`, `80`. Anything else says nothing."""
    if isinstance(told, bool) or not isinstance(told, int | float) or not math.isfinite(told) or told < 0:
        return CONFIDENCE
    value = told / 100 if isinstance(told, int) and told > 1 else float(told)
    return value if value <= 1 else CONFIDENCE


def _printable(text: str) -> str:
    short = text[:DESCRIPTION_LIMIT_CHARACTERS]
    return "".join(one if one.isprintable() else "�" for one in short)
