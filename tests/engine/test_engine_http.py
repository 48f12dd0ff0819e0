"""What the HTTP layer adds: no way out of sight, and connections beside the first."""

from __future__ import annotations

import asyncio
from pathlib import Path

import trustme
from engine_h2 import Client, Origin, get
from engine_world import NAME, Pages, connected, curl, origin, server_context, trusting, world

from mitmsec.core.messages import Plaintext
from mitmsec.engine import pages
from mitmsec.engine.http import answer


def test_an_upgrade_to_http2_in_the_clear_is_not_passed_on(tmp_path: Path) -> None:
    async def main() -> None:
        served = Pages()
        async with origin(served, None) as port, world(tmp_path, port, kind=Plaintext.HTTP) as made:
            words = ("-H", "Connection: Upgrade, HTTP2-Settings", "-H", "Upgrade: h2c", "-H", "HTTP2-Settings: AA")
            assert (await curl(made, tmp_path, *words))[0] == 0
            fields = served.requests[0][1]
            assert "upgrade" not in fields
            assert "http2-settings" not in fields

    asyncio.run(main())


def test_a_further_http2_connection_carries_on_when_the_first_has_ended(tmp_path: Path) -> None:
    class OneEach(Origin):
        async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            served = asyncio.create_task(super().__call__(reader, writer))
            before = len(self.requests)
            while len(self.requests) == before and not served.done():
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            served.cancel()

    async def main() -> None:
        ca, server = trustme.CA(), OneEach()
        async with origin(server, server_context(ca, alpn=("h2",))) as port, world(tmp_path, port, [ca]) as made:
            asking = Client(*await connected(made, trusting(tmp_path, alpn=("h2",))))
            for number in (1, 2):
                stream = asking.request(get(f"/{number}", NAME))
                await asking.until_ended(stream)
                assert asking.headers[stream][":status"] == "200"
                await asyncio.sleep(0.2)
            assert made.connects == 1

    asyncio.run(main())


def test_a_page_is_an_answer_that_is_not_kept() -> None:
    page = pages.misdirected("flow-1")
    response = answer(page)
    assert (response.status_code, response.raw_content) == (421, page.body)
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["connection"] == "close"
