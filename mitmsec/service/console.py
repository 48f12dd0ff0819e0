"""The console's composition root: the web application of mitmsec.audit.console, for as long as somebody reviews.

It has the socket that listens, a channel to the recorder over which it may say who reviewed what, the log to read, and
a folder of its own. It can connect nowhere, start nothing, and change nothing else. What takes its time is done by
threads that are there before the kernel denies more.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvicorn

from mitmsec.audit.console.desk_store import DeskStore
from mitmsec.audit.console.ground import Ground
from mitmsec.audit.console.web import Console
from mitmsec.audit.event import ReviewSeen
from mitmsec.audit.producer import Producer
from mitmsec.channel import Channel, close_all
from mitmsec.core.messages import Fault, Message
from mitmsec.seal import checks
from mitmsec.service import child
from mitmsec.service.bundle_formats import FORMATS
from mitmsec.service.console_evidence_desk import EvidenceDesk
from mitmsec.service.console_messages import (
    ConsoleNotice,
    ConsoleRecorder,
    ConsoleSettings,
    EvidenceSaid,
    RecorderLost,
    SupervisorLost,
)

THREADS = 4
RECORDED_S = 10.0
STARTED_S = 10.0
CONNECTIONS_LIMIT, KEEP_ALIVE_S = 128, 30
ACCEPTS: tuple[type[Message], ...] = (
    ConsoleSettings,
    ConsoleNotice,
    ConsoleRecorder,
    SupervisorLost,
    EvidenceSaid,
)


class ConsoleProgram:
    """The program of the console process; see mitmsec.service.child."""

    def __init__(self, control: Channel) -> None:
        self._control = control
        self._producer: Producer | None = None
        self._server: uvicorn.Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self._evidence = EvidenceDesk(control.send)
        self._ground: Ground
        self._desk: DeskStore

    async def start(self, settings: Any, fds: list[int]) -> Message | None:
        assert isinstance(settings, ConsoleSettings)
        listener, recorder = fds
        self._take_recorder(recorder)
        try:
            self._desk = DeskStore(Path(settings.review))
            self._ground = self._made(settings)
            await self._serve(socket.socket(fileno=listener), settings)
        except Exception as error:  # a file that is no database, a key that is none: for who called to read
            return Fault(what="console", detail=str(error) or type(error).__name__)
        return None

    def _made(self, settings: ConsoleSettings) -> Ground:
        ground = Ground(
            Path(settings.log),
            self._desk,
            self._recorded,
            threads(THREADS),
            lambda: datetime.now(UTC),
            checks,
            frozenset(settings.hosts),
            secure=bool(settings.certificate),
            two_people=frozenset(settings.two_people),
            vault=self._evidence,
            formats=FORMATS,
        )
        ground.notice = settings.notice
        return ground

    async def _serve(self, listener: socket.socket, settings: ConsoleSettings) -> None:
        config = uvicorn.Config(
            Console(self._ground).app,
            access_log=False,
            date_header=True,
            http="h11",
            lifespan="off",
            limit_concurrency=CONNECTIONS_LIMIT,
            log_level="error",
            loop="asyncio",
            proxy_headers=False,
            server_header=False,
            ssl_certfile=settings.certificate or None,
            ssl_keyfile=settings.key or None,
            timeout_graceful_shutdown=2,
            timeout_keep_alive=KEEP_ALIVE_S,
            ws="none",
        )
        self._server = uvicorn.Server(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        async with asyncio.timeout(STARTED_S):
            while not self._server.started:
                if self._serving.done():
                    self._serving.result()
                    raise OSError("the server ended at once")
                await asyncio.sleep(0.01)

    def told(self, message: Any, fds: list[int]) -> None:
        match message, fds:
            case ConsoleNotice(notice=notice), []:
                self._ground.notice = notice
            case SupervisorLost(), [] if self._producer is not None:
                self._producer.close()
            case ConsoleRecorder(), [descriptor]:
                self._take_recorder(descriptor)
            case EvidenceSaid(), _:
                self._evidence.heard(message, fds)
            case _:
                close_all(fds)

    async def stop(self) -> None:
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await asyncio.wait((self._serving,), timeout=3.0)
        if self._producer is not None:
            self._producer.close()

    # -- the record ----------------------------------------------------------------------------------------------------
    def _take_recorder(self, descriptor: int) -> None:
        before = self._producer
        sock = socket.socket(fileno=descriptor)
        lost = lambda: self._control.send(RecorderLost())  # noqa: E731
        self._producer = Producer(sock, asyncio.get_running_loop(), on_gone=lost)
        if before is not None:
            before.close()

    async def _recorded(self, seen: ReviewSeen) -> bool:
        """Whether it is on disk."""
        producer = self._producer
        if producer is None or producer.gone or producer.failing:
            return False
        lost = producer.lost
        producer.record(seen)
        number = producer.sent
        try:
            async with asyncio.timeout(RECORDED_S):
                await producer.flushed()
        except TimeoutError:
            return False
        return producer.lost == lost and producer.committed >= number


def threads(count: int) -> ThreadPoolExecutor:
    """All of them running: later none may be begun."""
    executor = ThreadPoolExecutor(count)
    together = threading.Barrier(count + 1)
    for _ in range(count):
        executor.submit(together.wait)
    together.wait()
    return executor


def main() -> None:
    """Serve on the control channel whose descriptor is the first argument."""
    child.main(ACCEPTS, ConsoleProgram)
