"""The reviewers' tables: what is kept survives, what is over is forgotten, what cannot be used is told."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mitmsec.audit.console.desk import Ask, Case, Note, Reason, State, Step, step
from mitmsec.audit.console.desk import Dismiss as Dismissed
from mitmsec.audit.console.desk_store import ABSOLUTE, FILE_NAME, IDLE, DeskStore, DeskUnusable
from mitmsec.audit.console.duty import Duty, Person

NOW = datetime(2026, 11, 9, 10, 0, tzinfo=UTC)
ROSA = Person(name="rosa", duty=Duty.REVIEWER)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[DeskStore]:
    made = DeskStore(tmp_path)
    yield made
    made.close()


def test_cases_and_their_history_are_there_when_it_is_opened_again(desk: DeskStore, tmp_path: Path) -> None:
    for name in ("a", "b"):
        case = Case(event=name)
        for order in (Note(text="look"), Ask(why="to know"), Dismissed(reason=Reason.TEST)):
            done = step(case, order, ROSA, NOW)
            assert isinstance(done, Step)
            desk.keep(done, ROSA, NOW)
            case = done.case
    desk.close()
    again = DeskStore(tmp_path)
    known = again.case("a")
    assert known is not None
    assert (known.state, known.notes, known.assignee) == (State.DISMISSED, 1, "rosa")
    assert again.cases(["a", "c"]) == {"a": known}
    assert again.cases([]) == {}
    assert [entry.operation for entry in again.history("a")] == ["dismissed", "unmask_asked", "noted"]
    assert again.counts() == {"dismissed": 2}
    assert {case.event for case in again.in_state(State.DISMISSED, "rosa", 10)} == {"a", "b"}
    assert again.in_state(State.OPEN, None, 10) == []
    assert len(again.in_state(None, None, 1)) == 1
    assert len(again.waiting()) == 2
    assert os.stat(tmp_path / FILE_NAME).st_mode & 0o777 == 0o600
    again.close()


def test_accounts_are_made_once_and_changed(desk: DeskStore) -> None:
    assert desk.add_account("rosa", Duty.REVIEWER, "hash", NOW)
    for name in ("rosa", "Rosa"):
        assert not desk.add_account(name, Duty.APPROVER, "other", NOW)
    assert not desk.change_duty("nobody", Duty.VIEWER)
    assert not desk.remove_account("nobody")
    assert not desk.change_password("nobody", "x", must_change=True)
    known = desk.account("rosa")
    assert known is not None
    assert (known.duty, known.hash, known.must_change) == (Duty.REVIEWER, "hash", True)
    assert desk.account("nobody") is None
    assert [one.name for one in desk.accounts()] == ["rosa"]


def test_a_session_is_its_accounts_and_ends_with_it(desk: DeskStore) -> None:
    desk.add_account("rosa", Duty.REVIEWER, "hash", NOW)
    tokens = [desk.begin_session("rosa", "::1", NOW) for _ in range(2)]
    found = desk.session(tokens[0], NOW)
    assert found is not None
    assert (found[0].name, found[1].name, found[0].csrf != tokens[0]) == ("rosa", "rosa", True)
    assert desk.session("forged", NOW) is None
    assert desk.session("\ud800", NOW) is None
    assert len(desk.sessions()) == 2
    assert desk.end_session(found[0].token)
    assert not desk.end_session(found[0].token)
    desk.change_duty("rosa", Duty.VIEWER)
    assert desk.session(tokens[1], NOW) is None


def test_sessions_that_are_over_are_forgotten_also_where_the_clock_went_back(desk: DeskStore) -> None:
    desk.add_account("rosa", Duty.REVIEWER, "hash", NOW)
    token = desk.begin_session("rosa", "::1", NOW)
    assert desk.session(token, NOW - 2 * IDLE) is None
    for _ in range(3):
        desk.begin_session("rosa", "::1", NOW)
    desk.forget_sessions(NOW + IDLE - timedelta(seconds=1))
    assert len(desk.sessions()) == 3
    desk.forget_sessions(NOW + ABSOLUTE)
    assert desk.sessions() == []


def test_what_is_no_database_or_leads_elsewhere_is_told(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"no database, but long enough to be read as the beginning of one" * 20)
    with pytest.raises(DeskUnusable, match="cannot be used"):
        DeskStore(tmp_path)
    (tmp_path / FILE_NAME).unlink()
    (tmp_path / FILE_NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DeskUnusable):
        DeskStore(tmp_path)
    assert not (tmp_path / "elsewhere").exists()
