"""What a dead supervisor left is found by name; the living are not touched, and what needs an order waits for one."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mitmsec.service import ground, leftovers
from mitmsec.service.state import State
from mitmsec_redirect import bpffs
from mitmsec_redirect.cgroup import SessionCgroup

pytestmark = pytest.mark.root


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    state = State(tmp_path / "state")
    state.make()
    yield state
    leftovers.clean(state, purge=True)


def left_behind(state: State, session: str) -> SessionCgroup:
    state.session_folder(session).mkdir()
    return SessionCgroup.create(state.identity(), session)


def test_reaping_takes_the_empty_and_leaves_what_still_runs(state: State) -> None:
    empty, busy = left_behind(state, "empty"), left_behind(state, "busy")
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        busy.put(sleeper.pid)
        leftovers.reap(state)
        assert (empty.path.exists(), busy.path.exists()) == (False, True)
        assert not state.session_folder("empty").exists()
        assert leftovers.remaining(state) == [str(busy.path)]
        removed = leftovers.clean(state, purge=False)
        assert {(item.what, item.problem) for item in removed} == {("cgroup", ""), ("folder", "")}
        assert leftovers.remaining(state) == []
        assert "mitmsec-" not in Path(f"/proc/{sleeper.pid}/cgroup").read_text()
    finally:
        sleeper.kill()
        sleeper.wait()


def test_cleaning_removes_pins_and_their_mount_and_keeps_the_log_unless_told(state: State) -> None:
    bpffs.mount(state.bpf)
    (state.bpf / "dead").mkdir()
    (state.log / "audit.db").write_text("kept")
    removed = leftovers.clean(state, purge=False)
    assert [item.what for item in removed] == ["hook", "mount"]
    assert not bpffs.is_mounted(state.bpf)
    assert (state.log / "audit.db").exists()
    leftovers.clean(state, purge=True)
    assert not state.log.exists()
    assert not state.ca.exists()
    os.makedirs(state.log, exist_ok=True)


class Stubborn(SessionCgroup):
    """A cgroup that the kernel still clears up: gone at the third try."""

    tries = 0

    def remove(self) -> bool:
        self.tries += 1
        return self.tries == 3 and super().remove()


def test_a_cgroup_that_does_not_go_at_once_is_given_time_and_nobody_is_held_up(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    cgroup = Stubborn(left_behind(state, "slow").path)
    turns = 0

    async def story() -> None:
        nonlocal turns
        releasing = asyncio.create_task(ground.release_beside(cgroup, None))
        while not releasing.done():
            turns += 1
            await asyncio.sleep(0)
        await releasing

    asyncio.run(story())
    assert (cgroup.tries, cgroup.path.exists()) == (3, False)
    assert turns > 3
    paused: list[float] = []
    monkeypatch.setattr(ground.time, "sleep", paused.append)
    ground.release(Stubborn(left_behind(state, "again").path), None)
    assert len(paused) == 2
