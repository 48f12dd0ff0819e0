"""Coroutines held to limits: they compute no longer than a function may, and are not waited for for ever."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

import pytest

from mitmsec.core.inspecting import TooLong
from mitmsec.engine import limited
from mitmsec.engine.stepped import within


async def waits_and_ends(said: list[str]) -> str:
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await asyncio.gather(asyncio.sleep(0), asyncio.sleep(0.001))
    said.append("done")
    return "an answer that nobody asked for"


async def computes(said: list[str]) -> None:
    await asyncio.sleep(0)
    try:
        while True:
            pass
    finally:
        said.append("cleaned up")


async def stays(said: list[str]) -> None:
    while len(said) < 3:
        try:
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            said.append("not me")


async def leaves(said: list[str]) -> None:
    await asyncio.sleep(0)
    raise SystemExit


async def gives_up(said: list[str]) -> None:
    raise asyncio.CancelledError


Made = Callable[[list[str]], Awaitable[object]]


@pytest.mark.parametrize(
    ("made", "error", "told"),
    [
        (waits_and_ends, None, ["done"]),
        (lambda said: asyncio.ensure_future(waits_and_ends(said)), None, ["done"]),
        (computes, TooLong, ["cleaned up"]),
        (stays, TimeoutError, []),
        (leaves, SystemExit, []),
        (gives_up, RuntimeError, []),
    ],
    ids=["ends", "future", "computes", "stays", "leaves", "gives up"],
)
def test_it_ends_in_time_whatever_it_does(
    monkeypatch: pytest.MonkeyPatch, made: Made, error: type[BaseException] | None, told: list[str]
) -> None:
    monkeypatch.setattr(limited, "CALL_LIMIT_S", 0.05)
    said: list[str] = []

    async def main() -> None:
        begun_s = time.process_time()
        with pytest.raises(error) if error is not None else contextlib.nullcontext():
            await within(made(said), 0.1)
        assert said == told
        assert time.process_time() - begun_s < 0.5
        await asyncio.sleep(0)
        if made is stays:
            assert said == ["not me"]  # it has been told to end
            said.extend(["and", "now"])  # it ends
            await asyncio.sleep(0.06)

    asyncio.run(main())


def test_who_waits_for_it_can_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    async def tidies() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            said.append("tidied")

    async def main() -> None:
        task = asyncio.create_task(within(tidies(), 60))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
        assert said == ["tidied"]

    asyncio.run(main())
