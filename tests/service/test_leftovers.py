"""What a dead supervisor left is found by name; the living are not touched, and what needs an order waits for one."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mitmsec.service import ground, leftovers, survivors
from mitmsec.service.state import State
from mitmsec_redirect import bpffs, nft
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


@pytest.mark.skipif(shutil.which("nft", path=nft.FOLDERS) is None, reason="nft is not installed (Debian: nftables)")
def test_a_table_keeps_denying_as_long_as_somebody_runs_under_it_and_goes_by_order(state: State) -> None:
    empty, busy = left_behind(state, "empty"), left_behind(state, "busy")
    script = ["unshare", "-n", "sh", "-c", "echo up; exec sleep 60"]
    sleeper = subprocess.Popen(script, stdout=subprocess.PIPE, text=True)
    try:
        assert sleeper.stdout is not None
        assert sleeper.stdout.readline() == "up\n"
        busy.put(sleeper.pid)
        network = os.open(f"/proc/{sleeper.pid}/ns/net", os.O_RDONLY)
        for cgroup in (empty, busy):
            nft.load(f'create table inet {cgroup.path.name} {{ comment "mitmsec owner {os.getpid()} 1"; }}', network)
        os.close(network)
        assert [one.name for one in leftovers.reap(state) if one.what == "table"] == [empty.path.name]
        assert leftovers.remaining(state) == [str(busy.path), f"table {busy.path.name}"]
        assert [one.name for one in leftovers.clean(state, purge=False) if one.what == "table"] == [busy.path.name]
        assert leftovers.remaining(state) == []
    finally:
        sleeper.kill()
        sleeper.communicate()


def test_the_folder_of_a_run_stays_as_long_as_somebody_who_was_told_of_it_lives(state: State) -> None:
    folders = {name: state.session_folder(name) for name in ("ended", "noted", "named")}
    for folder in folders.values():
        folder.mkdir()
    noted = subprocess.Popen(["sleep", "60"])
    named = subprocess.Popen(["sleep", "60"], env=os.environ | {"SSL_CERT_FILE": f"{folders['named']}/roots.pem"})
    try:
        survivors.note(folders["noted"], [noted.pid])
        done = {one.name: one for one in leftovers.reap(state)}
        assert (done["ended"].kept, folders["ended"].exists()) == ("", False)
        assert done["noted"].kept == f"its roots are those of process {noted.pid}, alive"
        assert done["named"].kept == f"its roots are those of process {named.pid}, alive"
        assert folders["noted"].exists()
        assert folders["named"].exists()
    finally:
        for process in (noted, named):
            process.kill()
            process.wait()
    leftovers.reap(state)
    assert not folders["noted"].exists()
    assert not folders["named"].exists()


def test_who_is_cleaned_out_of_its_cgroup_keeps_the_roots(state: State) -> None:
    busy = left_behind(state, "busy")
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        busy.put(sleeper.pid)
        kept = [one.name for one in leftovers.clean(state, purge=False) if one.kept]
        assert (kept, state.session_folder("busy").exists(), busy.path.exists()) == (["busy"], True, False)
    finally:
        sleeper.kill()
        sleeper.wait()


def test_many_pids_are_told_in_few_words() -> None:
    assert leftovers._processes([1]) == "process 1"
    assert leftovers._processes([1, 2, 3, 4, 5]) == "processes 1, 2, 3 and 2 more"


def test_cleaning_removes_pins_and_their_mount_and_keeps_the_log_unless_told(state: State) -> None:
    bpffs.mount(state.bpf)
    (state.bpf / "dead").mkdir()
    (state.log / "audit.db").write_text("kept")
    removed = leftovers.clean(state, purge=False)
    assert [item.what for item in removed] == ["hook", "mount"]
    assert not bpffs.is_mounted(state.bpf)
    assert (state.log / "audit.db").exists()
    assert [item.what for item in leftovers.clean(state, purge=False, purge_ca=True)] == ["keys"]
    assert (state.log / "audit.db").exists()
    assert not state.ca.exists()
    assert state.policies.exists()
    leftovers.clean(state, purge=True)
    assert not state.log.exists()
    assert not state.policies.exists()
    assert leftovers.remaining(state) == []
    state.supervisor_log.write_text("words")
    assert [item.problem for item in leftovers.vanish(state)] == [""]
    assert not state.folder.exists()
    state.make()


class Stubborn(SessionCgroup):
    """A cgroup that the kernel still clears up: gone at the third try."""

    tries = 0

    def remove(self) -> bool:
        self.tries += 1
        return self.tries == 3 and super().remove()


def test_a_ca_that_goes_is_none_from_the_first_step_on(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is killed while it goes leaves a state that can be started, and no CA that waited comes up instead."""
    (state.ca / "next").mkdir()
    for name in ("root.pem", "issuing.key", "next/root.pem", "next/issuing.key"):
        (state.ca / name).touch()

    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            leftovers.clean(state, purge=False, purge_ca=True)
    assert sorted(path.name for path in state.ca.rglob("*.*")) == ["issuing.key", "issuing.key"]
    leftovers.clean(state, purge=False, purge_ca=True)
    assert not state.ca.exists()


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
