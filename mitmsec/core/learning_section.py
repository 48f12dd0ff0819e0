"""What a policy's file says of learning (mitmsec.core.learning). Who only decides by a policy does not load this."""

from __future__ import annotations

from mitmsec.core.model import LEARNED_HOURS, OnCertificateRequest
from mitmsec.core.toml_table import Table, kind_of

REFUSALS_MAX = 100
HOURS_MAX = 24 * 366


def read_learned_bypass(table: Table) -> int | None:
    """`learned_bypass`: how many refusals it takes; 0, or false, forbids it. None: not said."""
    value = table.raw("learned_bypass")
    if value is None:
        return None
    return 0 if value is False else _number(table, "learned_bypass", value, 0, REFUSALS_MAX, default=0)


def read_hours(table: Table) -> int:
    """`learned_bypass_hours`."""
    value = table.raw("learned_bypass_hours")
    if value is None:
        return LEARNED_HOURS
    return _number(table, "learned_bypass_hours", value, 1, HOURS_MAX, default=LEARNED_HOURS)


def read_on_request(table: Table) -> OnCertificateRequest | None:
    """`on_certificate_request`. None: not said."""
    if "on_certificate_request" not in table:
        return None
    return table.choice("on_certificate_request", OnCertificateRequest, OnCertificateRequest.BLOCK)


def _number(table: Table, key: str, value: object, low: int, high: int, *, default: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        table.note(f"a number is wanted, not {kind_of(value)}", key)
    elif not low <= value <= high:
        table.note(f"{value} is not within {low}-{high}", key)
    else:
        return value
    return default
