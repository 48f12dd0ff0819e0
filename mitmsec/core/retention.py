"""For how long what is kept outside the log is kept."""

from __future__ import annotations

from mitmsec.core.model import Value


class Retention(Value, frozen=True):
    """Of each kind of thing, seconds since it was kept; None: until somebody erases it."""

    evidence_s: int | None = None
