"""Network namespaces: their cookies, and sockets made inside one while this process stays where it is."""

from __future__ import annotations

import contextlib
import errno
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


def fresh() -> int:
    """The descriptor of a new namespace, with nothing in it but a loopback that is down; it goes with the descriptor.

    Needs root; raises OSError. This process stays where it is.
    """

    def make() -> int:
        os.unshare(os.CLONE_NEWNET)
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    return _in_a_thread(make)


def inside[T](netns_fd: int | None, make: Callable[[], T]) -> T:
    """`make()` as called in the namespace of `netns_fd` (None: our own). Needs root.

    Raises what `make` raises, and OSError.
    """
    if netns_fd is None:
        return make()

    def enter() -> T:
        os.setns(netns_fd, os.CLONE_NEWNET)
        return make()

    return _in_a_thread(enter)


def _in_a_thread[T](make: Callable[[], T]) -> T:
    """setns(2) and unshare(2) move a thread; so it is one that ends right after, and nothing else notices."""
    made: list[T] = []
    failed: list[BaseException] = []

    def enter() -> None:
        try:
            made.append(make())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=enter, name="netns")
    try:
        thread.start()
    except RuntimeError as error:  # the machine, or our cgroup, has no more: somebody starts very many
        raise OSError(errno.EAGAIN, str(error)) from None
    thread.join()
    if failed:
        raise failed[0]
    return made[0]
