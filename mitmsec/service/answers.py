"""Questions to a child that does other things meanwhile: of each kind of answer, the oldest question gets the first."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from mitmsec.core.messages import Message
from mitmsec.service.children import ChildFailed, ChildProcess

DEADLINE_S = 5.0


class Answers:
    """What is being waited for from one child, by the kind of the answer."""

    def __init__(self) -> None:
        self._waiting: dict[type[Message], deque[asyncio.Future[Any]]] = {}

    async def ask[A: Message](
        self, child: ChildProcess, question: Message, *fds: int, answer: type[A], deadline_s: float = DEADLINE_S
    ) -> A:
        """The child's answer. Raises ChildFailed where it ends or stays silent first."""
        waiting: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        queue = self._waiting.setdefault(answer, deque())
        queue.append(waiting)
        try:
            child.channel.send(question, *fds)
            await asyncio.wait((waiting, child.ended), timeout=deadline_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if waiting in queue:
                queue.remove(waiting)
        if not waiting.done():
            raise ChildFailed(f"the {child.role} does not answer")
        return waiting.result()

    def heard(self, message: Message) -> bool:
        """Whether somebody has waited for this."""
        queue = self._waiting.get(type(message))
        if not queue:
            return False
        queue.popleft().set_result(message)
        return True
