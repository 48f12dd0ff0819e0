"""The worker that is begun before anybody has asked for one: given out once, alive, and ended with the rest."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from mitmsec.core.messages import Role
from mitmsec.service.backbone import Backbone
from mitmsec.service.state import State

pytestmark = pytest.mark.root


def begun(tmp_path: Path) -> Backbone:
    state = State(tmp_path / "state")
    state.make()
    return Backbone(state, print)


def ours() -> set[int]:
    """Our child processes."""
    return {int(pid) for line in Path("/proc/self/task").glob("*/children") for pid in line.read_text().split()}


async def until(condition: Callable[[], bool], deadline_s: float = 10) -> None:
    async with asyncio.timeout(deadline_s):
        while not condition():
            await asyncio.sleep(0.01)


def test_a_worker_is_there_before_anybody_asks_and_only_one_gets_it(tmp_path: Path) -> None:
    async def story() -> None:
        backbone, before = begun(tmp_path), ours()
        await backbone.start()
        waiting = ours() - before - {child.pid for child in backbone.children}
        first, second = backbone.begun_worker(), backbone.begun_worker()
        assert waiting == {first.pid}
        assert second.pid not in waiting
        assert first.role is second.role is Role.WORKER
        await asyncio.gather(first.stop(), second.stop())
        await backbone.stop()
        assert ours() - before == set()

    asyncio.run(story())


def test_one_that_has_died_meanwhile_is_given_to_nobody(tmp_path: Path) -> None:
    async def story() -> None:
        backbone, before = begun(tmp_path), ours()
        await backbone.start()
        (waiting,) = ours() - before - {child.pid for child in backbone.children}
        os.kill(waiting, signal.SIGKILL)
        await until(lambda: waiting not in ours())
        worker = backbone.begun_worker()
        assert worker.pid != waiting
        assert worker.pid in ours()
        await worker.stop()
        await backbone.stop()

    asyncio.run(story())


def test_what_nobody_asked_for_ends_with_the_rest(tmp_path: Path) -> None:
    async def story() -> None:
        backbone, before = begun(tmp_path), ours()
        await backbone.start()
        assert len(ours() - before) == 3
        await backbone.stop()
        assert ours() - before == set()

    asyncio.run(story())
