"""What a session's hook covers: a command in a cgroup of its own, or, for the service, whom its policy selects.

CommandScope    one cgroup; the hook sees nothing else; whoever is in it is diverted
StandingScope   the cgroup2 root; the hook asks a map whom to divert, and the gate asks us about those nobody knows
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol

from mitmsec.core.model import Process
from mitmsec.core.policy import Policy
from mitmsec.service.ground import release_beside
from mitmsec_redirect import steps
from mitmsec_redirect.cgroup import SessionCgroup
from mitmsec_redirect.processes import ProcessTable
from mitmsec_redirect.verdicts import Verdict

type Heirs = Mapping[tuple[int, int], Verdict]
"""Who is selected for what started it, by pid and start in clock ticks, and what it has inherited."""

NOBODY: Heirs = {}


class Scope(Protocol):
    """What a session asks of it."""

    @property
    def path(self) -> Path:
        """The cgroup that the hook is put on."""

    @property
    def processes(self) -> ProcessTable | None:
        """Who knows its processes; None: the supervisor's own table."""

    @property
    def selection(self) -> steps.Selection | None:
        """Who in it is meant; None: all."""

    def selects(self, process: Process) -> bool: ...
    def heirs(self) -> Heirs: ...
    def govern(self, policy: Policy, heirs: Heirs = NOBODY) -> None:
        """Another policy is in force; `heirs` have inherited under it before, though their parents may have ended."""

    def own(self, pid: int) -> None:
        """The process is one of ours: its traffic is own traffic."""

    def look(self) -> None:
        """Time has passed: see whether those can be judged now who could not be before."""

    def leave_out(self, others: Collection[Path]) -> None:
        """The cgroups of commands, whose own hooks divert what is in them; those that were named before and now."""

    def pin(self, folder: Path) -> None:
        """The hook has been pinned there: whatever else it needs is to outlive us too."""

    def is_populated(self) -> bool:
        """Somebody is left for whom the network must stay closed, where the policy says closed."""

    def pids(self) -> list[int]: ...
    async def release(self, home: str | None) -> int:
        """The hook is gone: leave nothing behind. Who lives on moves to the cgroup `home`; their number."""


class CommandScope:
    """A command, its children, and nothing else."""

    selection = None
    processes = None

    def __init__(self, cgroup: SessionCgroup) -> None:
        self._cgroup = cgroup
        self.path = cgroup.path

    def selects(self, process: Process) -> bool:
        return True

    def heirs(self) -> Heirs:
        return NOBODY

    def govern(self, policy: Policy, heirs: Heirs = NOBODY) -> None:
        """The command is selected whatever the policy names."""

    def own(self, pid: int) -> None:
        """None of ours is in the cgroup."""

    def look(self) -> None:
        """The kernel knows who is in it."""

    def leave_out(self, others: Collection[Path]) -> None:
        """Its cgroup is nobody else's."""

    def pin(self, folder: Path) -> None:
        """The hook needs nothing but the cgroup."""

    def is_populated(self) -> bool:
        return self._cgroup.is_populated()

    def pids(self) -> list[int]:
        return self._cgroup.pids()

    async def release(self, home: str | None) -> int:
        return await release_beside(self._cgroup, home)
