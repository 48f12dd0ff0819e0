"""`mitmsec audit erase`, `unmask`, `approve`, `requests`, with a supervisor that is played by the test."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from audit_events import finding, log_of
from click.testing import CliRunner, Result

from mitmsec.core.content_orders import (
    ApproveUnmasking,
    ContentErased,
    ContentOrder,
    ContentRefused,
    EraseContent,
    RequestUnmasking,
    Unmask,
    Unmasked,
    UnmaskingApproved,
    UnmaskingRequested,
    Unmaskings,
)
from mitmsec.core.unmasking import OPEN_S, Person, Unmasking
from mitmsec.service import content_commands, control
from mitmsec.service.audit_commands import audit
from mitmsec.service.state import State

ALICE, BOB = Person(name="alice", uid=1000), Person(name="bob", uid=1001)
CLEAR = b"hunter2\x1b[2J\xff"
NOT_YET = ContentRefused(error="nobody has agreed to it yet", remedy="wait", status=1)


class Supervisor:
    """Answers each order by its kind, and writes CLEAR where it is to be shown."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.told = list(answers), list[ContentOrder]()

    def exchange(self, order: ContentOrder, *fds: int, timeout_s: float) -> tuple[Any, list[int]] | None:
        self.told.append(order)
        answer = self.answers.pop(0)
        if isinstance(answer, Unmasked):
            os.write(fds[0], CLEAR)
        if isinstance(answer, Exception):
            raise answer
        return None if answer is None else (answer, [])

    def close(self) -> None:
        """Nothing is kept."""


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "log").mkdir()
    log_of(tmp_path / "log", [finding()])
    return tmp_path


@pytest.fixture
def asked(state: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Result, list[ContentOrder]]]:
    def ask(*words: str, answers: tuple[Any, ...] = (), uid: int = 0) -> tuple[Result, list[ContentOrder]]:
        supervisor = Supervisor(*answers)
        monkeypatch.setattr(content_commands, "join", lambda state, worker: supervisor)
        monkeypatch.setattr(os, "geteuid", lambda: uid)
        done = CliRunner().invoke(audit, [*words, "--state", str(state)], env={"SUDO_UID": "54321", "COLUMNS": "200"})
        return done, supervisor.told

    return ask


def test_an_erasure_says_what_and_by_whom_and_asks_for_at_least_one_condition(asked: Any, state: Path) -> None:
    done, (order,) = asked("erase", "--user", "joe", "--reason", "r", "--before", "2026-11-03T00:00:00Z",
                           answers=(ContentErased(count=2),))  # fmt: skip
    assert done.stdout.startswith("erased 2 pieces of evidence")
    assert order == EraseContent(by=Person(name="54321", uid=54321), user="joe", before_s=1793664000, reason="r")
    done, (order,) = asked("erase", "--event", "0", "--json", answers=(ContentErased(count=1),))
    assert json.loads(done.stdout) == {"erased": 1}
    assert (
        order.event
        == json.loads(CliRunner().invoke(audit, ["show", "0", "--json", "--state", str(state)]).stdout)["id"]
    )
    for words, status, said in (
        (("erase",), 2, "what is to be erased?"),
        (("erase", "--event", "nothing"), 1, "there is no event nothing"),
    ):
        done, told = asked(*words)
        assert (done.exit_code, told) == (status, [])
        assert said in done.stderr
    done, told = asked("erase", "--user", "joe", uid=1000)
    assert (done.exit_code, told) == (3, [])


def test_what_nobody_has_agreed_to_is_asked_for_with_a_reason_and_shown_harmlessly_once_they_have(asked: Any) -> None:
    done, told = asked("unmask", "0", answers=(NOT_YET,))
    assert (done.exit_code, "ask for it with --reason TEXT" in done.stderr) == (1, True)
    done, told = asked("unmask", "0", "--reason", "r", answers=(NOT_YET, UnmaskingRequested(request="abcd")))
    assert "audit approve abcd" in done.stdout
    assert [type(order) for order in told] == [Unmask, RequestUnmasking]
    assert told[1].reason == "r"
    done, told = asked("unmask", "0", answers=(Unmasked(approved_by=BOB),))
    assert (done.exit_code, done.stdout.startswith("hunter2"), "\x1b" in done.stdout) == (0, True, False)
    done, _ = asked("unmask", "0", "--json", answers=(Unmasked(approved_by=BOB),))
    shown = json.loads(done.stdout)
    assert (shown["base64"], shown["approved_by"]["name"]) == ("aHVudGVyMhtbMkr/", "bob")
    full = ContentRefused(error="the disk is full", remedy="make room", status=3)
    done, told = asked("unmask", "0", "--reason", "r", answers=(full,))
    assert (done.exit_code, len(told), "make room" in done.stderr) == (3, 1, True)


def test_who_agrees_is_told_to_what(asked: Any) -> None:
    done, (order,) = asked("approve", "abcd", answers=(UnmaskingApproved(asked_by=ALICE, event="e1"),))
    assert order == ApproveUnmasking(by=Person(name="54321", uid=54321), request="abcd")
    assert done.stdout == "alice (uid 1000) may see event e1 once, within 15 minutes\n"
    own = ContentRefused(error="another person has to agree", remedy="nothing was agreed to", status=1)
    done, _ = asked("approve", "abcd", answers=(own,))
    assert (done.exit_code, "another person has to agree" in done.stderr) == (1, True)


def test_requests_are_listed_with_what_has_become_of_them(asked: Any) -> None:
    now_s = int(time.time())
    one = Unmasking(id="r1", event="e1", reason="\x1b[31mwhy", by=ALICE, at_s=now_s)
    agreed = Unmasking(id="r2", event="e1", reason="why", by=ALICE, at_s=now_s, approved_by=BOB, approved_s=now_s)
    seen = Unmasking(id="r3", event="e1", reason="why", by=ALICE, at_s=1, approved_by=BOB, approved_s=1, shown_s=2)
    late = Unmasking(id="r4", event="e1", reason="why", by=ALICE, at_s=now_s - OPEN_S - 5)
    answer = Unmaskings(requests=(one, agreed, seen, late))
    lines = asked("requests", answers=(answer,))[0].stdout.splitlines()[1:]
    states = [line.partition("why")[2].strip() for line in lines]
    assert states == ["nobody has agreed", "bob (uid 1001) agreed", "shown, as bob (uid 1001) agreed",
                      "nobody has agreed; over"]  # fmt: skip
    assert not any("\x1b" in line for line in lines)
    listed = [json.loads(line) for line in asked("requests", "--json", answers=(answer,))[0].stdout.splitlines()]
    assert [one["id"] for one in listed] == ["r1", "r2", "r3", "r4"]
    assert asked("requests", answers=(Unmaskings(requests=()),))[0].stdout == "nobody has asked for anything\n"


@pytest.mark.parametrize(
    ("answer", "status"),
    [(None, 3), (TimeoutError("timed out"), 125), (control.Refused(error="e", remedy="r", status=125), 125)],
)
def test_a_supervisor_that_fails_is_told(asked: Any, answer: Any, status: int) -> None:
    assert asked("requests", answers=(answer,))[0].exit_code == status


def test_who_is_not_root_starts_nothing(asked: Any, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done, told = asked("requests", uid=1000)
    assert (done.exit_code, told, "no recorder runs on this state" in done.stderr) == (3, [], True)

    def denied(path: Path) -> Any:
        raise PermissionError

    monkeypatch.setattr(control, "connect", denied)
    done, _ = asked("requests", uid=1000)
    assert (done.exit_code, "this is not for you to order" in done.stderr) == (3, True)
    assert not State(state).control.exists()
