"""A console on a log that is written to while it is read, with accounts of every role, and a browser to look at it."""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import uvicorn
from argon2 import PasswordHasher
from audit_events import CURL, SIGNER, store_in

from mitmsec.audit.console import passwords
from mitmsec.audit.console.desk import Unmask
from mitmsec.audit.console.desk_store import DeskStore
from mitmsec.audit.console.duty import Duty
from mitmsec.audit.console.ground import Ground
from mitmsec.audit.console.web import Console
from mitmsec.audit.envelope import Draft, Fields, event_id, fields_of
from mitmsec.audit.event import ConnectionSeen, Kind, ReviewSeen, Seen
from mitmsec.core.model import Process
from mitmsec.seal import checks

PASSWORD = "four plain words here"
QUICK = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1)  # how strong they are, test_passwords.py says
_HASH: list[str] = []
NOW = datetime(2026, 11, 9, 10, 0, tzinfo=UTC)


class WrittenLog:
    """A log as a recorder leaves it: each event is committed, and signed for, before `append` returns."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._store = store_in(folder)

    def append(
        self, seen: Sequence[tuple[datetime, Seen]], process: Process = CURL, host: str = "api.example.com"
    ) -> None:
        drafts = []
        for at, one in seen:
            kind, fields = fields_of(one, process, host)
            number = event_id(one) if isinstance(one, ConnectionSeen) else secrets.token_hex(8)
            time = at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            drafts.append(Draft(kind, number, time, "gate", "run-1", fields))
        self._store.append(drafts, signs=True)

    def append_fields(self, kind: Kind, fields: Fields, at: datetime) -> None:
        """An event of any content."""
        time = at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        self._store.append(
            [Draft(kind, str(fields.pop("id", secrets.token_hex(8))), time, "gate", "run-1", fields)], signs=True
        )

    def close(self) -> None:
        self._store.close()


class FullVault:
    """Holds one text for every finding."""

    def __init__(self) -> None:
        self.opened_for: list[tuple[str, str]] = []

    async def holds(self, event: Fields) -> bool:
        return True

    async def opened(self, event: Fields, asked: Unmask) -> str | None:
        self.opened_for.append((asked.asked_by, asked.decided_by))
        return "promotion-4711-in-full"


class Browser:
    """Sends what a browser would, and follows nothing."""

    def __init__(self, stage: Stage, token: str) -> None:
        self.token = token
        cookies = {"mitmsec": token} if token else {}
        own = f"http://{stage.host}"
        self.client = httpx.Client(base_url=own, cookies=cookies, headers={"origin": own}, trust_env=False)
        found = stage.desk.session(token, stage.now) if token else None
        self.csrf = found[0].csrf if found is not None else ""

    def get(self, address: str) -> httpx.Response:
        return self.client.get(address)

    def send(self, address: str, /, **fields: str | list[str]) -> httpx.Response:
        """A form, with the session's token."""
        return self.client.post(address, data={"csrf": self.csrf, **fields})


class Stage:
    """A console and all that it stands on. `reviews` is what it put on record."""

    def __init__(self, folder: Path, **given: Any) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        (folder / "log").mkdir()
        (folder / "review").mkdir(mode=0o700)
        self.log = WrittenLog(folder / "log")
        self.reviews: list[ReviewSeen] = []
        self.takes = True  # whether the log takes what is to be recorded
        self.now = NOW
        self.vault = FullVault()
        self.desk = DeskStore(folder / "review")
        self._executor = ThreadPoolExecutor(2)
        self.ground = Ground(
            folder / "log",
            self.desk,
            self._record,
            self._executor,
            lambda: self.now,
            checks,
            frozenset({self.host}),
            vault=self.vault,
            **given,
        )
        self.console = Console(self.ground)
        self._thread: Thread | None = None

    async def _record(self, seen: ReviewSeen) -> bool:
        if self.takes:
            self.reviews.append(seen)
            self.log.append([(self.now, seen)])
        return self.takes

    def account(self, name: str, duty: Duty, *, must_change: bool = False) -> None:
        passwords._HASHER = QUICK
        if not _HASH:
            _HASH.append(passwords.hashed(PASSWORD))
        self.desk.add_account(name, duty, _HASH[0], self.now)
        if not must_change:
            self.desk.change_password(name, _HASH[0], must_change=False)

    def serve(self) -> None:
        """On a port of this machine's, until `close`."""
        config = uvicorn.Config(self.console.app, log_level="error", lifespan="off", ws="none")
        self._server = uvicorn.Server(config)
        self._thread = Thread(target=self._server.run, kwargs={"sockets": [self._listener]})
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def browser(self, name: str | None = None) -> Browser:
        """Signed in as `name`, without the page."""
        token = self.desk.begin_session(name, "test", self.now) if name is not None else ""
        return Browser(self, token)

    def close(self) -> None:
        if self._thread is not None:
            self._server.should_exit = True
            self._thread.join()
        self._listener.close()
        self._executor.shutdown()
        self.desk.close()
        self.log.close()


@contextmanager
def stage(folder: Path, **given: Any) -> Iterator[Stage]:
    made = Stage(folder, **given)
    made.serve()
    try:
        yield made
    finally:
        made.close()


def done(reviews: list[ReviewSeen]) -> list[tuple[str, str]]:
    """Who did what, without looks at pages."""
    return [(one.user, one.operation) for one in reviews if not one.operation.endswith("_opened")]


def later(minutes: float) -> timedelta:
    return timedelta(minutes=minutes)


__all__ = ["CURL", "NOW", "PASSWORD", "SIGNER", "FullVault", "Stage", "WrittenLog", "done", "later", "stage"]
