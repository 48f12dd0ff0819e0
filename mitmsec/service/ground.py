"""What a session is built from and returned to: listeners in a namespace, a cgroup's survivors, a memfd's content."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import time
from pathlib import Path

from mitmsec_redirect.backend import BackendUnavailable
from mitmsec_redirect.cgroup import SessionCgroup, cgroup2_root

BACKLOG = 4096
SO_RCVBUFFORCE, RELAY_ROOM_BYTES = (
    33,
    4 << 20,
)  # for what all programs of a session send by QUIC, while the gate is busy
PORTS = 2000  # for a gate's own connections, where they have to be known by their ports
PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
PORT_TRIES = 16  # until one is free for both families
RELEASE_TRIES, RELEASE_PAUSE_S = 50, 0.01  # for children that fork while they are moved


def listeners() -> list[socket.socket]:
    """Loopback listeners in the current network namespace, with one port: IPv4, and IPv6 where the namespace has it.

    So nobody else can listen on that port at all addresses, of either family, and have what is meant for us led away.
    """
    return _with_one_port("127.0.0.1", "::1")


def listeners_and_relays() -> tuple[list[socket.socket], list[socket.socket]]:
    """`listeners`, and for each a UDP socket at its address and port, to which QUIC is led. Raises OSError."""
    for _ in range(PORT_TRIES):
        relays: list[socket.socket] = []
        found = listeners()
        try:
            relays.extend(map(_relay, found))  # those that there are, should one fail
            return found, relays
        except OSError as error:
            for sock in (*found, *relays):
                sock.close()
            if error.errno != errno.EADDRINUSE:
                raise
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _relay(listener: socket.socket) -> socket.socket:
    sock = socket.socket(listener.family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        if listener.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RELAY_ROOM_BYTES)
        sock.bind(listener.getsockname()[:2])
    except OSError:
        sock.close()
        raise
    return sock


def listeners_everywhere() -> list[socket.socket]:
    """Listeners on all addresses of the current network namespace, with one port: IPv4, and IPv6 where there is any.

    For connections whose packets are led here; whoever connects of their own accord is a stranger to the gate.
    """
    return _with_one_port("", "")


def _with_one_port(four: str, six: str) -> list[socket.socket]:
    for _ in range(PORT_TRIES):
        found = [_listener(socket.AF_INET, four)]
        try:
            return [*found, _listener(socket.AF_INET6, six, found[0].getsockname()[1])]
        except OSError as error:
            if error.errno != errno.EADDRINUSE:  # no IPv6
                return found
            found[0].close()
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _listener(family: socket.AddressFamily, address: str, port: int = 0) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 has its own
        sock.bind((address, port))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def reserved_ports() -> tuple[int, int]:
    """Ports of the current namespace that no program gets without asking for that one. Raises BackendUnavailable."""
    first, last = map(int, PORT_RANGE.read_text().split())
    if last + PORTS < 1 << 16:
        return last + 1, last + PORTS
    if first - PORTS >= 1024:
        return first - PORTS, first - 1
    raise BackendUnavailable(
        f"net.ipv4.ip_local_port_range, {first} to {last}, leaves no ports for the gate's own connections",
        f"Make it smaller by {PORTS} ports.",
    )


def release(cgroup: SessionCgroup, home: str | None) -> int:
    """Move what still runs in `cgroup` to the cgroup `home` (a path below the cgroup2 root) and remove it.

    The number of processes that were moved. Pauses between its tries: not for an event loop.
    """
    survivors = len(cgroup.pids())
    for _ in range(RELEASE_TRIES):
        if move_out(cgroup, home):
            break
        time.sleep(RELEASE_PAUSE_S)
    return survivors


async def release_beside(cgroup: SessionCgroup, home: str | None) -> int:
    """As `release`, and others have their turn meanwhile."""
    survivors = len(cgroup.pids())
    for _ in range(RELEASE_TRIES):
        if move_out(cgroup, home):
            break
        await asyncio.sleep(RELEASE_PAUSE_S)
    return survivors


def move_out(cgroup: SessionCgroup, home: str | None) -> bool:
    """One try: True when the cgroup has gone. False: somebody forked meanwhile, or the kernel still clears up."""
    root = cgroup2_root()
    target = root / home.lstrip("/") if home else root
    for pid in cgroup.pids():
        with contextlib.suppress(OSError):  # it has just ended
            (target / "cgroup.procs").write_text(f"{pid}\n")
    return cgroup.remove()


def read_all(descriptor: int) -> bytes:
    """A memfd's whole content, wherever its offset stands."""
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
