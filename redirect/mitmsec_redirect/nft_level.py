"""At which level a rule finds a cgroup, asked of the kernel itself: a packet from the cgroup, and rules that count it.

    a network namespace for this alone
      child, in the cgroup ── one datagram ──► output: level 1? ── level 2? ── … ── level 64?     a counter each
                                                                     └─► counted: 2 is the level

Where levels count from depends on the kernel: until 6.12 the root of the hierarchy, since then (and in later releases
of 6.1 to 6.11) that of the caller's cgroup namespace, and then a cgroup that is not below has no level. Where paths
begin depends on what is mounted. A rule with the wrong level is taken as well as the right one, and never matches.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

from mitmsec_redirect import netns, nft, nft_rules
from mitmsec_redirect.backend import BackendUnavailable
from mitmsec_redirect.cgroup import SessionCgroup
from mitmsec_redirect.nfnetlink import Nfnetlink
from mitmsec_redirect.nft_rules import Terms

DEADLINE_S = 10.0
SENDER = """
import _socket, fcntl, struct, sys  # `socket` takes as long to import as all of this
with open(sys.argv[1], "w") as procs:
    procs.write("0")
sender = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
fcntl.ioctl(sender.fileno(), 0x8914, struct.pack("16sH14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
sender.sendto(b"", ("127.0.0.1", 9))
sender.close()
"""


def level_of(cgroup: SessionCgroup, terms: Terms) -> int:
    """The level for rules with these terms, which are the cgroup's; their own `level` does not count.

    Takes some tens of milliseconds, in which a child of ours is in the cgroup. Raises BackendUnavailable where no rule
    finds it, RulesRefused, OSError.
    """
    namespace = netns.fresh()
    try:
        nft.load(nft_rules.levels(terms), namespace)
        netns.inside(namespace, lambda: _send_from(cgroup))
        counted = netns.inside(namespace, lambda: _counted(terms.table))
    finally:
        os.close(namespace)
    for level in nft_rules.LEVELS:
        if counted.get(nft_rules.level_counter(level)):
            return level
    raise BackendUnavailable(
        f"no rule of nftables finds what the cgroup {cgroup.path} sends",
        "In a cgroup namespace, mount what it holds at an empty folder (mount -t cgroup2 none DIR), or leave it.",
    )


def _send_from(cgroup: SessionCgroup) -> None:
    command = [sys.executable, "-I", "-S", "-c", SENDER, str(cgroup.path / "cgroup.procs")]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=DEADLINE_S)
    except subprocess.SubprocessError as error:
        raise OSError(f"nothing can be sent from the cgroup {cgroup.path}: {error}") from error


def _counted(table: str) -> dict[str, int]:
    with contextlib.closing(Nfnetlink()) as link:
        return link.counters(table)
