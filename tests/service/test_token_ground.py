"""Root's word about modules: written where the signer's user could put a file, and believed only where it is root's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mitmsec.core.messages import Role
from mitmsec.core.token_module import FILE, TokenModule
from mitmsec.service.accounts import account_of
from mitmsec.service.state import State
from mitmsec.service.token_ground import NOTHING, ModulesRefused, allow, modules_of

pytestmark = pytest.mark.root
MODULE = TokenModule(path="/usr/lib/m.so", shows=("/etc/m",))


@pytest.fixture
def state(tmp_path: Path) -> State:
    made = State(tmp_path / "state")
    made.make()
    return made


def test_nothing_is_allowed_until_root_says_so(state: State) -> None:
    assert modules_of(state) == NOTHING
    allow(state, MODULE)
    allow(state, MODULE)
    other = TokenModule(path="/usr/lib/other.so")
    allow(state, other)
    assert modules_of(state).modules == (MODULE, other)
    assert [path.name for path in state.ca.iterdir()] == [FILE]
    status = (state.ca / FILE).stat()
    assert (status.st_uid, status.st_mode & 0o777) == (0, 0o644)


def test_what_the_signer_s_user_has_written_is_not_root_s_word(state: State) -> None:
    allow(state, MODULE)
    content = (state.ca / FILE).read_bytes()
    os.chown(state.ca / FILE, account_of(Role.SIGNER).uid, 0)
    with pytest.raises(ModulesRefused, match="not root's alone"):
        modules_of(state)
    with pytest.raises(ModulesRefused):
        allow(state, MODULE)
    (state.ca / FILE).unlink()
    (state.folder / "elsewhere").write_bytes(content)
    (state.ca / FILE).symlink_to(state.folder / "elsewhere")
    with pytest.raises(ModulesRefused, match=FILE):
        modules_of(state)


def test_what_cannot_be_read_is_told(state: State) -> None:
    (state.ca / FILE).write_bytes(b"[")
    with pytest.raises(ModulesRefused, match="says nothing that can be read"):
        modules_of(state)


def test_a_link_in_place_of_the_folder_leads_nowhere(state: State, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    state.ca.rmdir()
    state.ca.symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="ca"):
        allow(state, MODULE)
    assert list((tmp_path / "other").iterdir()) == []
