"""The state directory: each folder has its owner, and one supervisor holds it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from mitmsec.core.messages import Role
from mitmsec.service.accounts import account_of
from mitmsec.service.state import State, StateBusy


@pytest.mark.root
def test_folders_belong_to_whom_they_should_whatever_they_were(tmp_path: Path) -> None:
    (tmp_path / "state" / "ca").mkdir(parents=True, mode=0o777)
    state = State(tmp_path / "state")
    state.make()
    state.make()
    found = {
        path.name: (path.stat().st_uid, stat.S_IMODE(path.stat().st_mode))
        for path in (state.folder, state.run, state.jail, state.ca, state.log)
    }
    assert found == {
        "state": (0, 0o711),
        "run": (0, 0o711),
        "jail": (0, 0o755),
        "ca": (account_of(Role.SIGNER).uid, 0o700),
        "log": (account_of(Role.RECORDER).uid, 0o2750),
    }


def test_a_state_has_one_name_for_its_whole_life(tmp_path: Path) -> None:
    state = State(tmp_path)
    state.run.mkdir()
    name = state.identity()
    assert len(name) == 8
    assert State(tmp_path).identity() == name


def test_one_supervisor_holds_it(tmp_path: Path) -> None:
    state = State(tmp_path)
    state.run.mkdir()
    lock = state.hold()
    with pytest.raises(StateBusy):
        State(tmp_path).hold()
    os.close(lock)
    os.close(State(tmp_path).hold())
