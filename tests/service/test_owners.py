"""A policy that selects by hash waits for it; any other one is not held up for long."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future

import pytest

from mitmsec.core.model import Process
from mitmsec.core.policy import DEFAULT_POLICY, Application, Policy
from mitmsec.service import owners
from mitmsec.service.owners import decides_by_hash, hashed
from mitmsec_redirect.processes import Owner

PROCESS = Process(pid=7, exe="/usr/bin/curl")


def test_which_policies_decide_by_hash() -> None:
    assert not decides_by_hash(DEFAULT_POLICY)
    assert not decides_by_hash(Policy(applications=(Application(name="a", path=("/x",)),)))
    assert decides_by_hash(Policy(applications=(Application(name="a", sha256=("0" * 64,)),)))


@pytest.mark.parametrize("must_have", [True, False])
def test_what_is_known_or_not_to_come_is_answered_at_once(must_have: bool) -> None:
    assert asyncio.run(hashed(Owner(PROCESS), must_have=must_have)) == PROCESS


@pytest.mark.parametrize("must_have", [True, False])
def test_a_hash_that_comes_is_in_the_answer(must_have: bool) -> None:
    async def story() -> Process:
        pending: Future[str | None] = Future()
        asking = asyncio.create_task(hashed(Owner(PROCESS, pending), must_have=must_have))
        await asyncio.sleep(0)
        pending.set_result("f" * 64)
        return await asking

    process = asyncio.run(story())
    assert (process.exe, process.sha256) == (PROCESS.exe, "f" * 64)


@pytest.mark.parametrize("must_have", [True, False])
def test_of_a_hash_that_cannot_be_had_nothing_is_said(must_have: bool) -> None:
    vain: Future[str | None] = Future()
    vain.set_result(None)
    assert asyncio.run(hashed(Owner(PROCESS, vain), must_have=must_have)) == PROCESS


def test_a_slow_hash_is_waited_for_only_where_it_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners, "HASH_WAIT_S", 0.02)

    async def story() -> None:
        slow: Future[str | None] = Future()
        slow.set_running_or_notify_cancel()
        exact = asyncio.create_task(hashed(Owner(PROCESS, slow), must_have=True))
        assert await hashed(Owner(PROCESS, slow), must_have=False) == PROCESS
        assert not exact.done()
        assert not slow.cancelled()  # others still wait for it
        slow.set_result("f" * 64)
        assert (await exact).sha256 == "f" * 64

    asyncio.run(story())
