"""What a policy allows the gate to learn: that a program's connections to a host cannot be decrypted, so they pass.

[defaults] or rule ── learned_bypass = 3 ──────────► after so many refusals of our certificate
                   ── on_certificate_request ──────► at once, where the origin asks for a client's certificate
said by neither    ── on_failure = "closed", or on_finding = "block" ──► never: nothing is to leave unread
                   └─ else ──► 3, "bypass"
"""

from __future__ import annotations

from mitmsec.core.model import LEARNED_HOURS, Learning, OnCertificateRequest, OnFailure, OnFinding
from mitmsec.core.toml_table import Table, kind_of

REFUSALS = 3
REFUSALS_MAX = 100
HOURS_MAX = 24 * 366


def learning(
    after: int | None,
    on_request: OnCertificateRequest | None,
    *,
    hours: int,
    on_failure: OnFailure,
    on_finding: OnFinding,
    needs_proof: bool,
) -> Learning:
    """What holds where `after` and `on_request` are said, or left open (None)."""
    is_open = on_failure is OnFailure.OPEN and on_finding is OnFinding.ALERT
    if after is None:
        after = REFUSALS if is_open else 0
    passes = is_open if on_request is None else on_request is OnCertificateRequest.BYPASS
    return Learning(after=after, on_request=passes, hours=hours, needs_proof=needs_proof)


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
