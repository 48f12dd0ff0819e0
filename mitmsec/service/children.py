"""Child processes as the supervisor sees them: a pid, a control channel, and exactly one notice of the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from mitmsec import channel
from mitmsec.channel import Channel, ChannelFull
from mitmsec.core.messages import (
    Message,
    ModulesAnswer,
    ModulesQuestion,
    ProducerUp,
    PulseAnswer,
    PulseQuestion,
    Role,
)
from mitmsec.service.childlog import ChildOutput

START_DEADLINE_S = 20.0


class ChildFailed(Exception):
    """A child ended or stayed silent before it was ready. The supervisor's log says more."""


class ChildProcess:
    """One running child. `on_message` hears what it says after its first answer; `watch` tells of its end.

    What it writes to stdout and stderr goes to `log`, a line at a time and within bounds.
    """

    def __init__(
        self,
        role: Role,
        spawn: Callable[[int, int], int],
        log: Callable[[str], None],
        accepts: Sequence[type[Message]],
    ) -> None:
        """`spawn` starts it: with its end of the channel, and a pipe for what it writes. Raises OSError."""
        ours, theirs = channel.pair()
        reading, writing = os.pipe()
        self.role = role
        try:
            self.pid = spawn(theirs.fileno(), writing)
        except OSError:
            os.close(reading)
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(writing)
        self._output = ChildOutput(reading, f"{self.role} {self.pid}", log, asyncio.get_running_loop())
        self.channel = Channel(ours, [*accepts, ModulesAnswer, PulseAnswer])
        self.on_message: Callable[[Any, list[int]], None] = _ignore
        self._on_exit: Callable[[int], None] = _unheard
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.beats = 0
        """How often it has said that its loop turns; see `ask_for_beat`."""
        self._beat_due = False
        self._modules: list[asyncio.Future[tuple[str, ...]]] = []
        self._pidfd = os.pidfd_open(self.pid)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._pidfd, self._reap)
        self.channel.attach(loop, self._heard, lambda: None)

    def watch(self, on_exit: Callable[[int], None]) -> None:
        """`on_exit` hears the end with its status, once, also if it has come already; nobody else does any more."""
        self._on_exit = on_exit
        if self.ended.done():
            asyncio.get_running_loop().call_soon(self._tell_end)

    def unwatch(self) -> None:
        """The end is nobody's news."""
        self._on_exit = _unheard

    def _tell_end(self) -> None:
        on_exit, self._on_exit = self._on_exit, _unheard
        on_exit(self.ended.result())

    def start(self, settings: Message, *fds: int) -> Awaitable[Any]:
        """Send the settings now; awaiting the result gives the child's first answer. Raises ChildFailed."""
        self.channel.send(settings, *fds)
        return self._first_answer()

    async def _first_answer(self) -> Any:
        try:
            async with asyncio.timeout(START_DEADLINE_S):
                await asyncio.wait((self._answer, self.ended), return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            raise ChildFailed(f"the {self.role} did not become ready within {START_DEADLINE_S:.0f} s") from None
        if not self._answer.done():
            raise ChildFailed(f"the {self.role} ended at start with status {self.ended.result()}")
        return self._answer.result()

    async def modules(self) -> tuple[str, ...]:
        """Names of the modules that the child has loaded; empty when it has ended."""
        answer: asyncio.Future[tuple[str, ...]] = asyncio.get_running_loop().create_future()
        self._modules.append(answer)
        self.channel.send(ModulesQuestion())
        await asyncio.wait((answer, self.ended), return_when=asyncio.FIRST_COMPLETED)
        return answer.result() if answer.done() else ()

    def ask_for_beat(self) -> bool:
        """Have it count `beats` up, unless it is asked already. False: it does not serve, yet or any more."""
        if not self._answer.done() or self.ended.done():
            return False
        if not self._beat_due:
            with contextlib.suppress(
                ChannelFull
            ):  # it does not read: no beat comes, and the question is put again later
                self.channel.send(PulseQuestion())
                self._beat_due = True
        return True

    async def stop(self, *, grace_s: float = 5.0) -> None:
        """Close the control channel, which ends the child; kill what does not end in time."""
        self.unwatch()
        self.channel.close()
        if not await self._over(grace_s):
            self.kill()
            await self._over(grace_s)

    async def _over(self, within_s: float) -> bool:
        await asyncio.wait((self.ended,), timeout=within_s)
        return self.ended.done()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, OSError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _heard(self, message: Any, fds: list[int]) -> None:
        if isinstance(message, ModulesAnswer):
            channel.close_all(fds)
            if self._modules:
                self._modules.pop(0).set_result(message.modules)
        elif isinstance(message, PulseAnswer):
            channel.close_all(fds)
            self.beats, self._beat_due = self.beats + 1, False
        elif not self._answer.done():
            self._answer.set_result(message)
        else:
            self.on_message(message, fds)

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.channel.close()
        self._output.close()
        self.ended.set_result(status)
        self._tell_end()


def _unheard(status: int) -> None:
    """Nobody wants to know."""


def _ignore(message: object, fds: list[int]) -> None:
    channel.close_all(fds)


def introduce(to: ChildProcess | None, message: ProducerUp) -> socket.socket:
    """The producer's end of a new channel to a child, which is told of it by `message`. Raises ChildFailed."""
    if to is None:
        raise ChildFailed("the recorder or signer is not running")
    ours, theirs = channel.pair()
    with theirs:
        to.channel.send(message, theirs.fileno())
    return ours
