"""Beats from one process to another."""

from __future__ import annotations

import os
import select
import subprocess
import sys

from mitmsec_redirect.pulse import Pulse


def test_beats_of_another_process_are_heard_once_however_many() -> None:
    fd = Pulse.new()
    heart = Pulse(fd)
    assert not heart.heard()
    code = f"from mitmsec_redirect.pulse import Pulse; p = Pulse({fd}); p.beat(); p.beat()"
    subprocess.run([sys.executable, "-c", code], pass_fds=[fd], check=True)
    assert select.select([fd], [], [], 5)[0] == [fd]
    assert heart.heard()
    assert not heart.heard()
    os.close(fd)


def test_a_gate_that_nobody_hears_does_not_wait() -> None:
    fd = Pulse.new()
    heart = Pulse(fd)
    os.eventfd_write(fd, 2**64 - 2)  # as many as it can hold
    heart.beat()
    assert heart.heard()
    os.close(fd)
