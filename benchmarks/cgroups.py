"""One cgroup a variant: whose CPU time and memory it is, and the means to end all of it.

The kernel counts a cgroup's CPU in `cpu.stat` to the microsecond and keeps the time of children that have ended.
Programs that the proxy itself moves elsewhere (the command of `mitmsec run`) are not counted; where that place is
nested in ours `variants.Running` takes them out.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_PREFIX = "mitmsec-bench-"


@dataclass(frozen=True, slots=True)
class Cgroup:
    """A cgroup v2 folder."""

    path: Path

    def child(self, name: str) -> Cgroup:
        """A new cgroup in this one."""
        made = Cgroup(self.path / name)
        made.path.mkdir()
        return made

    def cpu_s(self) -> float:
        """User and system seconds used so far, everything nested included."""
        for line in (self.path / "cpu.stat").read_text().splitlines():
            if line.startswith("usage_usec "):
                return int(line.split()[1]) / 1e6
        raise LookupError(f"{self.path} has no usage_usec")

    def pids(self) -> list[int]:
        """The processes in this cgroup and those nested in it."""
        return [int(pid) for listing in self.path.rglob("cgroup.procs") for pid in listing.read_text().split()]

    def remove(self, deadline_s: float = 5.0) -> None:
        """End what is left in it and take the folders away; raises `OSError` where that fails for `deadline_s`."""
        until = time.monotonic() + deadline_s
        while True:
            for pid in self.pids():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            try:
                return self._remove_folders()
            except OSError:  # the kernel keeps a cgroup busy until its last process is wholly gone
                if time.monotonic() > until:
                    raise
            time.sleep(0.02)

    def _remove_folders(self) -> None:
        for folder in sorted((p for p in self.path.rglob("*") if p.is_dir()), reverse=True):
            folder.rmdir()
        self.path.rmdir()


def mounted_at() -> Path:
    """Where this machine mounts cgroup v2; raises LookupError where it has none."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    raise LookupError("cgroup v2 is not mounted")


def of_process(pid: int) -> Path:
    """The cgroup v2 folder that the process is in."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            return mounted_at() / line[3:].lstrip("/")
    raise LookupError(f"process {pid} is in no cgroup v2")


@contextmanager
def own_cgroup() -> Iterator[Cgroup]:
    """This run's cgroup, removed at the end; those that killed runs left are removed first."""
    root = mounted_at()
    for stale in root.glob(f"{_PREFIX}*"):
        if not Path("/proc", stale.name.removeprefix(_PREFIX)).exists():
            with suppress(OSError):
                Cgroup(stale).remove()
    own = Cgroup(root).child(f"{_PREFIX}{os.getpid()}")
    try:
        yield own
    finally:
        own.remove()


def inside(cgroup: Cgroup, argv: Sequence[str]) -> list[str]:
    """The command line that runs `argv` in the cgroup, from its first instruction on."""
    shell = shutil.which("sh") or "/bin/sh"
    return [shell, "-c", 'echo 0 > "$0/cgroup.procs" && exec "$@"', str(cgroup.path), *argv]


def resident_mib(pid: int, field: str = "VmRSS") -> float:
    """A field of the process's status (`VmRSS`, `VmHWM`) in MiB; 0 for one that has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / 1024
    return 0.0


def forget_peak(pid: int) -> None:
    """Start the process's `VmHWM` again from what it holds now."""
    with suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")
