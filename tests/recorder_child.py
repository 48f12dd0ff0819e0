"""A recorder as the supervisor starts it: a child process on a control channel, without the jail."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mitmsec.audit.producer import Producer
from mitmsec.channel import Channel, pair
from mitmsec.core.content_orders import ANSWERS as CONTENT_ANSWERS
from mitmsec.core.messages import (
    CaptureOpen,
    Fault,
    Message,
    ModulesAnswer,
    ProducerUp,
    Ready,
    RecorderSettings,
    Role,
    SessionFlush,
    SessionFlushed,
)

SESSION = "run-1"
ANSWERS: Sequence[type[Message]] = (Ready, SessionFlushed, ModulesAnswer, Fault, *CONTENT_ANSWERS)


class RecorderChild:
    """The child and the supervisor's end of its channel."""

    def __init__(self, folder: Path, code: str = "", quarantine: str = "") -> None:
        program = ["-c", code] if code else ["-m", "mitmsec.service", "recorder"]
        ours, theirs = pair()
        self.process = subprocess.Popen(
            [sys.executable, *program, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stderr=subprocess.PIPE,
        )
        theirs.close()
        self.inbox: asyncio.Queue[Any] = asyncio.Queue()
        self.control = Channel(ours, ANSWERS)
        self.control.attach(
            asyncio.get_running_loop(),
            lambda message, fds: self.inbox.put_nowait(message),
            lambda: self.inbox.put_nowait(None),
        )
        self.control.send(RecorderSettings(folder=str(folder), quarantine=quarantine))

    def socket(self, role: Role, worker: int = -1, session: str = SESSION) -> Any:
        """A producer's end of a new channel."""
        ours, theirs = pair()
        self.control.send(ProducerUp(role=role, session=session, worker=worker), theirs.fileno())
        theirs.close()
        return ours

    def producer(self, role: Role, worker: int = -1, session: str = SESSION, **options: Any) -> Producer:
        return Producer(self.socket(role, worker, session), asyncio.get_running_loop(), **options)

    def capture(self, path: Path, session: str = SESSION) -> None:
        with path.open("wb") as file:
            self.control.send(CaptureOpen(session=session, command="curl https://a.example"), file.fileno())

    async def flush(self, session: str = SESSION) -> SessionFlushed:
        self.control.send(SessionFlush(session=session))
        answer = await self.inbox.get()
        assert isinstance(answer, SessionFlushed)
        return answer

    async def end(self) -> int:
        """End of file on the control channel; the exit status."""
        self.control.close()
        return await asyncio.get_running_loop().run_in_executor(None, self.process.wait)

    def errors(self) -> str:
        """Everything that the child, which has ended, wrote to stderr."""
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()


@asynccontextmanager
async def recorder(folder: Path, code: str = "", quarantine: str = "") -> AsyncIterator[RecorderChild]:
    """A recorder that is ready, on the log in `folder`; `code` replaces its module."""
    os.makedirs(folder, exist_ok=True)
    child = RecorderChild(folder, code, quarantine)
    try:
        assert isinstance(await child.inbox.get(), Ready)
        yield child
    finally:
        child.control.close()
        if child.process.poll() is None:
            child.process.kill()
        child.process.wait()
        assert child.process.stderr is not None
        child.process.stderr.close()
