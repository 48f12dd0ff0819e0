"""Reading in turns: whoever unfolds a lot from a little waits for itself, and nobody else does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from mitmsec.engine import turns
from mitmsec.engine.turns import FREE_S, TURN_S, Paced, UsedUp


class Dear(Paced):
    """Each byte takes a turn."""

    def __init__(self, stops: type[Exception] | None = None) -> None:
        super().__init__()
        self.stops, self.read = stops, bytearray()
        self.told: list[str] = []

    def steps(self, data: bytes) -> Iterator[None]:
        for byte in data:
            end_s = time.process_time() + TURN_S
            while time.process_time() <= end_s:
                pass
            self.read.append(byte)
            yield

    def _give_up(self, error: Exception) -> None:
        assert isinstance(error, UsedUp)
        self.told.append(str(error))
        if self.stops is not None:
            raise self.stops


def test_a_turn_is_short_and_the_rest_is_read_in_order_while_others_go_on() -> None:
    async def main() -> None:
        dear, rounds = Dear(), 0
        dear.feed(b"abc")
        assert (bytes(dear.read), dear.is_behind) == (b"a", True)
        dear.feed(b"de")
        catching_up = asyncio.create_task(dear.catch_up())
        while not catching_up.done():
            await asyncio.sleep(0)
            rounds += 1
        assert (bytes(dear.read), dear.is_behind) == (b"abcde", False)
        assert rounds >= 4

    asyncio.run(main())


def test_crumbs_that_come_meanwhile_cost_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer may send what it may send byte by byte; nested in each other, each step would go through all of them."""

    class Cheap(Dear):
        def steps(self, data: bytes) -> Iterator[None]:
            for byte in data:
                self.read.append(byte)
                yield

    cheap = Cheap()
    with monkeypatch.context() as patch:
        patch.setattr(turns, "TURN_S", -1.0)  # a step a turn
        for _ in range(100_000):
            cheap.feed(b"ab")
    assert cheap.is_behind
    asyncio.run(cheap.catch_up())
    assert (bytes(cheap.read), cheap.told) == (b"ab" * 100_000, [])


def test_one_turn_of_one_reading_is_taken_in_each_round() -> None:
    async def main() -> None:
        readings = [Dear() for _ in range(5)]
        for dear in readings:
            dear.feed(b"xxx")
        tasks = [asyncio.create_task(dear.catch_up()) for dear in readings]
        before = sum(len(dear.read) for dear in readings)
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0)
            now = sum(len(dear.read) for dear in readings)
            assert now <= before + 1
            before = now

    asyncio.run(main())


def test_who_uses_up_what_its_size_buys_is_given_up_and_told_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "FREE_S", 2.5 * TURN_S)
    monkeypatch.setattr(turns, "BYTES_PER_S", 1e9)

    async def main() -> None:
        dear = Dear()
        dear.feed(b"abcdefgh")
        await dear.catch_up()
        dear.feed(b"i")
        assert bytes(dear.read) == b"abc"
        assert dear.told == ["takes more computing than its size allows"]

    asyncio.run(main())
    assert FREE_S > 1


@pytest.mark.parametrize("stops", [None, LookupError])
def test_what_breaks_off_behind_is_not_read_and_that_is_told_to_who_waits(stops: type[Exception] | None) -> None:
    async def main() -> None:
        dear = Dear(stops)
        dear.feed(b"abc")
        waiting = asyncio.create_task(dear.catch_up())
        if stops is None:
            dear.leave()
            await waiting
        else:
            with pytest.raises(stops):
                dear.leave()
            with pytest.raises(stops):
                await waiting
        dear.leave()
        assert bytes(dear.read) == b"a"
        assert dear.told == ["broke off before all of it was read"]

    asyncio.run(main())
