"""Work that nobody waits for."""

from __future__ import annotations

import asyncio

from mitmsec.service.background import Background


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
