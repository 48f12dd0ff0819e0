"""Whom workers ask: a scanner where their own policy has rules, by those rules, until they have ended."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable

from test_brokerage import started
from yara_stage import EVIL

from mitmsec.core.messages import Ready, Role
from mitmsec.core.policy import DEFAULT_POLICY, Policy
from mitmsec.core.policy_packing import packed
from mitmsec.service.aides import Aides
from mitmsec.service.children import ChildProcess
from mitmsec.service.scan_line import ScanLine
from mitmsec_addons.yara_rules import RuleFile, compiled

SCANNING = Policy(inspectors=(("yara", ("own.yar",)),))


class Stage:
    """A session whose policy has rules."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.workers: dict[int, ScanLine] = {}
        self.roots_fd = os.memfd_create("roots")
        self.policy_fd = -1
        self.has(SCANNING, EVIL)
        self.aides = Aides(self, self._begin)

    def has(self, policy: Policy, rules: str = "") -> None:
        """As a reload does: another policy, and the descriptor of the earlier one is closed."""
        if self.policy_fd != -1:
            os.close(self.policy_fd)
        self.policy, self.policy_fd = policy, os.memfd_create("policy")
        prepared = {"yara": compiled([RuleFile(name="own.yar", text=rules)])} if rules else {}
        os.write(self.policy_fd, packed(policy, prepared))

    def fault(self, what: str, detail: str = "") -> None:
        self.faults.append(what)

    def _begin(self, role: Role, shows: tuple[str, ...] = ()) -> ChildProcess:
        return ChildProcess(role, lambda control, output: started(control, output, role), print, [Ready])

    def worker(self, number: int) -> ScanLine:
        with self.aides.channels(number) as fds:
            assert len(fds) == 2
            sock = socket.socket(fileno=os.dup(fds[1]))
        made = self.workers[number] = ScanLine(sock, asyncio.get_running_loop())
        return made

    def end(self, number: int) -> None:
        self.workers.pop(number).close()
        self.aides.forget(number)

    async def close(self) -> None:
        await self.aides.stop()
        for worker in self.workers.values():
            worker.close()
        for descriptor in (self.roots_fd, self.policy_fd):
            os.close(descriptor)


def played(story: Callable[[Stage], Awaitable[None]]) -> None:
    async def main() -> None:
        stage = Stage()
        try:
            await story(stage)
            assert stage.faults == []
        finally:
            await stage.close()

    asyncio.run(main())


async def found(worker: ScanLine, content: bytes) -> list[str]:
    return [hit.rule for hit in (await worker.scan("f", content)).hits]


def test_after_a_reload_each_worker_is_answered_by_the_rules_of_its_own_policy() -> None:
    async def story(stage: Stage) -> None:
        elder = stage.worker(0)
        assert await found(elder, b"evil-bytes") == ["Evil"]
        stage.aides.succeed()
        stage.has(SCANNING, EVIL.replace("evil-bytes", "other-bytes").replace("Evil", "Other"))
        younger = stage.worker(1)
        assert await found(younger, b"evil-bytes, other-bytes") == ["Other"]
        assert await found(elder, b"evil-bytes, other-bytes") == ["Evil"]
        first, second = stage.aides.all
        stage.end(0)
        await asyncio.wait_for(asyncio.shield(first.ended), 10)
        assert not second.ended.done()

    played(story)


def test_after_a_reload_that_failed_the_rules_of_before_are_asked() -> None:
    async def story(stage: Stage) -> None:
        elder = stage.worker(0)
        before = stage.aides.succeed()
        stage.has(SCANNING, "rule Other { condition: filesize > 0 }")
        assert await found(stage.worker(1), b"evil-bytes") == ["Other"]
        stage.has(SCANNING, EVIL)
        stage.aides.go_back(before)
        stage.end(1)
        assert await found(elder, b"evil-bytes") == await found(stage.worker(2), b"evil-bytes") == ["Evil"]

    played(story)


def test_a_policy_without_rules_has_no_scanner_and_an_abandoned_session_leaves_none() -> None:
    async def story(stage: Stage) -> None:
        assert await found(stage.worker(0), b"nothing") == []
        stage.aides.succeed()
        stage.has(DEFAULT_POLICY)
        with stage.aides.channels(1) as fds:
            assert len(fds) == 1
        (scanner,) = stage.aides.all
        stage.aides.feel_pulse()
        stage.aides.abandon()
        await asyncio.wait_for(asyncio.shield(scanner.ended), 10)

    played(story)
