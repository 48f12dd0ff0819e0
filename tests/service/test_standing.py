"""Whom the service selects, by real programs of this machine; each policy here selects only what its test made."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mitmsec.core.model import Process
from mitmsec.core.policy import Application, Policy
from mitmsec.service.scopes import NOBODY
from mitmsec.service.standing import BEGUN_LIMIT, OURS, StandingScope
from mitmsec_redirect.cgroup import cgroup2_root
from mitmsec_redirect.verdicts import Verdict, verdict_of

pytestmark = pytest.mark.root
STARTED = 300
SUPERVISOR = "read line && sh -c 'sleep 60 & echo $!; wait'"  # starts what starts something, when told


def policy(**criteria: Any) -> Policy:
    return Policy(applications=(Application(name="a", **criteria),))


class Stage:
    """A scope, and programs that are nobody else's."""

    def __init__(
        self, folder: Path, scope: StandingScope, supervisor: subprocess.Popen[bytes], held: contextlib.ExitStack
    ) -> None:
        self.folder, self.scope, self.supervisor, self._held = folder, scope, supervisor, held

    def start(self, *command: str, **options: Any) -> subprocess.Popen[Any]:
        process = subprocess.Popen(command, **options)
        self._held.callback(process.wait)
        self._held.callback(process.kill)
        return process

    def executed(self, program: Path | str) -> int:
        """The pid of a `program`, a cat, that has executed instructions."""
        process = self.start(str(program), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"\n")
        assert process.stdout.read(1) == b"\n"
        return process.pid

    def verdict(self, pid: int) -> Verdict:
        return verdict_of(self.scope._monitor.entry_of(pid))

    async def until(self, pid: int, verdict: Verdict) -> None:
        async with asyncio.timeout(20):
            while self.verdict(pid) != verdict:
                self.scope.look()
                await asyncio.sleep(0.01)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("cat", "sh", "sleep"):
        shutil.copy(os.path.realpath(f"/usr/bin/{name}"), tmp_path / name)
    return tmp_path


def on_stage(folder: Path, governed: Policy, scenario: Callable[[Stage], Any]) -> None:
    """`scenario` on a loop with a scope under `governed`, which is gone afterwards."""

    async def play() -> None:
        supervisor = subprocess.Popen(["/usr/bin/sh", "-c", SUPERVISOR], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        scope = StandingScope(governed, supervisor.pid)
        try:
            with contextlib.ExitStack() as held:
                await scenario(Stage(folder, scope, supervisor, held))
        finally:
            supervisor.communicate()
            await scope.release(None)

    asyncio.run(play())


@pytest.fixture
def running(folder: Path) -> Iterator[subprocess.Popen[Any]]:
    process = subprocess.Popen([folder / "sleep", "60"])
    yield process
    process.kill()
    process.wait()


def test_who_runs_is_judged_at_once_and_again_under_another_policy(
    folder: Path, running: subprocess.Popen[Any]
) -> None:
    async def scenario(stage: Stage) -> None:
        assert stage.verdict(running.pid) == Verdict.SELECTED
        assert stage.verdict(stage.supervisor.pid) == OURS
        assert not stage.scope.selection.everything
        stage.scope.govern(policy(path=("/nowhere/*",)))
        assert stage.verdict(running.pid) == Verdict(0)
        stage.scope.govern(policy(path=("*",)))
        assert stage.scope.selection.everything
        assert stage.verdict(running.pid) == Verdict.SELECTED

    on_stage(folder, policy(path=(str(folder / "sleep"),)), scenario)


def test_it_names_who_is_selected_or_may_be_and_none_of_us(folder: Path, running: subprocess.Popen[Any]) -> None:
    async def scenario(stage: Stage) -> None:
        undecided = stage.executed("/usr/bin/cat")  # nobody has drained anything yet
        assert stage.scope.is_undecided(undecided)
        assert not stage.scope.is_undecided(running.pid)
        assert {running.pid, undecided} <= set(stage.scope.selected_pids())
        await stage.until(undecided, Verdict(0))
        assert not stage.scope.is_undecided(undecided)
        named = stage.scope.selected_pids()
        assert running.pid in named
        assert not {undecided, stage.supervisor.pid} & set(named)
        assert running.pid in stage.scope.newly_selected()[0]
        assert stage.scope.newly_selected() == ([], 0)
        again = stage.start(str(folder / "sleep"), "60").pid
        await stage.until(again, Verdict.SELECTED)
        async with asyncio.timeout(20):
            while again not in stage.scope.newly_selected()[0]:
                await asyncio.sleep(0.01)
        stage.scope.govern(policy(path=("*",)))
        everybody = stage.scope.selected_pids()
        assert {undecided, running.pid, 1} <= set(everybody)
        assert stage.supervisor.pid not in everybody

    on_stage(folder, policy(path=(str(folder / "sleep"),)), scenario)


def test_of_a_program_that_starts_very_many_the_last_are_named_and_the_rest_is_counted(folder: Path) -> None:
    """All within one look, as of one that starts 5,000 in a second."""
    starts = f"n=0; while [ $n -lt {STARTED} ]; do {folder}/cat </dev/null & n=$((n+1)); done; wait; echo done"

    async def scenario(stage: Stage) -> None:
        shell = stage.start("/usr/bin/sh", "-c", starts, stdout=subprocess.PIPE)
        assert shell.stdout is not None
        await asyncio.to_thread(shell.stdout.readline)
        stage.scope.processes.refresh()
        begun, more = stage.scope.newly_selected()
        assert (len(begun), more, stage.scope._monitor.lost) == (BEGUN_LIMIT, STARTED - BEGUN_LIMIT, 0)

    on_stage(folder, policy(path=(str(folder / "cat"),)), scenario)


def test_a_named_file_is_selected_before_its_first_instruction(folder: Path) -> None:
    async def scenario(stage: Stage) -> None:
        chosen, other = stage.executed(folder / "cat"), stage.executed("/usr/bin/cat")
        assert stage.verdict(chosen) == Verdict.SELECTED  # though nobody has drained anything yet
        assert stage.verdict(other) == Verdict.UNDECIDED
        await stage.until(other, Verdict(0))

    on_stage(folder, policy(path=(str(folder / "cat"),)), scenario)


def test_a_file_that_was_judged_is_known_from_then_on(folder: Path) -> None:
    async def scenario(stage: Stage) -> None:
        first = stage.executed(folder / "cat")
        assert stage.verdict(first) == Verdict.UNDECIDED
        await stage.until(first, Verdict.SELECTED)
        assert stage.verdict(stage.executed(folder / "cat")) == Verdict.SELECTED
        os.rename(folder / "cat", folder / "other")  # another path: nothing that was known of it holds any more
        renamed = stage.executed(folder / "other")
        assert stage.verdict(renamed) == Verdict.UNDECIDED
        await stage.until(renamed, Verdict(0))

    on_stage(folder, policy(path=(f"{folder}/ca*",)), scenario)


def test_children_are_selected_with_their_parent_whatever_they_execute(folder: Path) -> None:
    async def scenario(stage: Stage) -> None:
        shell = stage.start(
            str(folder / "sh"), "-c", "sh -c 'sleep 60 & echo $!; wait' & wait", stdout=subprocess.PIPE, text=True
        )
        assert shell.stdout is not None
        grandchild = int(await asyncio.to_thread(shell.stdout.readline))
        try:
            while os.readlink(f"/proc/{grandchild}/exe") != os.path.realpath("/usr/bin/sleep"):
                await asyncio.sleep(0.01)
            assert stage.verdict(grandchild) & (Verdict.SELECTED | Verdict.INHERITED) == (
                Verdict.SELECTED | Verdict.INHERITED
            )
            assert stage.scope.selects(Process(pid=grandchild, exe="/usr/bin/sleep"))
        finally:
            os.kill(grandchild, 9)

    on_stage(folder, policy(path=(str(folder / "sh"),), children=True), scenario)


def test_a_process_that_runs_already_is_selected_by_its_pid_alone(folder: Path, running: subprocess.Popen[Any]) -> None:
    async def scenario(stage: Stage) -> None:
        assert stage.verdict(running.pid) == Verdict.SELECTED
        assert stage.scope.selects(Process(pid=running.pid))
        other = stage.executed(folder / "cat")
        await stage.until(other, Verdict(0))
        stage.scope.govern(policy(path=("/nowhere/*",)))
        assert stage.verdict(running.pid) == Verdict(0)

    on_stage(folder, policy(pid=(running.pid,)), scenario)


def test_what_a_process_starts_is_selected_with_its_pid(folder: Path) -> None:
    with subprocess.Popen(
        [folder / "sh", "-c", f"sleep 60 & echo $!; read line; {folder}/sh -c 'sleep 60 & echo $!; wait' & wait"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as shell:
        assert shell.stdout is not None
        child = int(shell.stdout.readline())

        async def scenario(stage: Stage) -> None:
            assert stage.verdict(shell.pid) == Verdict.SELECTED | Verdict.INHERITS
            inherited = Verdict.SELECTED | Verdict.INHERITS | Verdict.INHERITED
            assert stage.verdict(child) == inherited  # it ran before the service did
            assert shell.stdin is not None
            assert shell.stdout is not None
            print("now", file=shell.stdin, flush=True)
            grandchild = int(await asyncio.to_thread(shell.stdout.readline))
            try:
                assert stage.verdict(grandchild) & Verdict.SELECTED
                assert stage.verdict(grandchild) & Verdict.INHERITS
            finally:
                os.kill(grandchild, signal.SIGKILL)

        try:
            on_stage(folder, policy(pid=(shell.pid,), children=True), scenario)
        finally:
            os.kill(child, signal.SIGKILL)
            shell.kill()


@pytest.fixture
def container() -> Iterator[Path]:
    """The cgroup of a container that nobody made, named as docker names them."""
    path = cgroup2_root() / f"docker-{os.urandom(32).hex()}.scope"
    path.mkdir()
    yield path
    path.rmdir()


def test_programs_of_a_container_are_selected_whenever_they_began(folder: Path, container: Path) -> None:
    shell = f"echo $$ > {container}/cgroup.procs && exec {folder}/cat"

    def boxed() -> subprocess.Popen[bytes]:
        """A cat in the container that has executed instructions."""
        process = subprocess.Popen(
            ["/usr/bin/sh", "-c", shell], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"\n")
        assert process.stdout.read(1) == b"\n"
        return process

    async def scenario(stage: Stage) -> None:
        assert stage.verdict(first.pid) == Verdict.SELECTED
        outside = stage.executed(folder / "cat")
        await stage.until(outside, Verdict(0))
        second = boxed()
        try:
            await stage.until(second.pid, Verdict.SELECTED)
        finally:
            second.communicate()

    first = boxed()
    try:
        on_stage(folder, policy(container=(container.name.removeprefix("docker-")[:12],)), scenario)
    finally:
        first.communicate()


def test_a_program_is_undecided_until_its_hash_is_there(folder: Path) -> None:
    with open(folder / "cat", "ab") as file:
        file.write(os.urandom(64))  # nobody has hashed it yet
    digest = hashlib.sha256((folder / "cat").read_bytes()).hexdigest()

    async def scenario(stage: Stage) -> None:
        pid = stage.executed(folder / "cat")
        assert stage.verdict(pid) == Verdict.UNDECIDED
        await stage.until(pid, Verdict.SELECTED)

    on_stage(folder, policy(sha256=(digest,)), scenario)


def test_what_we_start_is_ours_and_so_is_what_that_starts(folder: Path) -> None:
    async def scenario(stage: Stage) -> None:
        assert stage.supervisor.stdin is not None
        assert stage.supervisor.stdout is not None
        stage.supervisor.stdin.write(b"\n")
        stage.supervisor.stdin.flush()
        child = int(await asyncio.to_thread(stage.supervisor.stdout.readline))
        try:
            assert stage.verdict(child) & OURS == OURS  # whatever else it is
        finally:
            os.kill(child, 9)

    on_stage(folder, policy(path=("/usr/bin/sleep", os.path.realpath("/usr/bin/sh"))), scenario)


def test_who_cannot_be_judged_counts_as_selected(folder: Path) -> None:
    async def scenario(stage: Stage) -> None:
        assert stage.scope.selects(Process(pid=4_000_000))
        assert not stage.scope.selects(Process(pid=4_000_000, exe="/usr/bin/curl"))

    on_stage(folder, policy(path=("/opt/*",)), scenario)


def test_a_thousand_programs_later_nothing_is_kept(folder: Path) -> None:
    async def scenario(stage: Stage) -> None:
        await asyncio.to_thread(
            subprocess.run, ["/usr/bin/sh", "-c", f"for n in $(seq 1000); do {folder}/sleep 0; done"], check=True
        )
        until = time.monotonic() + 20
        while stage.scope._undecided and time.monotonic() < until:
            await asyncio.sleep(0.05)
        assert not stage.scope._undecided

    on_stage(folder, policy(path=(f"{folder}/sl*",)), scenario)


def test_a_fork_of_an_undecided_program_is_judged_as_well(folder: Path) -> None:
    async def scenario(stage: Stage) -> None:
        shell = stage.start(
            "/usr/bin/sh", "-c", "(read line) & echo $!; read line", stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert shell.stdout is not None
        fork = int(shell.stdout.readline())
        await stage.until(shell.pid, Verdict(0))
        if os.path.exists(f"/proc/{fork}"):
            await stage.until(fork, Verdict(0))

    on_stage(folder, policy(path=(f"{folder}/ca*",)), scenario)


def test_who_shows_a_file_under_another_path_changes_nothing_for_others(folder: Path) -> None:
    (folder / "elsewhere").mkdir()

    async def scenario(stage: Stage) -> None:
        script = f"mount --bind {folder} {folder}/elsewhere && exec {folder}/elsewhere/cat"
        claimed = stage.start(
            "unshare", "-m", "sh", "-c", script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        assert claimed.stdin is not None
        assert claimed.stdout is not None
        claimed.stdin.write(b"\n")
        assert claimed.stdout.read(1) == b"\n"
        await stage.until(claimed.pid, Verdict(0))
        for _ in range(2):
            pid = stage.executed(folder / "cat")
            await stage.until(pid, Verdict.SELECTED)

    on_stage(folder, policy(path=(f"{folder}/ca*",)), scenario)


def test_a_folder_that_is_renamed_takes_its_files_to_another_verdict(folder: Path) -> None:
    (folder / "new").mkdir()
    os.rename(folder / "cat", folder / "new" / "cat")

    async def scenario(stage: Stage) -> None:
        await stage.until(stage.executed(folder / "new" / "cat"), Verdict(0))
        os.rename(folder / "new", folder / "app")
        await stage.until(stage.executed(folder / "app" / "cat"), Verdict.SELECTED)
        os.rename(folder / "app", folder / "old")
        await stage.until(stage.executed(folder / "old" / "cat"), Verdict(0))

    on_stage(folder, policy(path=(f"{folder}/app/c*",)), scenario)


def test_what_a_program_was_selected_for_by_its_parent_is_not_known_of_its_file(folder: Path) -> None:
    async def scenario(stage: Stage) -> None:
        shell = stage.start(
            str(folder / "sh"), "-c", f"{folder}/cat & echo $!; wait", stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert shell.stdout is not None
        shell.stdout.readline()
        await asyncio.sleep(0.2)
        await stage.until(stage.executed(folder / "cat"), Verdict(0))

    on_stage(folder, policy(path=(f"{folder}/s?",), children=True), scenario)


def test_children_that_run_already_are_selected_with_their_parent_and_no_longer_than_it_is(folder: Path) -> None:
    shell = subprocess.Popen(
        [folder / "sh", "-c", "sh -c 'sleep 60 & echo $!; wait' & wait"], stdout=subprocess.PIPE, text=True
    )
    assert shell.stdout is not None
    grandchild = int(shell.stdout.readline())

    async def scenario(stage: Stage) -> None:
        assert stage.verdict(shell.pid) & Verdict.INHERITS
        assert stage.verdict(grandchild) & Verdict.SELECTED
        stage.scope.govern(policy(path=("/nowhere/*",)))
        assert stage.verdict(shell.pid) == stage.verdict(grandchild) == Verdict(0)

    try:
        on_stage(folder, policy(path=(str(folder / "sh"),), children=True), scenario)
    finally:
        os.kill(grandchild, 9)
        shell.kill()
        shell.wait()


def test_what_was_inherited_can_be_given_back_though_the_parent_has_ended(folder: Path) -> None:
    """To it, and to what it has started under another policy; not to who merely has its pid."""
    under, elsewhere = policy(path=(str(folder / "sh"),), children=True), policy(path=("/nowhere/*",))
    child_does = "echo $$; read line; sleep 60 & echo $!; wait"

    async def scenario(stage: Stage) -> None:
        code = f"exec 3<&0; /usr/bin/sh -c '{child_does}' <&3 &"
        parent = stage.start(str(folder / "sh"), "-c", code, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        assert parent.stdin is not None
        assert parent.stdout is not None
        pids = [int(await asyncio.to_thread(parent.stdout.readline))]
        try:
            await asyncio.to_thread(parent.wait)
            heirs = stage.scope.heirs()
            assert {pid for pid, _ in heirs} == set(pids)
            stage.scope.govern(elsewhere)
            parent.stdin.write(b"now\n")
            pids.append(int(await asyncio.to_thread(parent.stdout.readline)))
            for others in (NOBODY, {(pid, start + 1): verdict for (pid, start), verdict in heirs.items()}):
                stage.scope.govern(under, others)
                assert not stage.verdict(pids[0]) & Verdict.INHERITED
                assert stage.verdict(pids[1]) == Verdict(0)
            stage.scope.govern(under, heirs)
            assert stage.verdict(pids[0]) == Verdict.SELECTED | Verdict.INHERITS | Verdict.INHERITED
            assert stage.verdict(pids[1]) & (Verdict.SELECTED | Verdict.UNDECIDED) == Verdict.SELECTED
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)

    on_stage(folder, under, scenario)
