"""The supervisor's own life: what it has begun to end it ends, and who comes in its last moment is heard."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from mitmsec.channel import Channel
from mitmsec.service import control
from mitmsec.service.childlog import LogFile
from mitmsec.service.run import memory_file
from mitmsec.service.state import State
from mitmsec.service.supervisor import Supervisor

CLOSED = control.RunClosed(committed=True, connections=0, requests=0, findings=0, faults=0, cut=0, survivors=0)


def supervisor(tmp_path: Path) -> Supervisor:
    state = State(tmp_path / "state")
    state.run.mkdir(parents=True)
    return Supervisor(state, LogFile(state.supervisor_log, 2))


def test_a_run_that_is_being_ended_is_ended_once_though_who_asked_has_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on SIGTERM, in the middle of a client's order to end its run."""
    ended: list[str] = []

    async def story() -> control.RunClosed:
        goes_on = asyncio.Event()

        async def end_once(self: Supervisor, session: Any, home: str | None, status: int | None) -> control.RunClosed:
            ended.append("begun")
            await goes_on.wait()
            ended.append(session.name)
            return CLOSED

        monkeypatch.setattr(Supervisor, "_end_once", end_once)
        one, session = supervisor(tmp_path), SimpleNamespace(name="run-1")
        client = asyncio.create_task(one.end(session, home=None, status=0))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        client.cancel()
        await asyncio.wait((client,))
        goes_on.set()
        return await one.end(session, home=None, status=None)  # type: ignore[arg-type]

    assert asyncio.run(story()) == CLOSED
    assert ended == ["begun", "run-1"]


def test_of_a_run_with_a_policy_that_it_cannot_read_it_keeps_nothing(tmp_path: Path) -> None:
    """As a front-end of another version may send it; behind one of the descriptors are keys."""
    order = control.OpenRun(
        program="true",
        arguments=0,
        user="root",
        policy_file="p.toml",
        policy_sha256="",
        workers=1,
        capture=False,
        keys=True,
    )

    async def story() -> None:
        one = supervisor(tmp_path)
        fds = [memory_file(name, b'{"action": "teleport"}') for name in ("network", "policy", "roots", "keys")]
        with pytest.raises(msgspec.ValidationError):
            await one.opened(order, list(fds), "root")
        assert one.sessions == {}
        for descriptor in fds:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(descriptor)

    asyncio.run(story())


@pytest.mark.root
def test_who_comes_in_its_last_moment_is_still_served(tmp_path: Path) -> None:
    """It was idle and about to end, and then somebody was accepted."""

    async def story() -> object:
        one = supervisor(tmp_path)
        listener = control.listen(one.state.control, 0)
        serving = asyncio.create_task(one.serve(listener))
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        client = Channel(control.connect(one.state.control), control.FROM_SUPERVISOR)
        while not one._clients:
            await asyncio.sleep(0)
        one._idle.set()
        answered: asyncio.Future[object] = loop.create_future()
        client.attach(loop, lambda message, fds: answered.set_result(message), lambda: None)
        client.send(control.StatusQuestion())
        answer = await asyncio.wait_for(answered, 10)
        client.close()
        await asyncio.wait_for(serving, 10)  # and with the last client it ends
        listener.close()
        return answer

    answer = asyncio.run(story())
    assert isinstance(answer, control.StatusAnswer)
    assert answer.processes == ()
