"""Coroutines of somebody else's, held to limits: each step computes for so long at most, and all of it takes so long.

    answer ── step ──► limited ──► what it waits for ──► the loop, which serves others ──► the next step
                          └─ TooLong, into the coroutine                    └─ LIMIT_S ──► cancelled, waited for no more

To limit the call that makes a coroutine limits nothing: its body runs later. What it begins beside it, a task of its
own, is not held: nobody waits for that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from types import coroutine
from typing import Any

from mitmsec.engine.limited import limited


async def within(answer: Awaitable[object], limit_s: float) -> None:
    """Await it for so long on the clock. Raises what it raises, TooLong, or TimeoutError though it will not end."""
    task = asyncio.create_task(_outcome(answer))
    try:
        await asyncio.wait({task}, timeout=limit_s)
    finally:
        is_done = task.done()
        task.cancel()  # where it is not over, nobody waits for what it makes of that
    if not is_done:
        raise TimeoutError(f"not done in {limit_s} s")
    error = task.result()
    if error is not None:
        raise error


async def _outcome(answer: Awaitable[object]) -> BaseException | None:
    """What it raises: a task that raised SystemExit itself would end the loop."""
    try:
        await _stepped(answer)
    except asyncio.CancelledError:  # by itself, where anybody still asks
        return RuntimeError("it cancelled itself")
    except BaseException as error:
        return error
    return None


@coroutine
def _stepped(answer: Awaitable[object]) -> Generator[Any, Any, None]:
    waited = _waited(answer)
    step: Callable[[], object] = partial(waited.send, None)
    while True:
        try:
            waits_for = limited(step)
        except StopIteration:
            return
        try:
            step = partial(waited.send, (yield waits_for))
        except BaseException as error:  # thrown in by the loop, a cancellation too: it is the coroutine's to hear of
            step = partial(waited.throw, error)


async def _waited(answer: Awaitable[object]) -> None:
    await answer
