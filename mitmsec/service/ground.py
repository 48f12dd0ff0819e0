"""What a session is built from and returned to: listeners in a namespace, a cgroup's survivors, a memfd's content."""

from __future__ import annotations

import contextlib
import os
import socket
import time

from mitmsec.audit.event import ConnectionSeen, Outcome
from mitmsec.core.model import Action, Process
from mitmsec_redirect.cgroup import SessionCgroup, cgroup2_root
from mitmsec_redirect.records import Missed

BACKLOG = 4096
RELEASE_TRIES = 50  # for children that fork while they are moved


def refused_quic(missed: Missed, process: Process, session: str) -> ConnectionSeen:
    """The event of a refused QUIC attempt: the program falls back to TCP."""
    return ConnectionSeen(
        flow=f"{session}-quic-{time.time_ns():x}",
        process=process,
        protocol="quic",
        local=missed.remote.of("::" if missed.remote.is_v6 else "0.0.0.0", 0),  # noqa: S104 - not bound yet
        remote=missed.remote,
        action=Action.BLOCK,
        rule="defaults",
        reason='quic = "refuse": the program is to fall back to TCP',
        bytes_sent=0,
        bytes_received=0,
        duration_ms=0,
        outcome=Outcome.BLOCKED,
    )


def listeners() -> list[socket.socket]:
    """Loopback listeners in the current network namespace: IPv4, and IPv6 where the namespace has it."""
    found = [_listener(socket.AF_INET, "127.0.0.1")]
    with contextlib.suppress(OSError):
        found.append(_listener(socket.AF_INET6, "::1"))
    return found


def _listener(family: socket.AddressFamily, address: str) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.bind((address, 0))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def release(cgroup: SessionCgroup, home: str | None) -> int:
    """Move what still runs in `cgroup` to the cgroup `home` (a path below the cgroup2 root) and remove it."""
    root = cgroup2_root()
    target = root / home.lstrip("/") if home else root
    survivors = cgroup.pids()
    for _ in range(RELEASE_TRIES):
        for pid in cgroup.pids():
            with contextlib.suppress(OSError):  # it has just ended
                (target / "cgroup.procs").write_text(f"{pid}\n")
        if cgroup.remove():
            break
    return len(survivors)


def read_all(descriptor: int) -> bytes:
    """A memfd's whole content, wherever its offset stands."""
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
