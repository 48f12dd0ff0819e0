"""Who runs as what: system users where they exist, else a fixed range."""

from __future__ import annotations

import grp
import pwd
from types import SimpleNamespace

import pytest

from mitmsec.core.messages import Role
from mitmsec.service import accounts

ROLES = [Role.GATE, Role.SIGNER, Role.WORKER, Role.RECORDER, Role.BROKER, Role.SCANNER]


def test_without_system_users_each_role_has_its_own_number() -> None:
    numbers = [accounts.account_of(role).uid for role in ROLES]
    assert numbers == [64980, 64981, 64982, 64983, 64984, 64985]


def test_a_system_user_is_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = SimpleNamespace(pw_uid=501, pw_gid=502, pw_name="mitmsec-gate")
    monkeypatch.setattr(pwd, "getpwnam", {"mitmsec-gate": entry}.__getitem__)
    assert accounts.account_of(Role.GATE) == accounts.Account(uid=501, gid=502, name="mitmsec-gate")


def test_readers_are_the_group_or_root_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grp, "getgrnam", {"mitmsec": SimpleNamespace(gr_gid=77)}.__getitem__)
    assert accounts.readers_gid() == 77
    monkeypatch.setattr(grp, "getgrnam", {}.__getitem__)
    assert accounts.readers_gid() == 0
