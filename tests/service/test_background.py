"""Work that nobody waits for."""

from __future__ import annotations

import asyncio

import pytest

from mitmsec.service import background
from mitmsec.service.background import Background, for_ever


def test_it_is_done_though_nobody_keeps_it() -> None:
    async def story() -> list[str]:
        done: list[str] = []

        async def work() -> None:
            await asyncio.sleep(0)
            done.append("work")

        background = Background()
        background.begin(work())
        for _ in range(5):
            await asyncio.sleep(0)
        return done

    assert asyncio.run(story()) == ["work"]


def test_it_ends_with_its_owner() -> None:
    async def story() -> list[str]:
        ended: list[str] = []

        async def endless() -> None:
            try:
                await asyncio.sleep(3600)
            finally:
                ended.append("endless")

        background = Background()
        background.begin(endless())
        await asyncio.sleep(0)
        background.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        return ended

    assert asyncio.run(story()) == ["endless"]


def test_a_look_that_fails_is_told_once_for_each_kind_and_is_no_end_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "PAUSE_S", 0)

    async def story() -> list[str]:
        told: list[str] = []
        looks = iter([ValueError("a"), None, ValueError("b"), KeyError("c"), None])

        async def look() -> None:
            await asyncio.sleep(0)
            try:
                error = next(looks)
            except StopIteration:
                raise asyncio.CancelledError from None
            if error is not None:
                raise error

        with pytest.raises(asyncio.CancelledError):
            await for_ever(look, lambda error: told.append(repr(error)))
        return told

    assert asyncio.run(story()) == ["ValueError('a')", "KeyError('c')"]
