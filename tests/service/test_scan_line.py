"""A worker's way to the scanner: who is next, and what becomes of whom when a scanner ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from mitmsec.channel import Channel, pair
from mitmsec.core.rule_hits import Hit, Hits
from mitmsec.service import scan_line as module
from mitmsec.service.scan_line import PIECE_BYTES, ScanLine, ScannerDied
from mitmsec.service.scanner_messages import ScanAnswer, ScanBegun, ScanContent, ScannerGone


class Stage:
    """The other end, which says what the story has it say."""

    def __init__(self) -> None:
        ours, theirs = pair()
        loop = asyncio.get_running_loop()
        self.channel = Channel(theirs, [ScanContent])
        self.channel.attach(loop, lambda one, _: self.pieces.append(one), lambda: None)
        self.pieces: list[ScanContent] = []
        self.line = ScanLine(ours, loop)

    def asks(self, flow: str, content: bytes) -> asyncio.Task[Hits]:
        return asyncio.ensure_future(self.line.scan(flow, content))

    async def sent(self, count: int) -> list[bytes]:
        """The contents that have come to their ends, once there are so many."""
        async with asyncio.timeout(10):
            while len(found := [one for one in self.pieces if one.ends]) < count:
                await asyncio.sleep(0.01)
        return [b"".join(one.data for one in self.pieces if one.number == last.number) for last in found]

    @property
    def last(self) -> int:
        return self.pieces[-1].number

    def answers(self, rule: str = "") -> None:
        hits = (Hit(rule=rule),) if rule else ()
        self.channel.send(ScanBegun(number=self.last))
        self.channel.send(ScanAnswer(number=self.last, hits=Hits(hits=hits)))

    def close(self) -> None:
        self.line.close()
        self.channel.close()


def played(story: Callable[[Stage], Awaitable[None]]) -> None:
    async def main() -> None:
        stage = Stage()
        try:
            await story(stage)
        finally:
            stage.close()

    asyncio.run(main())


@pytest.mark.parametrize("size_bytes", [1, PIECE_BYTES, 3 * PIECE_BYTES + 1])
def test_content_of_any_size_arrives_as_it_is_and_the_answer_comes_back(size_bytes: int) -> None:
    async def story(stage: Stage) -> None:
        content = bytes(number % 251 for number in range(size_bytes))
        task = stage.asks("f", content)
        assert await stage.sent(1) == [content]
        stage.answers("Evil")
        assert (await task).hits == (Hit(rule="Evil"),)

    played(story)


def test_one_content_is_under_way_and_flows_take_turns() -> None:
    async def story(stage: Stage) -> None:
        tasks = [stage.asks(name[0], name.encode()) for name in ("a1", "a2", "a3", "b1")]
        for count in range(1, 5):
            await stage.sent(count)
            await asyncio.sleep(0.02)
            assert len(await stage.sent(count)) == count
            stage.answers()
        await asyncio.gather(*tasks)
        assert await stage.sent(4) == [b"a1", b"a2", b"b1", b"a3"]

    played(story)


def test_a_content_that_ends_the_scanner_fails_alone() -> None:
    async def story(stage: Stage) -> None:
        deadly, other = stage.asks("a", b"deadly"), stage.asks("b", b"other")
        await stage.sent(1)
        stage.channel.send(ScanBegun(number=stage.last))
        stage.channel.send(ScannerGone(another_comes=True))
        with pytest.raises(ScannerDied, match="while it scanned this"):
            await deadly
        assert await stage.sent(2) == [b"deadly", b"other"]
        stage.answers()
        assert await other == Hits()

    played(story)


def test_what_had_not_begun_is_sent_again_and_an_answer_to_what_was_sent_before_is_nobodys() -> None:
    async def story(stage: Stage) -> None:
        task = stage.asks("a", b"content")
        await stage.sent(1)
        before = stage.last
        stage.channel.send(ScannerGone(another_comes=True))
        assert await stage.sent(2) == [b"content", b"content"]
        stage.channel.send(ScanBegun(number=before))
        stage.channel.send(ScanAnswer(number=before, hits=Hits(error="of before")))
        stage.answers("Evil")
        assert (await task).hits == (Hit(rule="Evil"),)

    played(story)


def test_without_a_scanner_all_that_waits_fails_at_once_and_what_comes_later_is_tried() -> None:
    async def story(stage: Stage) -> None:
        tasks = [stage.asks(name, b"x") for name in "ab"]
        await stage.sent(1)
        stage.channel.send(ScannerGone(another_comes=False))
        said = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(one) for one in said] == ["there is no scanner"] * 2
        later = stage.asks("c", b"later")
        await stage.sent(2)
        stage.answers()
        assert await later == Hits()
        stage.channel.send(ScannerGone(another_comes=True))  # idle: nobody's news

    played(story)


def test_who_waits_no_longer_is_not_sent_and_its_answer_is_nobodys() -> None:
    async def story(stage: Stage) -> None:
        under_way, waiting, last = (stage.asks(name, name.encode()) for name in "abc")
        await stage.sent(1)
        under_way.cancel()
        waiting.cancel()
        await asyncio.sleep(0)
        stage.channel.send(ScannerGone(another_comes=True))
        assert await stage.sent(2) == [b"a", b"c"]
        stage.answers()
        assert await last == Hits()

    played(story)


def test_many_that_give_up_at_once_are_passed_over() -> None:
    """As when the worker cuts its flows."""

    async def story(stage: Stage) -> None:
        tasks = [stage.asks(f"{number}", b"x") for number in range(900)]
        await stage.sent(1)
        for task in tasks:
            task.cancel()
        stage.line._told(ScanAnswer(number=stage.last, hits=Hits()), [])  # in the same round of the loop
        await asyncio.gather(*tasks, return_exceptions=True)
        last = stage.asks("last", b"last")
        while (await stage.sent(1))[-1] != b"last":
            await asyncio.sleep(0.01)
        stage.answers()
        assert await last == Hits()

    played(story)


def test_an_answer_to_who_waits_no_longer_lets_the_next_go() -> None:
    async def story(stage: Stage) -> None:
        under_way, last = (stage.asks(name, name.encode()) for name in "ab")
        await stage.sent(1)
        under_way.cancel()
        await asyncio.sleep(0)
        stage.answers("Evil")
        assert await stage.sent(2) == [b"a", b"b"]
        stage.answers()
        assert await last == Hits()

    played(story)


@pytest.mark.parametrize("overdue_s", [0.0, 0.05])
def test_one_whose_answer_is_lost_holds_up_nobody_once_it_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, overdue_s: float
) -> None:
    monkeypatch.setattr(module, "OVERDUE_S", overdue_s)

    async def story(stage: Stage) -> None:
        lost, last = (stage.asks(name, name.encode()) for name in ("lost", "last"))
        assert await stage.sent(1) == [b"lost"]
        lost.cancel()
        assert await stage.sent(2) == [b"lost", b"last"]
        stage.channel.send(ScanAnswer(number=stage.pieces[0].number, hits=Hits(error="of the lost")))
        stage.answers("Evil")
        assert (await last).hits == (Hit(rule="Evil"),)

    played(story)


def test_when_the_supervisor_has_gone_nobody_waits() -> None:
    async def story(stage: Stage) -> None:
        tasks = [stage.asks(name, b"x") for name in "ab"]
        await stage.sent(1)
        stage.channel.close()
        said = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(one) for one in said] == [ScannerDied] * 2
        with pytest.raises(ScannerDied):
            await stage.line.scan("a", b"x")

    played(story)


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING_LIMIT", 1)

    async def story(stage: Stage) -> None:
        tasks = [stage.asks(name, b"x") for name in "ab"]
        await stage.sent(1)
        with pytest.raises(BlockingIOError):
            await stage.line.scan("c", b"x")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    played(story)


def test_a_scanner_that_reads_nothing_is_not_fed_and_who_gives_up_lets_the_next_go() -> None:
    async def story(stage: Stage) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(stage.channel.fileno())
        task, last = stage.asks("a", bytes(64 * PIECE_BYTES)), stage.asks("b", b"last")
        await asyncio.sleep(0.1)
        assert stage.line._channel.queued == 1
        task.cancel()
        stage.channel.attach(loop, lambda one, _: stage.pieces.append(one), lambda: None)
        assert await stage.sent(1) == [b"last"]
        assert len(stage.pieces) < 64
        stage.answers()
        assert await last == Hits()

    played(story)


def test_while_megabytes_are_sent_the_loop_turns() -> None:
    async def story(stage: Stage) -> None:
        task, rounds = stage.asks("a", bytes(64 * PIECE_BYTES)), 0
        while not any(one.ends for one in stage.pieces):
            await asyncio.sleep(0)
            rounds += 1
        assert rounds >= 64
        stage.answers()
        await task

    played(story)
