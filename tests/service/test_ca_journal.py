"""What was done to the CA goes on record, whoever is killed in between."""

from __future__ import annotations

from pathlib import Path

import pytest

from mitmsec.audit.event import CaSeen
from mitmsec.service import ca_journal
from mitmsec.service.state import State


@pytest.fixture
def state(tmp_path: Path) -> State:
    state = State(tmp_path)
    state.run.mkdir()
    return state


def seen(operation: str) -> CaSeen:
    return CaSeen(operation=operation, subject="CN=root", sha256="ab", not_after="2027-01-01T00:00:00Z", user="alice")


def test_what_is_done_is_left_until_it_is_on_record(state: State) -> None:
    with ca_journal.noted(state, seen("initialised")):
        assert ca_journal.left(state) == [seen("initialised")]  # before it is done: a kill loses nothing
    with ca_journal.noted(state, seen("rotated")):
        pass
    assert ca_journal.left(state) == [seen("initialised"), seen("rotated")]
    ca_journal.forget(state, 1)
    assert ca_journal.left(State(state.folder)) == [seen("rotated")]
    ca_journal.forget(state, 1)
    assert ca_journal.left(state) == []
    assert not (state.run / ca_journal.NAME).exists()


def test_what_failed_did_not_happen(state: State) -> None:
    with ca_journal.noted(state, seen("initialised")):
        pass
    with pytest.raises(RuntimeError), ca_journal.noted(state, seen("rotated")):
        raise RuntimeError
    assert ca_journal.left(state) == [seen("initialised")]


def test_a_line_that_is_no_operation_spoils_no_other(state: State) -> None:
    with ca_journal.noted(state, seen("initialised")):
        pass
    path = state.run / ca_journal.NAME
    path.write_bytes(b"garbage\n" + path.read_bytes() + b'{"operation": "cut sh')
    assert ca_journal.left(state) == [seen("initialised")]


def test_it_is_roots_alone(state: State) -> None:
    with ca_journal.noted(state, seen("initialised")):
        pass
    assert (state.run / ca_journal.NAME).stat().st_mode & 0o777 == 0o600


def test_what_failed_takes_nothing_with_it_that_was_done_before_and_is_equal(state: State) -> None:
    with ca_journal.noted(state, seen("trusted")):
        pass
    with pytest.raises(ValueError), ca_journal.noted(state, seen("trusted")):
        raise ValueError
    assert ca_journal.left(state) == [seen("trusted")]
