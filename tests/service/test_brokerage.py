"""A session's broker: a real process, begun when somebody asks, and begun again when it has died."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable

import pytest
from badssl_certificates import Certified, root
from badssl_revocation import revocation_list
from issuer_stage import Responder, chain_of, responding
from yara_stage import ENDLESS, EVIL

from mitmsec.channel import Channel
from mitmsec.core.messages import Ready, Role
from mitmsec.core.origin_proof import Standing
from mitmsec.core.policy import DEFAULT_POLICY
from mitmsec.core.policy_packing import packed
from mitmsec.service.broker_messages import RevocationAnswer, RevocationQuestion
from mitmsec.service.brokerage import Brokerage
from mitmsec.service.children import ChildProcess
from mitmsec.service.scanner_messages import ScanAnswer, ScanBegun, ScanContent, ScannerGone, ScannerSettings
from mitmsec_addons.yara_rules import RuleFile, compiled

CA = root()


def started(control: int, output: int, role: str = "broker") -> int:
    """As the jail's spawn, without a jail."""
    command = [sys.executable, "-m", "mitmsec.service", role, str(control)]
    process = subprocess.Popen(command, pass_fds=[control], stdout=output, stderr=output)
    process.returncode = 0  # ChildProcess waits for it
    return process.pid


class Worker:
    """One who asks."""

    def __init__(self, brokerage: Brokerage) -> None:
        self.channel = Channel(brokerage.channel(), [RevocationAnswer])
        self.answers: asyncio.Queue[RevocationAnswer] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        self.channel.attach(loop, lambda answer, _: self.answers.put_nowait(answer), lambda: None)

    async def ask(self, leaf: Certified, number: int = 1) -> Standing:
        self.channel.send(RevocationQuestion(number=number, chain=chain_of(leaf, CA)))
        answer = await asyncio.wait_for(self.answers.get(), 30)
        return answer.statuses[0].standing


class Stage:
    """A brokerage whose roots are a file, and what it tells."""

    def __init__(self, server: Responder) -> None:
        self.roots = os.memfd_create("roots")
        os.write(self.roots, CA.pem)
        self.faults: list[str] = []
        self.begun = 0
        self.fails = 0
        self.brokerage = Brokerage(self._begin, self.roots, lambda what, _: self.faults.append(what), pause_s=0.1)
        self.leaf = CA.leaf("www.origin.test", more=server.names(crl="/crl"))
        server.answers["/crl"] = lambda: revocation_list(CA, self.leaf)

    def _begin(self) -> ChildProcess:
        self.begun += 1
        if self.fails:
            self.fails -= 1
            raise OSError("no more processes")
        return ChildProcess(Role.BROKER, started, print, [Ready])


def played(story: Callable[[Stage], Awaitable[None]]) -> None:
    async def main() -> None:
        with responding() as server:
            stage = Stage(server)
            try:
                await story(stage)
            finally:
                await stage.brokerage.stop()
                with pytest.raises(OSError):
                    os.fstat(stage.roots)

    asyncio.run(main())


def test_it_begins_with_the_first_question_and_serves_all() -> None:
    async def story(stage: Stage) -> None:
        first, second = Worker(stage.brokerage), Worker(stage.brokerage)
        await asyncio.sleep(0.1)
        assert stage.begun == 0
        assert await first.ask(stage.leaf) is await second.ask(stage.leaf) is Standing.REVOKED
        third = Worker(stage.brokerage)
        assert await third.ask(stage.leaf) is Standing.REVOKED
        assert (stage.begun, stage.faults) == (1, [])

    played(story)


def test_a_worker_that_ends_unasked_begins_nothing_and_is_forgotten() -> None:
    async def story(stage: Stage) -> None:
        Worker(stage.brokerage).channel.close()
        await asyncio.sleep(0.1)
        assert stage.begun == 0
        worker = Worker(stage.brokerage)
        assert len(stage.brokerage._ends) == 1
        assert await worker.ask(stage.leaf) is Standing.REVOKED

    played(story)


def test_one_that_dies_is_told_and_the_next_question_begins_another() -> None:
    async def story(stage: Stage) -> None:
        worker = Worker(stage.brokerage)
        await worker.ask(stage.leaf)
        assert stage.brokerage.broker is not None
        stage.brokerage.broker.kill()
        while stage.faults != ["broker_died"]:
            await asyncio.sleep(0.01)
        assert await worker.ask(stage.leaf, 2) is Standing.REVOKED
        assert stage.begun == 2

    played(story)


def test_one_that_cannot_be_begun_is_told_and_tried_again() -> None:
    async def story(stage: Stage) -> None:
        stage.fails = 1
        assert await Worker(stage.brokerage).ask(stage.leaf) is Standing.REVOKED
        assert (stage.begun, stage.faults) == (2, ["broker_not_started"])

    played(story)


def test_an_abandoned_one_goes_without_a_word() -> None:
    async def story(stage: Stage) -> None:
        await Worker(stage.brokerage).ask(stage.leaf)
        broker = stage.brokerage.broker
        assert broker is not None
        stage.brokerage.abandon()
        await asyncio.wait_for(asyncio.shield(broker.ended), 10)
        assert stage.faults == []

    played(story)


class Told:
    """A worker that has to know when nobody answers any more."""

    def __init__(self, brokerage: Brokerage) -> None:
        self.channel = Channel(brokerage.channel(), [ScanBegun, ScanAnswer, ScannerGone])
        self.heard: asyncio.Queue[object] = asyncio.Queue()
        self.channel.attach(asyncio.get_running_loop(), lambda message, _: self.heard.put_nowait(message), lambda: None)

    def sends(self, content: bytes, number: int = 1) -> None:
        self.channel.send(ScanContent(number=number, data=content, begins=True, ends=True))

    async def hears(self) -> object:
        return await asyncio.wait_for(self.heard.get(), 30)


def scanner_started(control: int, output: int) -> int:
    return started(control, output, "scanner")


class ScannerStage:
    """A brokerage of scanners, whose rules are in a file behind a policy."""

    def __init__(self, rules: bytes, hangs_s: float = 30.0) -> None:
        self.policy = os.memfd_create("policy")
        os.write(self.policy, packed(DEFAULT_POLICY, {"yara": rules}))
        self.faults: list[str] = []
        self.brokerage = Brokerage(
            lambda: ChildProcess(Role.SCANNER, scanner_started, print, [Ready]),
            self.policy,
            lambda what, _: self.faults.append(what),
            settings=ScannerSettings(),
            role=Role.SCANNER,
            pause_s=0.1,
            hangs_s=hangs_s,
            gone=lambda another_comes: ScannerGone(another_comes=another_comes),
        )


def scanned(
    story: Callable[[ScannerStage], Awaitable[None]], rules: bytes | None = None, hangs_s: float = 30.0
) -> None:
    async def main() -> None:
        made = compiled([RuleFile(name="own.yar", text=EVIL + ENDLESS)])
        stage = ScannerStage(made if rules is None else rules, hangs_s)
        try:
            await story(stage)
        finally:
            await stage.brokerage.stop()

    asyncio.run(main())


def test_who_has_to_know_it_is_told_of_a_death_and_what_the_dead_left_unread_is_not_anothers() -> None:
    async def story(stage: ScannerStage) -> None:
        worker, other = Told(stage.brokerage), Told(stage.brokerage)
        worker.sends(b"endless")
        assert await worker.hears() == ScanBegun(number=1)
        other.sends(b"evil-bytes")  # nobody reads it now
        assert stage.brokerage.broker is not None
        stage.brokerage.broker.kill()
        assert await worker.hears() == await other.hears() == ScannerGone(another_comes=True)
        assert stage.faults == ["scanner_died"]
        other.sends(b"evil-bytes", 2)
        assert await other.hears() == ScanBegun(number=2)
        answer = await other.hears()
        assert isinstance(answer, ScanAnswer)
        assert [hit.rule for hit in answer.hits.hits] == ["Evil"]

    scanned(story)


def test_where_none_can_be_begun_that_is_told_too() -> None:
    async def story(stage: ScannerStage) -> None:
        worker = Told(stage.brokerage)
        worker.sends(b"x")
        assert await worker.hears() == ScannerGone(another_comes=False)
        assert stage.faults == ["scanner_not_started"]

    scanned(story, rules=b"no rules")


def test_a_panic_of_yara_x_is_a_death(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python knows it as a BaseException, which a loop would tell of and go on."""
    monkeypatch.setattr(sys.modules[__name__], "started", panicking)

    async def story(stage: ScannerStage) -> None:
        worker = Told(stage.brokerage)
        worker.sends(b"evil-bytes")
        assert await worker.hears() == ScanBegun(number=1)
        assert await worker.hears() == ScannerGone(another_comes=True)
        assert stage.faults == ["scanner_died"]

    scanned(story)


PANICKING = """
import sys
from mitmsec.service import scanner
class Panic(BaseException): pass
class Rules:
    def __init__(self, content): pass
    def scan(self, content):
        if content: raise Panic
scanner.Scanner.__init__.__defaults__ = (Rules,)
scanner.main()
"""


def panicking(control: int, output: int, role: str = "") -> int:
    command = [sys.executable, "-c", PANICKING, str(control)]
    process = subprocess.Popen(command, pass_fds=[control], stdout=output, stderr=output)
    process.returncode = 0
    return process.pid


def test_one_that_hangs_is_ended_and_another_begins() -> None:
    async def story(stage: ScannerStage) -> None:
        worker = Told(stage.brokerage)
        stage.brokerage.feel_pulse()
        worker.sends(b"evil-bytes")
        await worker.hears()
        await worker.hears()
        broker = stage.brokerage.broker
        assert broker is not None
        os.kill(broker.pid, signal.SIGSTOP)
        while not broker.ended.done():
            stage.brokerage.feel_pulse()
            await asyncio.sleep(0.05)
        assert await worker.hears() == ScannerGone(another_comes=True)
        assert stage.faults == ["scanner_hangs", "scanner_died"]
        worker.sends(b"evil-bytes", 2)
        assert await worker.hears() == ScanBegun(number=2)

    scanned(story, hangs_s=0.5)
