"""Who runs as what: system users where they exist, else a fixed range; commands as whoever called."""

from __future__ import annotations

import grp
import os
import pwd
from types import SimpleNamespace

import pytest

from mitmsec.core.messages import Role
from mitmsec.service import accounts

ROLES = [Role.GATE, Role.SIGNER, Role.WORKER, Role.RECORDER]


def test_without_system_users_each_role_has_its_own_number() -> None:
    numbers = [accounts.account_of(role).uid for role in ROLES]
    assert numbers == [64980, 64981, 64982, 64983]


def test_a_system_user_is_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = SimpleNamespace(pw_uid=501, pw_gid=502, pw_name="mitmsec-gate")
    monkeypatch.setattr(pwd, "getpwnam", {"mitmsec-gate": entry}.__getitem__)
    assert accounts.account_of(Role.GATE) == accounts.Account(uid=501, gid=502, name="mitmsec-gate")


def test_readers_are_the_group_or_root_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grp, "getgrnam", {"mitmsec": SimpleNamespace(gr_gid=77)}.__getitem__)
    assert accounts.readers_gid() == 77
    monkeypatch.setattr(grp, "getgrnam", {}.__getitem__)
    assert accounts.readers_gid() == 0


def test_the_command_runs_as_who_was_chosen_else_who_called_sudo_else_who_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nobody = pwd.getpwnam("nobody")
    monkeypatch.setattr(os, "getuid", lambda: 0)
    by_sudo = {"SUDO_UID": str(nobody.pw_uid), "SUDO_GID": str(nobody.pw_gid)}
    assert accounts.caller({}, user=None)[2] == "root"
    assert accounts.caller(by_sudo, user=None)[:3] == (nobody.pw_uid, nobody.pw_gid, "nobody")
    assert accounts.caller(by_sudo, user="root")[0] == 0
    assert accounts.caller({}, user=str(nobody.pw_uid))[2] == "nobody"
    assert accounts.caller({"SUDO_UID": "3999999", "SUDO_GID": "5"}, user=None) == (3999999, 5, "3999999", "/")
    monkeypatch.setattr(os, "getuid", lambda: nobody.pw_uid)
    assert accounts.caller(by_sudo | {"SUDO_UID": "0"}, user=None)[2] == "nobody"  # only root believes SUDO_UID


def test_an_unknown_user_is_told() -> None:
    with pytest.raises(KeyError):
        accounts.caller({}, user="no-such-user-here")
