"""Tables of nftables that dead supervisors left, in whatever network namespace they are.

A table can be seen and removed only from within its namespace, so each one is visited that there is.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection, Iterator

from mitmsec.service import namespaces
from mitmsec_redirect import nft
from mitmsec_redirect.backend import BackendUnavailable


def reap(state_id: str, *, keep: Collection[str] = ()) -> list[tuple[str, str]]:
    """Remove the tables of this state's dead owners, but for those in `keep`: their names, and what went wrong."""
    done: list[tuple[str, str]] = []
    for place, fd in _namespaces():
        if not _present(state_id, fd):
            continue
        try:
            done += [(name, "") for name in nft.reap(_prefix(state_id), fd, keep=keep)]
        except (OSError, BackendUnavailable) as error:
            done.append((f"{_prefix(state_id)}* in {place}", str(error)))
    return done


def remaining(state_id: str) -> list[str]:
    """The tables of this state that are there, those of the living included."""
    found: list[str] = []
    for _, fd in _namespaces():
        found += [f"table {name}" for name in _present(state_id, fd)]
    return found


def _present(state_id: str, netns_fd: int) -> list[str]:
    with contextlib.suppress(OSError):  # a kernel without nf_tables has no tables
        return [table.name for table in nft.leftovers(_prefix(state_id), netns_fd)]
    return []


def _prefix(state_id: str) -> str:
    return f"mitmsec-{state_id}-"


def _namespaces() -> Iterator[tuple[str, int]]:
    if shutil.which("nft", path=nft.FOLDERS) is None:  # nobody here has made a table
        return iter(())
    return namespaces.found()
