"""The scanner in this process: content in pieces, one after another, and whoever sends nonsense harms only himself."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yara_stage import EVIL

from mitmsec.channel import Channel, pair
from mitmsec.core.messages import Fault, Message, ProducerUp, Role
from mitmsec.core.policy import DEFAULT_POLICY
from mitmsec.core.policy_packing import packed
from mitmsec.core.rule_hits import Hits
from mitmsec.service import scanner
from mitmsec.service.scanner import Gathering, Scanner
from mitmsec.service.scanner_messages import ScanAnswer, ScanBegun, ScanContent, ScannerSettings
from mitmsec_addons.yara_rules import RuleFile, RuleSet, compiled


def policy_file(prepared: dict[str, bytes]) -> int:
    memory = os.memfd_create("policy")
    os.write(memory, packed(DEFAULT_POLICY, prepared))
    return memory


class Breaking(RuleSet):
    """Rules that some content is too much for."""

    def scan(self, content: bytes) -> Hits:
        if content == b"break":
            raise RuntimeError("quotes what it read")
        return super().scan(content)


class Stage:
    """A scanner, and workers that send to it."""

    async def open(self) -> None:
        control, self._other = pair()
        self.scanner = Scanner(Channel(control, [ProducerUp]), Breaking)
        prepared = {"yara": compiled([RuleFile(name="own.yar", text=EVIL)])}
        assert await self.scanner.start(ScannerSettings(), [policy_file(prepared)]) is None
        self.told: list[tuple[str, Message]] = []
        self.channels: list[Channel] = []

    def worker(self, name: str) -> Channel:
        mine, theirs = pair()
        channel = Channel(mine, [ScanBegun, ScanAnswer])
        channel.attach(asyncio.get_running_loop(), lambda one, _: self.told.append((name, one)), lambda: None)
        self.scanner.told(ProducerUp(role=Role.WORKER), [theirs.detach()])
        self.channels.append(channel)
        return channel

    async def answers(self, count: int) -> list[tuple[str, int, int]]:
        """Of whom, the number, and how many rules match: once there are so many."""
        async with asyncio.timeout(10):
            while len(found := [(name, one) for name, one in self.told if isinstance(one, ScanAnswer)]) < count:
                await asyncio.sleep(0.01)
        return [(name, one.number, len(one.hits.hits)) for name, one in found]

    async def close(self) -> None:
        await self.scanner.stop()
        for channel in self.channels:
            channel.close()
        self._other.close()


def played(story: Callable[[Stage], Awaitable[None]]) -> None:
    async def main() -> None:
        stage = Stage()
        await stage.open()
        try:
            await story(stage)
        finally:
            await stage.close()

    asyncio.run(main())


def test_what_comes_in_pieces_is_scanned_as_a_whole_and_begun_is_told_before() -> None:
    async def story(stage: Stage) -> None:
        worker = stage.worker("a")
        worker.send(ScanContent(number=1, data=b"evil-", begins=True))
        worker.send(ScanContent(number=1, data=b"bytes", ends=True))
        await stage.answers(1)
        worker.send(ScanContent(number=2, data=b"nothing", begins=True, ends=True))
        assert await stage.answers(2) == [("a", 1, 1), ("a", 2, 0)]
        assert [type(one) for _, one in stage.told] == [ScanBegun, ScanAnswer] * 2

    played(story)


def test_one_that_is_sent_again_is_scanned_in_the_place_of_what_waited() -> None:
    async def story(stage: Stage) -> None:
        worker = stage.worker("a")
        for number in (1, 2):
            worker.send(ScanContent(number=number, data=b"evil-bytes", begins=True, ends=True))
        assert await stage.answers(1) == [("a", 2, 1)]

    played(story)


def test_a_worker_whose_content_is_not_complete_holds_up_nobody() -> None:
    async def story(stage: Stage) -> None:
        stage.worker("slow").send(ScanContent(number=1, data=b"evil-", begins=True))
        stage.worker("quick").send(ScanContent(number=1, data=b"evil-bytes", begins=True, ends=True))
        assert await stage.answers(1) == [("quick", 1, 1)]
        stage.channels[0].close()
        async with asyncio.timeout(10):
            while len(stage.scanner._workers) > 1:
                await asyncio.sleep(0.01)

    played(story)


def test_much_that_is_sent_beside_little_that_takes_long_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanner, "READ_S", 0.1)
    slow = 0

    class Slow(Breaking):
        def scan(self, content: bytes) -> Hits:
            nonlocal slow
            if content == b"slow":
                slow += 1
                time.sleep(0.1)
            return super().scan(content)

    async def story(stage: Stage) -> None:
        stage.scanner._rules = Slow(compiled([RuleFile(name="own.yar", text=EVIL)]))
        again = ScanContent(number=1, data=b"slow", begins=True, ends=True)
        for _ in range(3):
            busy = stage.worker("busy")
            busy.attach(
                asyncio.get_running_loop(),
                lambda one, _, busy=busy: busy.send(again) if isinstance(one, ScanAnswer) else None,
                lambda: None,
            )
            busy.send(again)
        honest = stage.worker("honest")
        for at in range(64):
            honest.send(ScanContent(number=1, data=bytes(1 << 17), begins=at == 0, ends=at == 63))
        assert await stage.answers(1) == [("honest", 1, 0)]
        assert slow <= 8  # 16 MiB in a turn or two, and those whose turn it was before

    played(story)


def test_a_bug_of_ours_leaves_nobody_without_an_answer_and_quotes_nothing() -> None:
    async def story(stage: Stage) -> None:
        stage.worker("a").send(ScanContent(number=1, data=b"break", begins=True, ends=True))
        await stage.answers(1)
        answer = stage.told[-1][1]
        assert isinstance(answer, ScanAnswer)
        assert answer.hits.error == "the scanner failed (RuntimeError)"

    played(story)


def test_others_than_workers_have_nothing_to_ask() -> None:
    async def story(stage: Stage) -> None:
        mine, theirs = pair()
        stage.scanner.told(ProducerUp(role=Role.GATE), [theirs.detach()])
        mine.setblocking(False)
        assert mine.recv(1) == b""
        mine.close()

    played(story)


def test_a_policy_without_rules_behind_it_is_refused() -> None:
    async def story() -> None:
        control, other = pair()
        answer = await Scanner(Channel(control, [ProducerUp])).start(ScannerSettings(), [policy_file({})])
        assert isinstance(answer, Fault)
        control.close()
        other.close()

    asyncio.run(story())


CONTENTS = st.lists(st.lists(st.binary(max_size=4), min_size=1, max_size=4), max_size=4)


def pieces(number: int, content: list[bytes]) -> list[ScanContent]:
    last = len(content) - 1
    return [ScanContent(number=number, data=data, begins=at == 0, ends=at == last) for at, data in enumerate(content)]


@given(CONTENTS)
def test_however_content_is_cut_it_is_gathered_as_it_was(contents: list[list[bytes]]) -> None:
    gathering = Gathering()
    sent = [one for number, content in enumerate(contents) for one in pieces(number, content)]
    gathered = [complete for one in sent if (complete := gathering.take(one)) is not None]
    assert gathered == [(number, b"".join(content)) for number, content in enumerate(contents)]


@given(CONTENTS, st.integers(0, 12))
def test_what_another_scanner_had_the_beginning_of_is_passed_over(contents: list[list[bytes]], lost: int) -> None:
    """It may begin in the middle of one; those behind it are complete."""
    gathering = Gathering()
    sent = [one for number, content in enumerate(contents) for one in pieces(number, content)]
    gathered = [complete for one in sent[lost:] if (complete := gathering.take(one)) is not None]
    begun = {one.number for one in sent[lost:] if one.begins}
    assert gathered == [(number, b"".join(contents[number])) for number in sorted(begun)]


@given(
    st.lists(
        st.builds(
            ScanContent, number=st.integers(0, 2), data=st.binary(max_size=9), begins=st.booleans(), ends=st.booleans()
        )
    )
)
def test_whatever_a_worker_sends_it_has_no_more_kept_than_one_content(sent: list[ScanContent]) -> None:
    gathering = Gathering(limit_bytes=16)
    for one in sent:
        complete = gathering.take(one)
        assert complete is None or len(complete[1]) <= 16
        assert len(gathering._content) <= 16
