"""Packets for each CPU second of who takes them out of the kernel and puts them back.

Where TCP divides by itself (GSO off, on the link that they leave by), so that a packet is one of the network's and not
forty. Counted from outside: what is put back as if it had come in passes `lo` once, and nothing else does there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks import host
from benchmarks.figures import Metric
from benchmarks.measure import Figures
from benchmarks.outputs import Unreadable
from benchmarks.variants import Running
from mitmsec.service.left_diverters import is_diverter

LEAST_PACKETS = 1_000
_GSO_SEGMENTS = 65_535  # what a link has that nobody has changed
_SENT_AT = 9  # of the numbers behind an interface's name: so many packets


@contextmanager
def divided(namespace_fd: int) -> Iterator[None]:
    """Meanwhile no connection that begins there sends packets that are longer than the network's."""
    _divide(namespace_fd, 1)
    try:
        yield
    finally:
        _divide(namespace_fd, _GSO_SEGMENTS)


def counted(running: Running, download: Callable[[], object]) -> Figures:
    """What is put back during `download`, of a row that diverts; raises `Unreadable` where next to nothing is."""
    diverters = diverters_in(running.pids(), _words)
    before, all_s, alone_s = _put_back(running), running.cpu_s(), _cpu_s(diverters)
    download()
    packets, all_s, alone_s = _put_back(running) - before, running.cpu_s() - all_s, _cpu_s(diverters) - alone_s
    if packets < LEAST_PACKETS or not all_s:
        raise Unreadable(f"only {packets} packets were put back")
    if not diverters:  # nobody relays
        return {Metric.PACKETS: packets / all_s}
    return {Metric.PACKETS: packets / alone_s, Metric.PACKETS_RELAYED: packets / all_s}


def diverters_in(pids: Sequence[int], words: Callable[[int], Sequence[bytes]]) -> list[int]:
    """Those of the processes whose command line names the diverter's module."""
    return [pid for pid in pids if is_diverter(words(pid))]


def sent_on_loopback(table: str) -> int:
    """How many packets `lo` has sent, by /proc/net/dev; raises `Unreadable`."""
    for line in table.splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[_SENT_AT])
    raise Unreadable(f"no lo in {table[:200]!r}")


def cpu_ticks(stat: str) -> int:
    """User and system time in /proc/PID/stat."""
    fields = stat.rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def _divide(namespace_fd: int, segments: int) -> None:
    with host.within(namespace_fd):
        for link in host.links():
            host.run(["ip", "link", "set", link, "gso_max_segs", str(segments)])


def _put_back(running: Running) -> int:
    return sent_on_loopback(Path(f"/proc/{running.client_pid}/net/dev").read_text())


def _cpu_s(pids: Sequence[int]) -> float:
    ticks = sum(cpu_ticks(Path(f"/proc/{pid}/stat").read_text()) for pid in pids)
    return ticks / os.sysconf("SC_CLK_TCK")


def _words(pid: int) -> Sequence[bytes]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
