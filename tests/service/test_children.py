"""The supervisor hears of each child's end exactly once, and never waits for a silent one for ever."""

from __future__ import annotations

import asyncio
import os
import signal
from functools import partial
from pathlib import Path

import pytest

from mitmsec.channel import ChannelFull, pair
from mitmsec.core.messages import Ready, RecorderSettings, Role, SignerReady, SignerSettings
from mitmsec.service import children
from mitmsec.service import jail as module
from mitmsec.service.accounts import account_of
from mitmsec.service.children import ChildFailed, ChildProcess
from mitmsec.service.jail import Jail
from mitmsec.service.state import State

pytestmark = pytest.mark.root


@pytest.fixture
def state(tmp_path: Path) -> State:
    state = State(tmp_path / "state")
    state.make()
    return state


def signer(state: State) -> ChildProcess:
    jail = Jail(role=Role.SIGNER, account=account_of(Role.SIGNER), mountpoint=str(state.jail), folder=str(state.ca))
    return ChildProcess(jail.role, partial(module.spawn, jail), print, [Ready, SignerReady])


def test_a_killed_child_is_told_once_with_its_status(state: State) -> None:
    async def story() -> list[int]:
        process = signer(state)
        told: list[int] = []
        process.watch(told.append)
        with pair()[0] as recorder:
            await process.start(SignerSettings(folder=str(state.ca)), recorder.fileno())
        process.kill()
        assert await process.ended == -signal.SIGKILL
        process.kill()  # nothing is left to kill
        assert await process.modules() == ()
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)
        return told

    assert asyncio.run(story()) == [-signal.SIGKILL]


def test_a_child_that_reads_nothing_is_asked_again_when_it_does(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its channel being full is no error of who looks, nor is a question that was not put one that it must answer."""

    async def story() -> None:
        process = signer(state)
        with pair()[0] as recorder:
            await process.start(SignerSettings(folder=str(state.ca)), recorder.fileno())

        def refuse(message: object, *fds: int) -> None:
            raise ChannelFull(type(message).__name__)

        with monkeypatch.context() as full:
            full.setattr(process.channel, "send", refuse)
            assert process.ask_for_beat()
            assert process.ask_for_beat()
        assert process.ask_for_beat()
        async with asyncio.timeout(10):
            while not process.beats:
                await asyncio.sleep(0.01)
        await process.stop()

    asyncio.run(story())


def test_a_child_that_stays_silent_is_given_up(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "START_DEADLINE_S", 0.3)

    async def story() -> None:
        process = signer(state)
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(ChildFailed, match=r"ready within 0 s"):
            await process.start(RecorderSettings(folder="/x"))
        await process.stop(grace_s=0.1)  # what does not end by itself is killed
        assert await asyncio.wait_for(process.ended, 10) == -signal.SIGKILL

    asyncio.run(story())


def test_an_end_that_came_before_anybody_watched_is_told_whatever_the_status(state: State) -> None:
    """A worker that leaves in order, status 0, while its run lives, is as gone as a killed one."""

    async def story() -> list[int]:
        process = signer(state)
        told: list[int] = []
        with pair()[0] as recorder:
            await process.start(SignerSettings(folder=str(state.ca)), recorder.fileno())
        process.channel.close()
        assert await process.ended == 0
        process.watch(told.append)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return told

    assert asyncio.run(story()) == [0]


def test_what_a_child_says_stands_in_the_log_under_its_name(state: State) -> None:
    async def story() -> None:
        jail = Jail(
            role=Role.RECORDER, account=account_of(Role.RECORDER), mountpoint=str(state.jail), folder="/nowhere"
        )
        lines: list[str] = []
        process = ChildProcess(jail.role, partial(module.spawn, jail), lines.append, [Ready])
        with pytest.raises(ChildFailed):
            await process.start(RecorderSettings(folder="/nowhere"))
        assert any(line.startswith(f"recorder {process.pid}: ") and "/nowhere" in line for line in lines)

    asyncio.run(story())
