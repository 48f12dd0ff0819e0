"""The life of a child process: settings first, then serve until the supervisor's end of the channel closes.

    supervisor ── settings + fds ──► Program.start ──► Ready
                ── messages ───────► Program.told            (ModulesQuestion, PulseQuestion are answered here)
                ── end of file ────► Program.stop ──► exit 0

A child never outlives its supervisor by more than its own `stop`, and needs no signal to end. Once it serves it starts
no program, no process and no thread: the kernel denies it. (Before that, the signer forks to make a CA, and the
recorder starts the threads that write, and forks who makes the index.)
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from mitmsec.channel import Channel, close_all
from mitmsec.core.messages import Message, ModulesAnswer, ModulesQuestion, PulseAnswer, PulseQuestion, Ready
from mitmsec.service import seccomp

PR_SET_DUMPABLE = 4


class Program(Protocol):
    """What one role does. All methods are called on the child's only loop."""

    async def start(self, settings: Any, fds: list[int]) -> Message | None:
        """Begin to serve. `fds` are owned by the program. The answer (Ready if None) is sent to the supervisor."""

    def told(self, message: Any, fds: list[int]) -> None:
        """A later message of the supervisor."""

    async def stop(self) -> None:
        """End cleanly: what was accepted is finished or given up, and recorded."""


def main(
    accepts: Sequence[type[Message]], program: Callable[[Channel], Program], seal: Callable[[], None] = seccomp.seal
) -> None:
    """Serve as a child process on the control channel whose descriptor is the first argument.

    `seal` is called once it serves.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is for the command
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0)  # no ptrace, no core dump by our own uid
    control = Channel(socket.socket(fileno=int(sys.argv[1])), [*accepts, ModulesQuestion, PulseQuestion])
    asyncio.run(_serve(control, program, seal))


async def _serve(control: Channel, make: Callable[[Channel], Program], seal: Callable[[], None]) -> None:
    inbox: asyncio.Queue[tuple[Any, list[int]] | None] = asyncio.Queue()
    control.attach(
        asyncio.get_running_loop(),
        lambda message, fds: inbox.put_nowait((message, fds)),
        lambda: inbox.put_nowait(None),
    )
    program: Program | None = None
    try:
        while (item := await inbox.get()) is not None:
            message, fds = item
            if isinstance(message, ModulesQuestion):
                close_all(fds)
                control.send(ModulesAnswer(modules=tuple(sorted(sys.modules))))
            elif isinstance(message, PulseQuestion):
                close_all(fds)
                control.send(PulseAnswer())
            elif program is None:
                program = make(control)
                answer = await program.start(message, fds) or Ready()
                seal()
                control.send(answer)
            else:
                program.told(message, fds)
    finally:
        if program is not None:
            await program.stop()
