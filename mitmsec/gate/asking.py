"""Whose connections are, asked of the supervisor: one question for each, unless it was answered a moment ago."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from mitmsec.channel import ChannelFull
from mitmsec.core.model import Process
from mitmsec.gate.owners import Owners
from mitmsec.gate.signals import Origin, OwnerKnown


class Asks(Protocol):
    """A connection, or a flow of QUIC."""

    @property
    def id(self) -> str: ...
    def tell(self, event: OwnerKnown, /) -> None: ...


class Asking:
    """Questions under way. `ask(number, origin)` may raise ChannelFull: then the connection's own deadline sees to it.

    `clock()` is monotonic seconds.
    """

    def __init__(self, ask: Callable[[int, Origin], None], clock: Callable[[], float]) -> None:
        self._send, self._clock = ask, clock
        self._owners = Owners()
        self._asked: dict[int, tuple[Asks, Origin]] = {}
        self._numbers: dict[str, int] = {}  # by the connection's id
        self._last = 0

    @property
    def open(self) -> int:
        """Connections whose owner is awaited."""
        return len(self._asked)

    def ask(self, connection: Asks, origin: Origin) -> None:
        """The connection is told its owner: at once, or when `answered` is called."""
        if (owner := self._owners.find(origin, self._clock())) is not None:
            return connection.tell(owner)
        self._last += 1
        self._asked[self._last] = connection, origin
        self._numbers[connection.id] = self._last
        try:
            self._send(self._last, origin)
        except ChannelFull:  # a supervisor that hangs
            self.give_up(connection)

    def answered(self, number: int, process: Process, *, selected: bool) -> None:
        """Nobody may be waiting for it any more."""
        asked = self._asked.pop(number, None)
        if asked is not None:
            connection, origin = asked
            del self._numbers[connection.id]
            connection.tell(self._owners.learn(origin, process, self._clock(), selected=selected))

    def give_up(self, connection: Asks) -> None:
        """Idempotent."""
        number = self._numbers.pop(connection.id, None)
        if number is not None:
            self._asked.pop(number, None)

    def forget(self) -> None:
        """Everybody is asked for anew; questions under way are answered as ever."""
        self._owners.forget()
