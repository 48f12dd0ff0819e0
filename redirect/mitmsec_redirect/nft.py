"""The program nft(8), and the tables that a dead owner left.

A table says in its remark who owns it: pid and start time. Rules outlive their owner, which is what `on_failure =
"closed"` wants; `reap` removes what nobody owns any more.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import Final

from mitmsec_redirect import netns, nft_rules
from mitmsec_redirect.backend import BackendUnavailable
from mitmsec_redirect.nfnetlink import Nfnetlink, Table
from mitmsec_redirect.socket_owner import started_ticks

FOLDERS: Final = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin"  # not the caller's PATH: this runs as root
DEADLINE_S = 10.0
_OWNER = re.compile(r"mitmsec owner (\d+) (\d+)")


class RulesRefused(OSError):
    """nft or the kernel did not take the rules; the text says why. Nothing has changed."""


def load(text: str, netns_fd: int | None = None, folders: str = FOLDERS) -> None:
    """One transaction in that network namespace. Raises BackendUnavailable, FileExistsError, RulesRefused."""
    program = shutil.which("nft", path=folders)
    if program is None:
        raise BackendUnavailable("the program nft is not installed", "Install it (Debian: apt-get install nftables).")
    command = [program, "-f", "-"]

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=DEADLINE_S, env={"LC_ALL": "C"}, check=False
        )

    try:
        done = netns.inside(netns_fd, run)
    except subprocess.TimeoutExpired as error:
        raise RulesRefused(f"nft: no answer within {DEADLINE_S:.0f} s") from error
    if done.returncode == 0:
        return
    said = next((line for line in done.stderr.splitlines() if "rror:" in line), done.stderr.strip())
    if "Operation not permitted" in done.stderr:
        raise BackendUnavailable("nft may not change rules here", "Run it as root: sudo mitmsec …")
    if "File exists" in said:
        raise FileExistsError(f"nft: {said}")
    raise RulesRefused(f"nft: {said}")


def owner_remark(pid: int | None = None) -> str:
    """What a table of this process (or `pid`) says about its owner."""
    pid = os.getpid() if pid is None else pid
    return f"mitmsec owner {pid} {started_ticks(pid) or 0}"


def is_dead(table: Table) -> bool:
    """It says that it is ours, and its owner has ended. False for a table that says nothing of the kind."""
    match = _OWNER.fullmatch(table.comment)
    return match is not None and (started_ticks(int(match[1])) != int(match[2]) or _has_ended(int(match[1])))


def _has_ended(pid: int) -> bool:
    """Though nobody has waited for it yet: a killed supervisor whose front-end has other things to do."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def leftovers(prefix: str, netns_fd: int | None = None) -> list[Table]:
    """Tables whose name begins so, those of the living included. Raises OSError."""

    def read() -> list[Table]:
        with contextlib.closing(Nfnetlink()) as link:
            return [table for table in link.tables() if table.name.startswith(prefix)]

    return netns.inside(netns_fd, read)


def reap(prefix: str, netns_fd: int | None = None, *, keep: Collection[str] = ()) -> list[str]:
    """Remove the tables of dead owners, but for those in `keep`; their names. A second look proves it, else OSError."""
    dead = [table.name for table in leftovers(prefix, netns_fd) if table.name not in keep and is_dead(table)]
    for name in dead:
        load(nft_rules.delete(name), netns_fd)
    if dead and (left := {table.name for table in leftovers(prefix, netns_fd)} & set(dead)):
        raise OSError(f"still there: {', '.join(sorted(left))}")
    return dead
