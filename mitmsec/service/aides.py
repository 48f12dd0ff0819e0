"""The processes that workers of a session ask, beside its signer and recorder: each is begun when one is first asked.

    every worker ──► broker     issuers on the network, connections to servers of inspectors
    where the policy names `yara` ──► scanner     the rules, compiled

Each policy has its own, as long as workers have it (`brokerages`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol

from mitmsec.core.messages import Role
from mitmsec.service.brokerage import Brokerage
from mitmsec.service.brokerages import Brokerages, Terms
from mitmsec.service.children import ChildProcess
from mitmsec.service.scanner_messages import ScannerGone, ScannerSettings

SCANNER_PAUSE_S = 1.0  # after one that died: bodies wait for the next
SCANNER_HANGS_S = 30.0  # it answers nothing while it scans, which it does for ten seconds at most


class Begin(Protocol):
    """Makes a process of this role that is shown these folders. Raises OSError."""

    def __call__(self, role: Role, shows: tuple[str, ...] = ()) -> ChildProcess: ...


class Scanners(Brokerages):
    """As brokerages, of scanners."""

    def _made(self) -> Brokerage:
        return Brokerage(
            lambda: self._begin(()),
            os.dup(self._terms.policy_fd),  # the session closes its own with the policy
            self._terms.fault,
            settings=ScannerSettings(),
            role=Role.SCANNER,
            pause_s=SCANNER_PAUSE_S,
            hangs_s=SCANNER_HANGS_S,
            gone=lambda another_comes: ScannerGone(another_comes=another_comes),
        )


type Elders = tuple[Brokerage | None, Brokerage | None]


class Aides:
    """Brokers and scanners of one session."""

    def __init__(self, terms: Terms, begin: Begin) -> None:
        self._terms = terms
        self._brokers = Brokerages(terms, lambda shows: begin(Role.BROKER, shows))
        self._scanners = Scanners(terms, lambda shows: begin(Role.SCANNER, shows))

    @property
    def all(self) -> list[ChildProcess]:
        """Those that a worker's first question has begun."""
        return [*self._brokers.brokers, *self._scanners.brokers]

    @contextmanager
    def channels(self, worker: int) -> Iterator[tuple[int, ...]]:
        """A worker's ends of new channels, closed here after the block: to a broker and, where it scans, to a scanner.

        Raises OSError.
        """
        with ExitStack() as stack:
            ends = [stack.enter_context(self._brokers.channel(worker))]
            if self._terms.policy.scans:
                ends.append(stack.enter_context(self._scanners.channel(worker)))
            yield tuple(end.fileno() for end in ends)

    def succeed(self) -> Elders:
        """Workers that begin from now on have another policy. Those of before, for `go_back`."""
        return self._brokers.succeed(), self._scanners.succeed()

    def go_back(self, elders: Elders) -> None:
        """There is no other policy; the workers that began under it are to be forgotten."""
        for brokerages, elder in zip((self._brokers, self._scanners), elders, strict=True):
            brokerages.go_back(elder)

    def forget(self, *workers: int) -> None:
        """They have ended. What serves nobody any more ends, too."""
        for brokerages in (self._brokers, self._scanners):
            brokerages.forget(*workers)

    def feel_pulse(self) -> None:
        """End a scanner that hangs. To be called ten times a second."""
        self._scanners.feel_pulse()

    def abandon(self) -> None:
        """End as with a killed supervisor."""
        for brokerages in (self._brokers, self._scanners):
            brokerages.abandon()

    async def stop(self) -> None:
        """End them; workers hear that they have gone."""
        await asyncio.gather(self._brokers.stop(), self._scanners.stop())
