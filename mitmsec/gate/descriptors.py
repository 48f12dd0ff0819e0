"""How many connections a process has descriptors for."""

from __future__ import annotations

import resource
import select
import socket

RESERVED_FDS = 512  # channels, maps, pipes, dials that race, and what lies in messages on its way


def flows_limit() -> int:
    """How many flows this process may have, after raising its soft limit of descriptors to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return max((hard - RESERVED_FDS) // 2, 16)


def has_backlog(listener: socket.socket) -> bool:
    """Whether somebody waits to be accepted."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    return bool(poll.poll(0))
