"""Which programs are selected at all, under a standing service: those that some `[[application]]` of the policy names.

Under `mitmsec run` the command is the selection, and nobody asks this.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from mitmsec.core.model import Confidence, Process
from mitmsec.core.rules import Application
from mitmsec.core.selector import Program

EVERY_PATH = frozenset({"*", "/*"})


class Selection:
    """What the applications of a policy select."""

    __slots__ = ("_alone", "_heirs", "_programs", "is_by_path", "is_empty", "is_everything")

    def __init__(self, applications: Iterable[Application]) -> None:
        named = tuple(applications)
        self._programs = tuple(map(Program, named))
        self.is_empty = not named
        self.is_everything = any(map(_is_every_program, named))
        self.is_by_path = not any(map(_asks_more_than_a_path, named))
        """The path of its executable says whether a program is selected, for what it is itself."""
        self._alone = tuple(Program(replace(one, children=False)) for one in named)
        self._heirs = tuple(Program(_for_itself(one)) for one in named if one.children)

    def holds(self, process: Process) -> bool | None:
        """Whether `process` is selected; None: it depends on what could not be read of it."""
        if self.is_everything or any(program.accepts(process) for program in self._programs):
            return True
        return False if all(program.can_judge(process) for program in self._programs) else None

    def names(self, path: str) -> bool:
        """Whether whoever executes the file `path` is selected, whatever has started it; only where `is_by_path`."""
        return any(program.accepts(_anybody(path)) for program in self._alone)

    def heirs_of(self, path: str) -> bool:
        """Whether what they start is selected with them."""
        return self.passes_on(_anybody(path))

    def passes_on(self, process: Process) -> bool:
        """Whether what `process` starts is selected with it."""
        return any(program.accepts(process) for program in self._heirs)


def _anybody(path: str) -> Process:
    return Process(pid=0, exe=path, confidence=Confidence.KERNEL)


def _for_itself(application: Application) -> Application:
    """Those who pass on what they are. Of a process that is named by its pid, all descendants do, not only itself."""
    return application if application.pid and not application.path else replace(application, children=False)


def _is_every_program(application: Application) -> bool:
    return not _asks_more_than_a_path(application) and bool(EVERY_PATH.intersection(application.path))


def _asks_more_than_a_path(application: Application) -> bool:
    return bool(
        application.process_name
        or application.user
        or application.sha256
        or application.service
        or application.signer
        or application.container
        or application.pid
    )
