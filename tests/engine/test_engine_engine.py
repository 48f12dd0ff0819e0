"""All flows of one worker."""

from __future__ import annotations

import asyncio
from pathlib import Path

import trustme
from engine_world import NAME, Pages, connected, curl, origin, server_context, trusting, world

from mitmsec.audit.event import Outcome


def test_many_flows_at_once_and_none_is_left(tmp_path: Path) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with origin(Pages(), server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
            answers = await asyncio.gather(*(curl(made, tmp_path, path=f"/{number}") for number in range(12)))
            assert [out for _, out, _ in answers] == [f"you asked for /{number}" for number in range(12)]
            ends = [await made.end() for _ in range(12)]
            assert {end.outcome for end in ends} == {Outcome.COMPLETED}
            assert len({end.flow for end in ends}) == 12
            await asyncio.sleep(0)
            assert made.engine.live == 0

    asyncio.run(main())


def test_a_flow_that_breaks_leaves_the_others_alone(tmp_path: Path) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with origin(Pages(), server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
            reader, writer = await connected(made, trusting(tmp_path))
            _, garbage = await connected(made, None)
            garbage.write(b"\x16\x03\x01\xff\xff" + b"garbage" * 1000)
            assert (await made.end()).outcome == Outcome.MALFORMED
            writer.write(f"GET /still HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
            assert await reader.readuntil(b"for /still")

    asyncio.run(main())


def test_idle_connections_cost_little_and_end_with_the_worker(tmp_path: Path) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with origin(Pages(), server_context(ca)) as port:
            async with world(tmp_path, port, [ca]) as made:
                idle = [await connected(made, None) for _ in range(100)]
                while made.engine.live < 100:
                    await asyncio.sleep(0)
                assert (await curl(made, tmp_path))[0] == 0
            assert made.engine.live == 0
            del idle

    asyncio.run(main())
