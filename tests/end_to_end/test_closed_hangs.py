"""A gate or a worker that hangs under `on_failure = "closed"`: nothing passes unread, until another is at work."""

from __future__ import annotations

import os
import signal
import time

import pytest
from client_stage import client
from conftest import Mitmsec, Network
from test_deaths import ITS_OWN, OURS, until, until_replaced

pytestmark = pytest.mark.root


@pytest.mark.parametrize("role", ["gate", "worker"])
def test_nothing_passes_while_it_hangs_and_it_is_replaced(origin: Network, mitmsec: Mitmsec, role: str) -> None:
    with client(mitmsec, "closed") as program:
        assert OURS in program.tries()
        stuck = program.pid_of(role)
        os.kill(stuck, signal.SIGSTOP)
        time.sleep(1.4)
        said, end = [program.tries()], time.monotonic() + 40
        while stuck in (pid for _, pid, _ in program.status().processes):
            assert time.monotonic() < end
            said.append(program.tries())
        until_replaced(program, role, stuck)
        until(program, OURS)
        program.end()
    assert not any(ITS_OWN in one for one in said), said
    assert said[0].split()[0] in {"PermissionError", "TimeoutError", "ConnectionResetError"}, said
    assert f"{role}_hangs" in {event["what"] for event in mitmsec.of_kind("fault")}
    done = [one["action"] for one in mitmsec.of_kind("connection")]
    assert set(done) <= {"decrypt", "block"}, done
