"""Network namespaces: their cookies, and sockets made inside one while this process stays where it is."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable

SO_NETNS_COOKIE = 71  # Linux 5.14


def cookie_of(sock: socket.socket) -> int:
    """The cookie of the namespace that `sock` was made in, as bpf_get_netns_cookie() tells it (Linux 5.14)."""
    answer: int = struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))[0]
    return answer


def current_cookie() -> int:
    """The cookie of the calling thread's own network namespace."""
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as sock:
        return cookie_of(sock)


def inside[T](netns_fd: int | None, make: Callable[[], T]) -> T:
    """`make()` as called in the namespace of `netns_fd` (None: our own). Needs root; raises what `make` raises.

    setns(2) moves one thread, so a thread that ends right after is what moves; nothing else notices.
    """
    if netns_fd is None:
        return make()
    made: list[T] = []
    failed: list[BaseException] = []

    def enter() -> None:
        try:
            os.setns(netns_fd, os.CLONE_NEWNET)
            made.append(make())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=enter, name="netns")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return made[0]
