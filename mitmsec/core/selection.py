"""Which programs are selected at all, under a standing service: those that some `[[application]]` of the policy names.

Under `mitmsec run` the command is the selection, and nobody asks this.
"""

from __future__ import annotations

from collections.abc import Iterable

from mitmsec.core.model import Process
from mitmsec.core.rules import Application
from mitmsec.core.selector import Program

EVERY_PATH = frozenset({"*", "/*"})


class Selection:
    """What the applications of a policy select."""

    __slots__ = ("_programs", "is_empty", "is_everything")

    def __init__(self, applications: Iterable[Application]) -> None:
        named = tuple(applications)
        self._programs = tuple(map(Program, named))
        self.is_empty = not named
        self.is_everything = any(map(_is_every_program, named))

    def holds(self, process: Process) -> bool | None:
        """Whether `process` is selected; None: it depends on what could not be read of it."""
        if self.is_everything or any(program.accepts(process) for program in self._programs):
            return True
        return False if all(program.can_judge(process) for program in self._programs) else None


def _is_every_program(application: Application) -> bool:
    narrowed = application.process_name or application.user or application.sha256
    return not narrowed and bool(EVERY_PATH.intersection(application.path))
