"""The words that envelopes have in common, for mitmsec.audit.packing. The same ones at each call.

    python -m benchmarks.audit.dictionary > mitmsec/audit/envelopes.zdict

Logs that were written with the dictionary need it for ever: a new one gets a name of its own, beside it.
"""

from __future__ import annotations

import sys
from itertools import islice

import zstandard

from benchmarks.audit.traffic import BEGINS, Machine
from mitmsec.audit.envelope import Draft, fields_of, sealed
from mitmsec.audit.event import CaSeen, PolicySeen, ReviewSeen, Seen, ServiceSeen

SIZE_BYTES = 8 << 10
MACHINES, EVENTS = range(1, 9), 1500
OWN: tuple[Seen, ...] = (
    PolicySeen(
        session="00000000",
        path="/etc/mitmsec/policy.toml",
        sha256="0" * 64,
        policy="0" * 64,
        rules=3,
        on_failure="open",
    ),
    CaSeen(operation="created", subject="CN=mitmsec root", sha256="0" * 64, not_after="2027-01-01T00:00:00Z"),
    ServiceSeen(
        operation="run_started", detail="2 arguments, diverted by connect_hook", user="root", command=("/usr/bin/sh",)
    ),
    ServiceSeen(operation="run_ended", status=0),
    ReviewSeen(operation="quarantine_released", item="0", user="root", people=("a", "b"), keys=("0", "1")),
)


def samples() -> list[bytes]:
    """Envelopes of several machines, and of what mitmsec says of itself."""
    stamp = BEGINS.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    own = [Draft(*fields_of(seen)[:1], "0" * 16, stamp, "supervisor", "0" * 8, fields_of(seen)[1]) for seen in OWN]
    drafts = [draft for seed in MACHINES for draft in islice(Machine(seed).drafts(EVENTS), EVENTS)]
    return [sealed(draft, seq)[1] for seq, draft in enumerate([*drafts, *own * 40])]


if __name__ == "__main__":
    sys.stdout.buffer.write(zstandard.train_dictionary(SIZE_BYTES, samples()).as_bytes())
