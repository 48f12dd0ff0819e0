"""SIGHUP reads the service's policy again; whatever goes wrong with that is on record, and the service goes on."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mitmsec.audit.event import FaultSeen
from mitmsec.service import hangup
from mitmsec.service.hangup import Hangup

SERVICE = SimpleNamespace(name="s1", policy_file="/etc/mitmsec/policy.toml")


class World:
    """A supervisor whose reloads are small programs."""

    def __init__(self, program: str, service: Any = SERVICE) -> None:
        self.recorded: list[Any] = []
        self.logged: list[str] = []
        self.called: list[str] = []
        self.service, self.program = service, program
        self.hangup = Hangup(Path("/state"), lambda: self.service, self.recorded.append, self.logged.append, self.words)

    def words(self, state: Path, policy_file: str) -> Sequence[str]:
        self.called.append(policy_file)
        return ("/nonexistent",) if not self.program else (sys.executable, "-S", "-c", self.program)

    def heard(self, times: int = 1) -> World:
        async def story() -> None:
            for _ in range(times):
                self.hangup.heard()
                await asyncio.sleep(0)
            assert self.hangup._reloading is not None
            await self.hangup._reloading

        asyncio.run(story())
        return self


def test_the_file_in_force_is_reloaded_by_a_process_of_its_own() -> None:
    world = World("print('new connections are decided')").heard()
    assert (world.called, world.recorded) == ([SERVICE.policy_file], [])
    assert world.logged == ["SIGHUP: new connections are decided"]
    words = hangup.command(Path("/state"), "/p.toml")
    assert list(words[3:]) == ["mitmsec", "reload", "--state", "/state", "--policy", "/p.toml"]


def test_however_often_it_comes_one_reload_follows_the_one_under_way() -> None:
    assert len(World("import time; time.sleep(0.2)").heard(times=20).called) == 2


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("import sys; sys.exit('p.toml:3: colour: unknown key')", "p.toml:3: colour: unknown key"),
        ("raise SystemExit(3)", "status 3"),
        ("", "No such file or directory"),
    ],
)
def test_a_reload_that_fails_is_on_record_and_the_next_one_is_tried(program: str, why: str) -> None:
    world = World(program).heard()
    (fault,) = world.recorded
    assert isinstance(fault, FaultSeen)
    assert (fault.what, fault.session, fault.failed) == ("reload_failed", "s1", None)
    assert "the policy in force stays" in fault.detail
    assert why in fault.detail
    world.program = "pass"
    world.heard()
    assert len(world.recorded) == 1


def test_one_that_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hangup, "RELOAD_DEADLINE_S", 0.1)
    (fault,) = World("import time; time.sleep(60)").heard().recorded
    assert "did not end within" in fault.detail


def test_without_a_service_nothing_is_reloaded_and_a_path_that_was_cut_is_not_used() -> None:
    nobody = World("pass", service=None).heard()
    assert (nobody.called, nobody.recorded) == ([], [])
    assert "no service runs" in nobody.logged[0]
    cut = World("pass", service=SimpleNamespace(name="s1", policy_file="/" + "x" * 1023)).heard()
    assert (cut.called, "too long" in cut.recorded[0].detail) == ([], True)
