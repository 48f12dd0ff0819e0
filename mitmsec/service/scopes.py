"""What a session's hook covers: a command in a cgroup of its own, or, for the service, whom its policy selects.

CommandScope    one cgroup; the hook sees nothing else; whoever is in it is diverted
StandingScope   the cgroup2 root; the hook asks a map whom to divert, and the gate asks us about those nobody knows
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from mitmsec.core.model import Process
from mitmsec.core.policy import Policy
from mitmsec.core.selection import Selection
from mitmsec.service.ground import release_beside
from mitmsec.service.owners import told
from mitmsec_redirect import steps
from mitmsec_redirect.bpf import EbpfUnavailable
from mitmsec_redirect.cgroup import SessionCgroup, cgroup2_root
from mitmsec_redirect.processes import ProcessTable
from mitmsec_redirect.running import RunningPrograms, Seen
from mitmsec_redirect.selected import SelectedProcesses
from mitmsec_redirect.verdicts import Verdict


class Scope(Protocol):
    """What a session asks of it."""

    @property
    def path(self) -> Path:
        """The cgroup that the hook is put on."""

    @property
    def selection(self) -> steps.Selection | None:
        """Who in it is meant; None: all."""

    def selects(self, process: Process) -> bool: ...
    def govern(self, policy: Policy) -> None:
        """Another policy is in force."""

    def own(self, pid: int) -> None:
        """The process is one of ours: its traffic is own traffic."""

    def look(self) -> None:
        """Time has passed: see who has begun and who has ended."""

    def leave_out(self, others: Collection[Path]) -> None:
        """The cgroups of commands, whose own hooks divert what is in them; those that were named before and now."""

    def is_populated(self) -> bool:
        """Somebody is left for whom the network must stay closed, where the policy says closed."""

    def pids(self) -> list[int]: ...
    async def release(self, home: str | None) -> int:
        """The hook is gone: leave nothing behind. Who lives on moves to the cgroup `home`; their number."""


class CommandScope:
    """A command, its children, and nothing else."""

    selection = None

    def __init__(self, cgroup: SessionCgroup) -> None:
        self._cgroup = cgroup
        self.path = cgroup.path

    def selects(self, process: Process) -> bool:
        return True

    def govern(self, policy: Policy) -> None:
        """The command is selected whatever the policy names."""

    def own(self, pid: int) -> None:
        """None of ours is in the cgroup."""

    def look(self) -> None:
        """The kernel knows who is in it."""

    def leave_out(self, others: Collection[Path]) -> None:
        """Its cgroup is nobody else's."""

    def is_populated(self) -> bool:
        return self._cgroup.is_populated()

    def pids(self) -> list[int]:
        return self._cgroup.pids()

    async def release(self, home: str | None) -> int:
        return await release_beside(self._cgroup, home)


class StandingScope:
    """Whom the policy selects, in all cgroups."""

    def __init__(self, policy: Policy, processes: ProcessTable) -> None:
        """Raises EbpfUnavailable, OSError."""
        self.path = _whole_hierarchy()
        self.selected = SelectedProcesses()
        self._processes = processes
        self._selection = Selection(policy.applications)
        self._running = RunningPrograms()
        self._undecided: dict[int, Seen] = {}
        self._own: set[int] = set()
        self._left_out: dict[Path, int] = {}
        self.look()

    @property
    def selection(self) -> steps.Selection:
        return self.selected.selection(everything=self._selection.is_everything)

    def selects(self, process: Process) -> bool:
        """Who cannot be judged counts as selected: what is done with them is then the policy's word on failures."""
        return self._selection.holds(process) is not False

    def govern(self, policy: Policy) -> None:
        self._selection = Selection(policy.applications)
        self._running = RunningPrograms()
        self._undecided.clear()
        self.look()

    def own(self, pid: int) -> None:
        self._own.add(pid)
        self.selected.say(pid, Verdict.OWN_TRAFFIC)

    def leave_out(self, others: Collection[Path]) -> None:
        for path in self._left_out.keys() - set(others):
            self.selected.take_in(self._left_out.pop(path))
        for path in set(others) - self._left_out.keys():
            self._left_out[path] = self.selected.leave_out(path)

    def look(self) -> None:
        changes = self._running.look()
        for pid in changes.ended:
            self._own.discard(pid)
            self._undecided.pop(pid, None)
            self.selected.withdraw(pid)
        for pid, seen in {**self._undecided, **changes.begun}.items():
            if pid not in self._own:
                self._judge(pid, seen)

    def _judge(self, pid: int, seen: Seen) -> None:
        """A program whose hash decides is undecided until that is there."""
        holds = self._selection.holds(told(self._processes.whose(pid, seen.uid, "")))
        self._undecided.pop(pid, None)
        if holds is None:
            self._undecided[pid] = seen
            self.selected.say(pid, Verdict.UNDECIDED)
        elif holds:
            self.selected.say(pid, Verdict.SELECTED)
        else:
            self.selected.withdraw(pid)

    def is_populated(self) -> bool:
        """An order to end the service is an order to let go of everybody."""
        return False

    def pids(self) -> list[int]:
        return []

    async def release(self, home: str | None) -> int:
        self.selected.close()
        return 0


def _whole_hierarchy() -> Path:
    """The root of all cgroups. Raises EbpfUnavailable where only a part of them is visible."""
    root = cgroup2_root()
    if (root / "cgroup.type").exists():  # every cgroup has this file but the root
        raise EbpfUnavailable(
            f"{root} is a part of the machine's cgroups only",
            "Start the service outside of containers and cgroup namespaces; `mitmsec run` works here.",
        )
    return root
