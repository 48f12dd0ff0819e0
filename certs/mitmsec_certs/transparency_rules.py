"""Whether a certificate of a public root was logged (RFC 6962), as far as the certificate itself tells.

Its own list of signed timestamps is counted, by logs. The logs' signatures are not verified: that takes a list of logs
that is younger than a few weeks, and nobody here keeps one. Timestamps that come by other ways are not asked for.
"""

from __future__ import annotations

from mitmsec.core.model import Transparency
from mitmsec_certs.chain_rules import Link
from mitmsec_certs.defects import Defect, untrusted

LOGS = 2  # as browsers ask of the shortest-lived certificates


def by_logs(leaf: Link, mode: Transparency, *, is_public: bool) -> tuple[Defect | None, str | None]:
    """The defect, and what is to be noted. A private root's certificates belong in no public log."""
    if not is_public or mode is Transparency.OFF or leaf.logs >= LOGS:
        return None, None
    text = f"a public root's certificate, with timestamps of {leaf.logs} logs where {LOGS} are due"
    return (untrusted(text), None) if mode is Transparency.REFUSE else (None, text)
