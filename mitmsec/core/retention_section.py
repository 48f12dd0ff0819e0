"""What a policy's file says under `[retention]`, one key for each kind of thing: `evidence = "30d"`.

Who only decides by a policy does not load this.
"""

from __future__ import annotations

import re

from mitmsec.core.retention import Retention
from mitmsec.core.toml_table import Table

UNITS_S = {"h": 3600, "d": 86_400, "w": 7 * 86_400}
LONGEST_S = 36_500 * 86_400
_SPAN = re.compile(r"([0-9]{1,9})([hdw])")


def read_retention(table: Table) -> Retention:
    """All keys of the table."""
    retention = Retention(evidence_s=_span_s(table, "evidence", table.text("evidence")))
    table.close()
    return retention


def _span_s(table: Table, key: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return span_s(text)
    except ValueError as error:
        table.note(str(error), key)
        return None


def span_s(text: str) -> int:
    """A span such as `12h`, `30d` or `8w`, in seconds. Raises ValueError."""
    written = _SPAN.fullmatch(text.strip())
    if written is None:
        raise ValueError(f'"{text}" is no span of time: a number of hours, days or weeks is wanted, such as "30d"')
    found_s = int(written[1]) * UNITS_S[written[2]]
    if not 0 < found_s <= LONGEST_S:
        raise ValueError(f'"{text}" is not within 1h and {LONGEST_S // 86_400}d')
    return found_s
