"""A namespace with one link, and a cgroup with somebody in it: what a diverter works on."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mitmsec_redirect import clsact, netns
from mitmsec_redirect.cgroup import SessionCgroup


@dataclass(frozen=True)
class Ground:
    network: int
    cgroup: SessionCgroup
    sleeper: subprocess.Popen[bytes]

    def give_addresses(self) -> None:
        """A network behind the link, in which 10.79.0.2 never answers."""

        def give() -> None:
            for words in (
                "addr add 10.79.0.1/24 dev xa",
                "neigh add 10.79.0.2 lladdr 02:00:00:00:00:02 dev xa nud permanent",
            ):
                subprocess.run(["ip", *words.split()], check=True)

        netns.inside(self.network, give)

    def programs(self) -> int:
        """How many classifiers and qdiscs stand on the namespace's interfaces."""

        def count() -> int:
            with contextlib.closing(clsact.TrafficControl()) as control:
                interfaces = control.clsact()
                return len(interfaces) + sum(len(control.classifiers(one)) for one in interfaces)

        return netns.inside(self.network, count)

    def is_bare(self, within_s: float = 20) -> bool:
        """Nothing stands there, or soon: another sweeper of the machine may be at it."""
        deadline_s = time.monotonic() + within_s
        while (left := self.programs()) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        return left == 0


@contextlib.contextmanager
def ground(state_id: str) -> Iterator[Ground]:
    name = f"mitmsec-divert-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    cgroup = SessionCgroup.create(state_id, f"d{os.getpid()}")
    sleeper = subprocess.Popen(["sleep", "120"])
    network = os.open(f"/run/netns/{name}", os.O_RDONLY)
    try:
        for words in ("link set lo up", "link add xa type veth peer name xb", "link set xa up", "link set xb up"):
            subprocess.run(["ip", "-n", name, *words.split()], check=True)
        cgroup.put(sleeper.pid)
        yield Ground(network, cgroup, sleeper)
    finally:
        sleeper.kill()
        sleeper.wait()
        os.close(network)
        subprocess.run(["ip", "netns", "delete", name], check=True)
        while not cgroup.remove():
            pass


def stat_of(pid: int) -> str:
    """The letter of its state; empty: it has gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""
