"""Programs for tests of processes, and who one is with its hash."""

from __future__ import annotations

import os
import shutil

from mitmsec.core.model import Process
from mitmsec_redirect.processes import ProcessTable

CAT = shutil.which("cat") or ""
TRUE = os.path.realpath(shutil.which("true") or "")


def whose(table: ProcessTable, pid: int, uid: int, comm: str, connected_ns: int | None = None) -> Process:
    """The process, with the hash that came of it."""
    owner = table.whose(pid, uid, comm, connected_ns)
    if owner.sha256 is not None:
        owner.sha256.result(timeout=20)
    return owner.hashed()
