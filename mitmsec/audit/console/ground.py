"""What the pages stand on, given to them by whoever starts the console."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Protocol

from mitmsec.audit.checkpoint import Checks
from mitmsec.audit.console.desk import Unmask
from mitmsec.audit.console.desk_store import DeskStore
from mitmsec.audit.envelope import Fields
from mitmsec.audit.event import ReviewSeen
from mitmsec.audit.review import Review, opened
from mitmsec.audit.verifying import Broken, Other, Verified
from mitmsec.core.model import Severity, Value
from mitmsec.core.notice import NO_NOTICE, Notice


class Recording(Protocol):
    """The way into the log."""

    async def __call__(self, seen: ReviewSeen) -> bool:
        """Whether it is on disk."""


class Vault(Protocol):
    """Where what was redacted is kept, where policy keeps any."""

    async def holds(self, event: Fields) -> bool:
        """Whether there is something of this finding to be shown."""

    async def opened(self, event: Fields, asked: Unmask) -> str | None:
        """What was redacted; None: it has gone."""


class EmptyVault:
    """Nothing is kept."""

    async def holds(self, event: Fields) -> bool:
        return False

    async def opened(self, event: Fields, asked: Unmask) -> str | None:
        return None


class Format(Protocol):
    """A further file of an export bundle."""

    @property
    def name(self) -> str:
        """As people choose it."""

    @property
    def file(self) -> str: ...

    def written(self, events: Sequence[Fields]) -> bytes: ...


class Verification(Value, frozen=True):
    """The newest one, of this console's life."""

    at: str
    by: str
    done: int = 0  # events looked at so far
    total: int = 0
    result: Verified | Broken | Other | None = None  # None: it goes on
    failed: str = ""

    @property
    def is_going_on(self) -> bool:
        return self.result is None and not self.failed


class Ground:
    """Belongs to the console's loop."""

    def __init__(
        self,
        log: Path,
        desk: DeskStore,
        record: Recording,
        executor: Executor,
        now: Callable[[], datetime],
        checks: Checks,
        hosts: frozenset[str],
        *,
        secure: bool = False,
        two_people: frozenset[str] = frozenset({Severity.HIGH}),
        vault: Vault | None = None,
        formats: Sequence[Format] = (),
    ) -> None:
        """`hosts`: what browsers may call it, with its port. `executor` reads the log. `two_people`: severities that
        want two signatures.
        """
        self.log, self.desk, self.record, self.now = log, desk, record, now
        self.checks, self.hosts, self.secure, self.two_people = checks, hosts, secure, two_people
        self.vault: Vault = vault or EmptyVault()
        self.formats = {one.name: one for one in formats}
        self.notice: Notice = NO_NOTICE
        self.ordering = asyncio.Lock()  # a case is read, judged, recorded and kept by one order at a time
        self.verification: Verification | None = None
        self._executor = executor
        self._tasks: set[asyncio.Task[None]] = set()

    def keep(self, task: asyncio.Task[None]) -> None:
        """Nobody waits for it, and it must not be lost."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def asked[T](self, question: Callable[[Review], T]) -> T:
        """What the log answers. Raises NoLog, Unreadable."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._answer, question)

    async def worked[T](self, work: Callable[[], T]) -> T:
        """Something that takes its time, beside the loop."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def _answer[T](self, question: Callable[[Review], T]) -> T:
        with self.review() as review:
            return question(review)

    @contextmanager
    def review(self) -> Iterator[Review]:
        """The log, for the thread that asks."""
        with opened(self.log) as review:
            yield review
