"""The brokerages of a session: one for each policy that workers still have.

    reload ──► new workers, with the first of them a brokerage of their own ──► in force: the elder serves its workers,
                                  │                                                     and ends with the last of them
                                  └── it fails: the elder goes on, and knows of nothing

So whom a worker may ask, and about what, is what its own policy says, for as long as it lives.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Protocol

from mitmsec.core.policy import Policy
from mitmsec.service.background import Background
from mitmsec.service.broker_messages import BrokerSettings
from mitmsec.service.brokerage import Brokerage
from mitmsec.service.children import ChildProcess


class Terms(Protocol):
    """The session, with the policy that is in force when a worker starts."""

    policy: Policy
    policy_fd: int
    roots_fd: int

    def fault(self, what: str, detail: str = "") -> None: ...


class Brokerages:
    """`begin` makes a process in the session's network that is shown these folders."""

    def __init__(self, terms: Terms, begin: Callable[[tuple[str, ...]], ChildProcess]) -> None:
        self._terms = terms
        self._begin = begin
        self._current: Brokerage | None = None  # until a worker begins
        self._serving: list[Brokerage] = []
        self._ending: list[Brokerage] = []
        self._of_worker: dict[int, Brokerage] = {}
        self._background = Background()

    @property
    def brokers(self) -> list[ChildProcess]:
        """Those that a worker's first question has begun."""
        return [one.broker for one in self._all if one.broker is not None]

    @property
    def _all(self) -> list[Brokerage]:
        return [*self._serving, *self._ending]

    def channel(self, worker: int) -> socket.socket:
        """A worker's end of a new channel; the caller's. Raises OSError."""
        if self._current is None:
            self._current = self._made()
            self._serving.append(self._current)
        self._of_worker[worker] = self._current
        return self._current.channel()

    def _made(self) -> Brokerage:
        policy = self._terms.policy
        return Brokerage(
            lambda: self._begin(_folders(policy.servers)),
            os.dup(self._terms.roots_fd),  # the session closes its own with the policy
            self._terms.fault,
            settings=BrokerSettings(servers=policy.servers, clamds=policy.clamds),
        )

    def succeed(self) -> Brokerage | None:
        """Workers that begin from now on have another policy. The one of before, for `go_back`."""
        elder, self._current = self._current, None
        return elder

    def go_back(self, elder: Brokerage | None) -> None:
        """There is no other policy; the workers that began under it are to be forgotten."""
        self._current = elder

    def forget(self, *workers: int) -> None:
        """They have ended. What serves nobody any more ends, too."""
        for worker in workers:
            self._of_worker.pop(worker, None)
        needed = {id(one) for one in (self._current, *self._of_worker.values())}
        for one in [one for one in self._serving if id(one) not in needed]:
            self._serving.remove(one)
            self._ending.append(one)
            self._background.begin(self._end(one))

    async def _end(self, one: Brokerage) -> None:
        await one.stop()
        self._ending.remove(one)

    def abandon(self) -> None:
        """End as with a killed supervisor."""
        for one in self._all:
            one.abandon()

    def feel_pulse(self) -> None:
        """End those that hang. To be called ten times a second."""
        for one in self._all:
            one.feel_pulse()

    async def stop(self) -> None:
        """End them; workers hear that they have gone."""
        await asyncio.gather(*(one.stop() for one in self._all))


def _folders(servers: tuple[str, ...]) -> tuple[str, ...]:
    """Where sockets of servers lie: a server that is started again makes another one there."""
    return tuple({os.path.dirname(address) for address in servers if address.startswith("/")} - {"/"})
