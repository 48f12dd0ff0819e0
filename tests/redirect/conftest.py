"""Network namespaces and sandboxes for the tests of redirection."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest
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
def sandbox(own_netns: None) -> Iterator[Sandbox]:
    """Addresses 10.77.0.1 and fd77::1, default routes to nowhere, a cgroup, the gate's listeners."""
    ip(DEFAULT_ROUTES)
    with contextlib.ExitStack() as held:
        box = Sandbox(held)
        yield box
    assert not box.cgroup.path.exists()
