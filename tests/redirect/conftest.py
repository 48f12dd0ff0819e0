"""Network namespaces, sandboxes and programs for the tests of redirection."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import machine
import pytest
from process_stage import CAT
from redirect_sandbox import DEFAULT_ROUTES, LINKS, Sandbox, ip


@pytest.fixture
def own_netns() -> Iterator[None]:
    """This thread, and the children that it starts, in a network namespace that ends with them."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    os.unshare(os.CLONE_NEWNET)
    try:
        ip(LINKS)
        yield
    finally:
        os.setns(before, os.CLONE_NEWNET)
        os.close(before)


@pytest.fixture
def only_sweeper() -> Iterator[None]:
    """What dead processes leave on interfaces is this test's alone: the runs of others sweep every namespace."""
    with machine.alone(machine.SWEPT):
        yield


@pytest.fixture
def sandbox(own_netns: None) -> Iterator[Sandbox]:
    """Addresses 10.77.0.1 and fd77::1, default routes to nowhere, a cgroup, the gate's listeners."""
    ip(DEFAULT_ROUTES)
    with machine.concerned(machine.EVERYTHING), contextlib.ExitStack() as held:
        box = Sandbox(held)
        yield box
    assert not box.cgroup.path.exists()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copy(CAT, tmp_path / "program"))


@pytest.fixture
def child(copy: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([copy], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    yield process
    process.communicate()
