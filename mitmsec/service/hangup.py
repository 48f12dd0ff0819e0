"""SIGHUP to the supervisor: the service's policy file is read again, by `mitmsec reload` in a process of its own.

The supervisor itself parses no policy and reads no key. What that process says goes to supervisor.log; if it could not
reload, the policy in force stays, and a fault says so. However often the signal comes, one reload is under way, and at
most one more follows it.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from mitmsec.audit.event import FaultSeen, Seen

RELOAD_DEADLINE_S = 120.0
FILE_LIMIT = 1024  # characters of a path in an order: one that long may have been cut


class Service(Protocol):
    """The session, as far as this needs it."""

    name: str

    @property
    def policy_file(self) -> str: ...


def command(state: Path, policy_file: str) -> Sequence[str]:
    """What reads the file again."""
    return sys.executable, "-P", "-m", "mitmsec", "reload", "--state", str(state), "--policy", policy_file


class Hangup:
    """Of one supervisor, on its loop."""

    def __init__(
        self,
        state: Path,
        service: Callable[[], Service | None],
        record: Callable[[Seen], None],
        log: Callable[[str], None],
        command: Callable[[Path, str], Sequence[str]] = command,
    ) -> None:
        self._state, self._service, self._record, self._log, self._command = state, service, record, log, command
        self._reloading: asyncio.Task[None] | None = None
        self._again = False

    def heard(self) -> None:
        """The signal has come."""
        if self._reloading is not None and not self._reloading.done():
            self._again = True
        else:
            self._reloading = asyncio.ensure_future(self._reload())

    async def _reload(self) -> None:
        self._again = True
        while self._again:
            self._again = False
            service = self._service()
            if service is None:
                self._log("SIGHUP: no service runs on this state, so there is nothing to reload")
            elif (why := await self._failed(service)) is not None:
                detail = f"SIGHUP: {service.policy_file} was not reloaded, and the policy in force stays: {why}"
                self._log(detail)
                self._record(FaultSeen(what="reload_failed", detail=detail, session=service.name))

    async def _failed(self, service: Service) -> str | None:
        """Why, in a few words; None: it was reloaded."""
        if len(service.policy_file) >= FILE_LIMIT:
            return "its path is too long to be known here; use mitmsec reload --policy"
        try:
            words = self._command(self._state, service.policy_file)
            child = await asyncio.create_subprocess_exec(*words, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT)
        except OSError as error:
            return str(error)
        try:
            async with asyncio.timeout(RELOAD_DEADLINE_S):
                said, _ = await child.communicate()
        except TimeoutError:
            child.kill()
            await child.wait()
            return f"mitmsec reload did not end within {RELOAD_DEADLINE_S:.0f} s"
        lines = said.decode(errors="replace").splitlines()
        for line in lines:
            self._log(f"SIGHUP: {line}")
        return None if child.returncode == 0 else (lines[0] if lines else f"status {child.returncode}")
