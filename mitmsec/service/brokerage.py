"""A broker, or a scanner, which is started when a worker first asks something, and not before.

    worker ◄── its end ── channel ── our end, watched ──► readable: a broker is begun, and gets every end
                                        └─ kept too: if that broker dies, the next question begins another

Most runs meet no certificate that names anybody to ask, or only such as staple: they never pay for the process. What a
worker asks is never looked at here. Where it has to know that nobody answers any more (`gone`), it is told so, and what
the one that died has left unread is thrown away.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable

from mitmsec.channel import PACKET_LIMIT_BYTES, close_all, pair
from mitmsec.core.messages import Message, ProducerUp, Ready, Role, encode
from mitmsec.service.background import Background
from mitmsec.service.broker_messages import BrokerSettings
from mitmsec.service.children import ChildFailed, ChildProcess
from mitmsec.service.pulse import HANGS_S, Pulse

PAUSE_S = 5.0  # after one that died or could not be started
UNREAD_LIMIT = 256  # packets of one worker that are thrown away at once


class Brokerage:
    """`begin` makes the process, `fd` is what goes with its settings, and is closed with the brokerage.

    `gone` is told to workers where one has died (True: the next question begins another) or could not be begun.
    """

    def __init__(
        self,
        begin: Callable[[], ChildProcess],
        fd: int,
        fault: Callable[[str, str], None],
        *,
        settings: Message | None = None,
        pause_s: float = PAUSE_S,
        role: Role = Role.BROKER,
        hangs_s: float = HANGS_S,
        gone: Callable[[bool], Message] | None = None,
    ) -> None:
        self._begin, self._fault, self._pause_s = begin, fault, pause_s
        self._role, self._gone = role, gone
        self._fds = [fd]
        self._settings = settings or BrokerSettings()
        self._hangs_s, self._pulse = hangs_s, Pulse(hangs_s)
        self._ends: list[socket.socket] = []
        self._background = Background()
        self._closed = False
        self._is_on = False  # a broker serves, begins, or is not to begin yet
        self._is_ready = False
        self.broker: ChildProcess | None = None

    def channel(self) -> socket.socket:
        """A worker's end of a new channel; the caller's."""
        self._forget_the_dead()
        ours, theirs = pair()
        ours.setblocking(False)
        self._ends.append(ours)
        if not self._is_on:
            self._watch(ours)
        elif self.broker is not None and self._is_ready:
            self._introduce(self.broker, ours)
        return theirs

    def _forget_the_dead(self) -> None:
        """Workers that have ended: their ends say so."""
        living = []
        for end in self._ends:
            try:
                is_over = end.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
            except BlockingIOError:
                is_over = False
            except OSError:
                is_over = True
            if is_over:
                self._unwatch(end)
                end.close()
            else:
                living.append(end)
        self._ends = living

    def _watch(self, end: socket.socket) -> None:
        asyncio.get_running_loop().add_reader(end, self._asked)

    def _unwatch(self, end: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(end)

    def _asked(self) -> None:
        """Somebody asks something, or has ended."""
        self._forget_the_dead()
        if not self._is_on and not self._closed and any(map(_has_something, self._ends)):
            self._is_on = True
            for end in self._ends:
                self._unwatch(end)
            self._background.begin(self._start())

    async def _start(self) -> None:
        broker: ChildProcess | None = None
        try:
            broker = self.broker = self._begin()
            answer = await broker.start(self._settings, *self._fds)
            if not isinstance(answer, Ready):
                raise ChildFailed(f"the {self._role} answered {answer!r}")
        except (ChildFailed, OSError) as error:
            if self.broker is broker:  # else its time is over anyway
                self._fault(f"{self._role}_not_started", str(error))
                self._tell_gone(another_comes=False)
                await self._later(broker)
            return
        if self.broker is not broker:
            return
        broker.watch(lambda status: self._exited(broker, status))
        self._is_ready, self._pulse = True, Pulse(self._hangs_s)
        for end in self._ends:
            self._introduce(broker, end)

    def _introduce(self, broker: ChildProcess, end: socket.socket) -> None:
        broker.channel.send(ProducerUp(role=Role.WORKER), end.fileno())

    def _exited(self, broker: ChildProcess, status: int) -> None:
        if not self._closed:
            self._fault(f"{self._role}_died", f"status {status}")
            self._tell_gone(another_comes=True)
            self._background.begin(self._later(broker))

    def _tell_gone(self, *, another_comes: bool) -> None:
        if self._gone is None:
            return
        told = encode(self._gone(another_comes))
        for end in self._ends:
            with contextlib.suppress(OSError):  # the worker has gone, too
                for _ in range(UNREAD_LIMIT):
                    if not end.recv(PACKET_LIMIT_BYTES, socket.MSG_DONTWAIT):
                        break
            with contextlib.suppress(OSError):
                end.send(told, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def feel_pulse(self) -> None:
        """End one that hangs: its exit is told like any other. To be called ten times a second."""
        broker = self.broker
        if broker is None or not self._is_ready or not broker.ask_for_beat():
            return
        if self._pulse.hangs(broker.beats, time.monotonic()):
            self._pulse = Pulse(self._hangs_s)
            self._fault(f"{self._role}_hangs", f"no answer for {self._hangs_s:.0f} s")
            broker.kill()

    async def _later(self, broker: ChildProcess | None) -> None:
        """After a pause, unless another has been begun since, the next question begins one."""
        if broker is not None:
            broker.kill()
        self._is_ready = False
        await asyncio.sleep(self._pause_s)
        if self.broker is broker:
            self._rest()

    def _rest(self) -> None:
        """Wait for a question."""
        self.broker, self._is_on, self._is_ready = None, False, False
        for end in self._ends:
            self._watch(end)

    def abandon(self) -> None:
        """End as with a killed supervisor."""
        self._closed = True
        if self.broker is not None:
            self.broker.unwatch()
            self.broker.kill()

    async def stop(self) -> None:
        """End it; workers hear that it has gone."""
        self._closed = True
        self._background.cancel()
        for end in self._ends:
            self._unwatch(end)
            end.close()
        self._ends.clear()
        close_all(self._fds)
        self._fds.clear()
        if self.broker is not None:
            await self.broker.stop()


def _has_something(end: socket.socket) -> bool:
    try:
        return bool(end.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except OSError:
        return False
