"""How one exchange pauses while everything else goes on, in commands of a layer of mitmproxy's.

    Stream ── Breath ──► the driver, which answers once all that came in this turn has reached the stream
    Stream ── Wait ────► the driver ──► Pauses, which answers when the inspectors have: what stops it is the answer
    Stream ── Stopped ─► the driver: an exchange broke off in the middle of its answer
    Stream ── Whole ───► the driver: all of an answer has been said, and what is left to do of this turn can wait for it

A layer that has begun one gets no more events until it is answered: they queue. Whoever reads the peer must therefore
stop (HTTP/1) or give no more credit (HTTP/2, HTTP/3) as long as it is `paused`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import cast

from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layer import Layer

from mitmsec.engine.watch import Blocked

Work = Coroutine[None, None, Blocked | None]
"""What is to be awaited; it comes to what blocks the exchange, or None."""


class Breath(commands.Command):
    """Answered at once, and yet after everything that is under way."""

    blocking = True


class Wait(commands.Command):
    """Answered with what `work` comes to."""

    blocking = True

    def __init__(self, work: Work) -> None:
        self.work = work


class Stopped(commands.Command):
    """By `blocked`. `is_alone`: on its connection."""

    def __init__(self, blocked: Blocked, *, is_alone: bool) -> None:
        self.blocked, self.is_alone = blocked, is_alone


class Whole(commands.Command):
    """Nothing more of an answer is to be said."""


def answer(command: commands.Command, reply: Blocked | None = None) -> events.HookCompleted:
    """What lets the layer go on that waits for `command`: to a layer, one answer is as good as another."""
    made = events.HookCompleted(cast("commands.StartHook", command))
    made.reply = cast("None", reply)
    return made


def paused(layer: Layer | None) -> bool:
    """It waits for an answer."""
    return layer is not None and layer._paused is not None


class Pauses:
    """Those of one flow. `go_on` gets the answers, `fail` what must end the flow: Blocked where nothing else can be
    stopped, any other error where it is ours.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        go_on: Callable[[events.CommandCompleted], None],
        fail: Callable[[Exception], None],
    ) -> None:
        self._loop, self._go_on, self._fail = loop, go_on, fail
        self._tasks: set[asyncio.Task[Blocked | None]] = set()
        self._timers: set[asyncio.TimerHandle] = set()
        self._is_over = False

    def begin(self, command: Wait | commands.StartHook, work: Work) -> None:
        """Answer `command` when `work` is done."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(partial(self._done, command))

    @property
    def any(self) -> bool:
        """Somebody is being waited for."""
        return bool(self._tasks)

    def wake(self, command: commands.RequestWakeup) -> None:
        """Answer it in time."""
        self._timers = {timer for timer in self._timers if not timer.cancelled() and timer.when() > self._loop.time()}
        self._timers.add(self._loop.call_later(command.delay, self._go_on, events.Wakeup(command)))

    def cancel(self) -> None:
        """The flow is over."""
        self._is_over = True
        for task in self._tasks:
            task.cancel()
        for timer in self._timers:
            timer.cancel()

    def _done(self, command: Wait | commands.StartHook, task: asyncio.Task[Blocked | None]) -> None:
        self._tasks.discard(task)
        if self._is_over:
            _ = task.cancelled() or task.exception()  # which nobody waits for any more
            return
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        blocked = None if error is not None else task.result()
        if error is not None:  # whatever it is, nobody has said that it may go on
            self._fail(error if isinstance(error, Exception) else RuntimeError(type(error).__name__))
        elif blocked is not None and not isinstance(command, Wait):
            self._fail(blocked)
        else:
            self._go_on(answer(command, blocked))
