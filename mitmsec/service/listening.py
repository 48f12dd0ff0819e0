"""Who listens: read as it calls listen(), for a daemon's first process ends a moment later, often before it is read.

listen() ─► read ─┬─ it lived ───────────────────────────► remembered, by start and file
                  └─ it has ended: its heirs, which run
                     the same file, are read instead ────► where that file lies is known, and so is the program
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from mitmsec_redirect import proc_files
from mitmsec_redirect.inbound_records import Inbound, InboundKind
from mitmsec_redirect.owner import Owner
from mitmsec_redirect.process_history import TICK_NS
from mitmsec_redirect.processes import ProcessTable

HEIRS_LIMIT = 16


def whose(processes: ProcessTable, one: Inbound, heirs: Callable[[], Sequence[int]]) -> Owner:
    """The process that a record names. `heirs` are the pids of those who may run the same program."""

    def read() -> Owner:
        return processes.whose(one.pid, one.uid, one.comm, one.at_ns, one.caller)

    owner = read()
    if one.kind is not InboundKind.LISTENS or owner.process.exe is not None or one.caller is None:
        return owner
    for pid in heirs()[:HEIRS_LIMIT]:
        if (status := proc_files.status_of_pid(pid)) is not None:
            alike = msgspec.structs.replace(one.caller, start_ns=status.start_ticks * TICK_NS)
            processes.whose(pid, one.uid, one.comm, caller=alike)
    return read()
