"""Copies of what captured flows carry, on their way to the recorder. A slow recorder slows the flow down."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mitmsec.audit.event import BytesSeen
from mitmsec.audit.producer import Producer
from mitmsec.core.model import OnFailure
from mitmsec.gate.account import Account


class Taps:
    """All taps of a gate, and the flows that wait for the recorder."""

    def __init__(self, loop: asyncio.AbstractEventLoop, recorder: Producer, on_failure: OnFailure) -> None:
        self.recorder = recorder
        self.on_failure = on_failure
        self._loop = loop
        self._paused: set[Callable[[], None]] = set()
        self._relief: asyncio.Task[None] | None = None

    def tap(self, about: Account) -> Tap:
        """A tee for one flow."""
        return Tap(self, about)

    def wait(self, resume: Callable[[], None]) -> bool:
        """Whether the recorder is behind; then `resume` is called once it has caught up, or has gone."""
        if self.recorder.gone or not self.recorder.congested:
            return False
        self._paused.add(resume)
        if self._relief is None:
            self._relief = self._loop.create_task(self._relieve())
        return True

    async def _relieve(self) -> None:
        await self.recorder.relieved()
        self._relief = None
        paused, self._paused = self._paused, set()
        for resume in paused:
            resume()

    def close(self) -> None:
        if self._relief is not None:
            self._relief.cancel()


class Tap:
    """The tee of one flow. The first piece says whose flow it is."""

    def __init__(self, taps: Taps, about: Account) -> None:
        self._taps, self._about = taps, about
        self._first = True

    def take(self, sent: bool, data: bytes) -> bool:
        if self._taps.recorder.gone:
            return self._taps.on_failure is OnFailure.OPEN
        about = self._about
        if self._first:
            self._first = False
            seen = BytesSeen(
                flow=about.flow, sent=sent, data=data, process=about.process, local=about.client, remote=about.remote
            )
        else:
            seen = BytesSeen(flow=about.flow, sent=sent, data=data)
        self._taps.recorder.record(seen)
        return True

    def wait(self, resume: Callable[[], None]) -> bool:
        return self._taps.wait(resume)
