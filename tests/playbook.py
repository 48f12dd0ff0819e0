"""A small language for tests of state machines: what is told, and what must follow from it, in order.

    play = Playbook(flow)
    play >> Accepted(client, gate, origin) << SetDeadline(2.0) << Ask(origin)
    assert play >> Deadline() << Reset()

`>>` tells an event; every command that it leads to has to be written down with `<<` before the next event, and nothing
else. A class instead of a value stands for any command of that class, which `play.last` then holds. `later(s)` lets
time pass. A play is true if nothing is left over. What a test leaves unsaid after the last event fails it all the same:
the fixture `plays_end` (tests/gate/conftest.py) asks every play at the end of its test.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self


class Playbook:
    """Drives `told(event, now_s)`, which returns commands."""

    plays: ClassVar[list[Playbook]] = []
    """All that were begun since they were last asked."""

    def __init__(self, told: Callable[[Any, float], Sequence[Any]], now_s: float = 1000.0) -> None:
        self._told, self.now_s = told, now_s
        self._due: deque[Any] = deque()
        self._event: Any = None
        self.last: Any = None
        self.plays.append(self)

    def later(self, seconds: float) -> Self:
        self.now_s += seconds
        return self

    def __rshift__(self, event: Any) -> Self:
        self.done()
        self._event = event
        self._due.extend(self._told(event, self.now_s))
        return self

    def __lshift__(self, expected: Any) -> Self:
        assert self._due, f"{self._event!r}\n  should also lead to\n    {expected!r}"
        self.last = self._due.popleft()
        matches = isinstance(self.last, expected) if isinstance(expected, type) else self.last == expected
        assert matches, f"{self._event!r}\n  led to\n    {self.last!r}\n  instead of\n    {expected!r}"
        return self

    def __bool__(self) -> bool:
        self.done()
        return True

    def done(self) -> None:
        """Nothing is left that was not expected."""
        unexpected = "\n    ".join(map(repr, self._due))
        assert not self._due, f"{self._event!r}\n  also led to\n    {unexpected}"

    @classmethod
    def all_done(cls) -> None:
        """Ask every play that was begun, and forget them."""
        plays, cls.plays[:] = cls.plays[:], []
        for play in plays:
            play.done()
