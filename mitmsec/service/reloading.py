"""Another policy for a service that runs: all of it, or nothing.

    new workers, in reserve ──► hook: whom it selects, on which terms ──► gate: "by this policy, to these workers"
          │ not started            │ refused                                 │ no answer: it may have heard, or not
          ▼                        ▼                                         ▼
    nothing was changed        the old terms again  ◄──────────────────  the gate is ended; the next begins with them

What a gate remembers of owners (`gate/owners.py`) was answered by the selection of its time, and is forgotten with the
policy. So a gate of which nobody knows what it has heard does not go on; another one is built, as when a gate dies. Old
terms that the kernel will not take back are tried again, each second, and a fault says so each time.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from mitmsec.channel import close_all
from mitmsec.core.model import Value
from mitmsec.core.policy import Policy
from mitmsec.service.scopes import NOBODY, Heirs
from mitmsec_redirect.backend import BackendUnavailable

RESTORE_AGAIN_S = 1.0


class Gate(Protocol):
    def kill(self) -> None: ...


class Children(Protocol):
    """Gate and workers (mitmsec.service.gate_and_workers)."""

    building: asyncio.Lock

    @property
    def gate(self) -> Gate | None: ...
    def successors(self) -> AbstractAsyncContextManager[tuple[int, ...]]: ...
    async def govern(self, numbers: tuple[int, ...]) -> None: ...


class Ground(Protocol):
    """The session. What it holds, its children are started with."""

    policy: Policy
    policy_fd: int
    roots_fd: int
    keys_fd: int | None

    @property
    def children(self) -> Children: ...
    def heirs(self) -> Heirs: ...
    def change_hook(self, policy: Policy, heirs: Heirs) -> None:
        """Raises BackendUnavailable, OSError; then some of it may have changed."""

    def fault(self, what: str, detail: str = "") -> None: ...


class Terms(Value, frozen=True):
    """A policy, and what comes with it."""

    policy: Policy
    policy_fd: int
    roots_fd: int
    keys_fd: int | None

    @classmethod
    def of(cls, ground: Ground) -> Terms:
        return cls(ground.policy, ground.policy_fd, ground.roots_fd, ground.keys_fd)

    def hold(self, ground: Ground) -> None:
        ground.policy, ground.policy_fd = self.policy, self.policy_fd
        ground.roots_fd, ground.keys_fd = self.roots_fd, self.keys_fd

    def close(self) -> None:
        close_all([fd for fd in (self.policy_fd, self.roots_fd, self.keys_fd) if fd is not None])


class Reloading:
    """Of one session, on its loop."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._owed: Heirs | None = None  # the hook is still to have the old terms again, and these their inheritance
        self._again_s = 0.0

    async def exchange(self, terms: Terms) -> None:
        """These terms for every connection from now on; the ground owns the descriptors then.

        The children's `building` is to be held. Raises ChildFailed, OSError, BackendUnavailable; then the old terms
        are in force as before.
        """
        before = Terms.of(self._ground)
        terms.hold(self._ground)
        try:
            async with self._ground.children.successors() as numbers:
                await self._govern(numbers, before)
        except BaseException:
            before.hold(self._ground)
            raise
        self._owed = None
        before.close()

    async def _govern(self, numbers: tuple[int, ...], before: Terms) -> None:
        ground = self._ground
        heirs = ground.heirs() if self._owed is None else self._owed  # what they inherit is with the old terms
        try:
            ground.change_hook(ground.policy, NOBODY)
            await self._tell_gate(numbers)
        except BaseException:
            before.hold(ground)  # at once: to dismiss the successors may take seconds
            self._restore(heirs)
            raise

    async def _tell_gate(self, numbers: tuple[int, ...]) -> None:
        children = self._ground.children
        try:
            await children.govern(numbers)
        except BaseException:
            if children.gate is not None:
                children.gate.kill()
            raise

    def look(self) -> None:
        """Time has passed: what could not be restored may be now."""
        is_due = self._owed is not None and time.monotonic() >= self._again_s
        if is_due and not self._ground.children.building.locked():
            self._restore(self._owed or NOBODY)

    def _restore(self, heirs: Heirs) -> None:
        try:
            self._ground.change_hook(self._ground.policy, heirs)
        except (OSError, BackendUnavailable) as error:
            self._owed, self._again_s = heirs, time.monotonic() + RESTORE_AGAIN_S
            self._ground.fault("reload_not_undone", str(error))
        else:
            self._owed = None
