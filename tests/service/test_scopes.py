"""Whom the hook of a run covers."""

from __future__ import annotations

import asyncio
import os

import pytest

from mitmsec.core.model import Process
from mitmsec.service.scopes import CommandScope
from mitmsec_redirect.cgroup import SessionCgroup

pytestmark = pytest.mark.root


def test_a_command_is_its_cgroup_whatever_the_policy_names() -> None:
    scope = CommandScope(SessionCgroup.create("test", f"scope-{os.getpid()}"))
    assert scope.selects(Process(pid=1))
    assert scope.selection is None
    assert (scope.pids(), scope.is_populated()) == ([], False)
    assert asyncio.run(scope.release(None)) == 0
    assert not scope.path.exists()
