"""A variant: how its clients' connections are led through its proxy, and which certificate then proves it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import cgroups
from benchmarks.cgroups import Cgroup
from benchmarks.host import end_with_us
from benchmarks.shell import Shell

_START_DEADLINE_S = 30


@dataclass(frozen=True, slots=True)
class Variant:
    """One row of the result, as it is to be started.

    `issuer` is what the issuer of the certificate that curl sees must contain; `""` accepts any that is none of the
    benchmark's own authorities. `diverts` is the command prefix under which the clients' shell runs; `proxy` is a
    daemon, started in the variant's cgroup; `clients` is the cgroup of the shell, where it needs one.
    """

    name: str
    issuer: str
    diverts: tuple[str, ...] = ()
    proxy: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    clients: Cgroup | None = None
    programs: Mapping[str, str] = field(default_factory=dict)
    http2: bool = True
    prepare: Callable[[], None] | None = None

    @property
    def intercepts(self) -> bool:
        """Whether anything stands between client and origin."""
        return bool(self.proxy or self.diverts)

    @property
    def is_ours(self) -> bool:
        """Whether it is mitmsec."""
        return self.name.startswith("mitmsec")


class Running:
    """A started variant: its clients' shell, and the account of its proxy's CPU and memory."""

    def __init__(self, variant: Variant, cgroup: Cgroup, folder: Path) -> None:
        """Start proxy and shell; raises `OSError`, `Ended`, `TooLate`."""
        self.variant, self.cgroup = variant, cgroup
        if variant.prepare is not None:
            variant.prepare()
        self._log = folder / "proxy.log"
        self._proxy = self._start_proxy(variant.proxy) if variant.proxy else None
        home = cgroup if variant.is_ours else variant.clients
        argv = list(variant.diverts)
        self.shell = Shell(cgroups.inside(home, argv) if home else argv, folder, variant.environment)
        self.client_pid = self.shell.pid(_START_DEADLINE_S)
        self._command = cgroups.of_process(self.client_pid)

    def cpu_s(self) -> float:
        """CPU seconds that the proxy, and not its clients, has used."""
        clients_s = Cgroup(self._command).cpu_s() if self._has_clients_inside() else 0.0
        return self.cgroup.cpu_s() - clients_s

    def pids(self) -> list[int]:
        """The proxy's processes."""
        clients = set(Cgroup(self._command).pids()) if self._has_clients_inside() else set()
        return [pid for pid in self.cgroup.pids() if pid not in clients]

    def program(self, name: str) -> str:
        """What to call for wrk, curl or h2load."""
        return self.variant.programs.get(name, name)

    def proxy_says(self) -> str:
        """How the proxy ended if it did, and the beginning and end of what it printed, on one line."""
        if self._proxy is None:
            return ""
        ended = "" if self._proxy.poll() is None else f"proxy ended with {self._proxy.returncode}: "
        said = " ".join(self._log.read_text(errors="replace").split())
        return ended + (said if len(said) <= 300 else f"{said[:200]} … {said[-90:]}")

    def close(self) -> None:
        """End shell and proxy, and whatever is left of them."""
        self.shell.close()
        if self._proxy is not None:
            self._proxy.terminate()
            try:
                self._proxy.wait(5)
            except subprocess.TimeoutExpired:
                self._proxy.kill()
                self._proxy.wait()
        self.cgroup.remove()

    def _has_clients_inside(self) -> bool:
        return self._command.is_relative_to(self.cgroup.path)

    def _start_proxy(self, argv: Sequence[str]) -> subprocess.Popen[bytes]:
        with self._log.open("wb") as log:
            return subprocess.Popen(
                cgroups.inside(self.cgroup, end_with_us(argv)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
