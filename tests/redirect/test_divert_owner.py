"""Whose a SYN is: cookies of real sockets, and processes as they are."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mitmsec.core.model import Confidence, Endpoint
from mitmsec_redirect.cgroup import cgroup2_root
from mitmsec_redirect.divert_owner import SOURCE, Owners, SocketTold
from mitmsec_redirect.packet import TCP, Ends

SO_COOKIE = 57


def own_cgroup() -> int:
    """The id of the cgroup that this process is in: the number of its folder."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    path = next(line[3:] for line in lines if line.startswith("0::"))
    return os.stat(cgroup2_root() / path.lstrip("/")).st_ino


def ends(local: Endpoint, remote: Endpoint) -> Ends:
    return Ends(
        protocol=TCP,
        transport=20,
        source=socket.inet_aton(local.address),
        destination=socket.inet_aton(remote.address),
        source_port=local.port,
        destination_port=remote.port,
    )


@pytest.fixture
def owners() -> Iterator[Owners]:
    with contextlib.closing(Owners()) as made:
        yield made


def test_a_socket_is_known_by_its_cookie_and_its_makers_user(owners: Owners) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        cookie = struct.unpack("=Q", client.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))[0]
        local, remote = Endpoint.of(*client.getsockname()), Endpoint.of(*client.getpeername())
        assert owners.socket_of(ends(local, remote), 0) == SocketTold(cookie, os.getuid(), own_cgroup())
        assert owners.socket_of(ends(local, Endpoint.of("127.0.0.9", 1)), 0) == SocketTold()


def test_a_living_process_is_read_and_whoever_named_it_says_how_sure_that_is(owners: Owners) -> None:
    kernel = owners.process(os.getpid(), 0, time.monotonic_ns())
    assert (kernel.pid, kernel.exe, kernel.source) == (os.getpid(), os.path.realpath(sys.executable), SOURCE)
    assert kernel.confidence is Confidence.KERNEL
    assert kernel.sha256 == hashlib.sha256(Path(sys.executable).read_bytes()).hexdigest()
    assert owners.process(os.getpid(), 0, None).confidence is Confidence.TABLE


def test_a_process_that_has_ended_is_not_made_up(owners: Owners) -> None:
    done = subprocess.Popen(["true"])
    done.wait()
    for connected_ns in (time.monotonic_ns(), None):
        process = owners.process(done.pid, 12345, connected_ns)
        assert (process.exe, process.user, process.confidence) == (None, "12345", Confidence.INFERRED)


def test_a_process_that_began_after_the_connection_is_not_its_owner(owners: Owners) -> None:
    with subprocess.Popen(["sleep", "10"]) as later:
        process = owners.process(later.pid, 0, time.monotonic_ns() - 5_000_000_000)
        later.kill()
    assert (process.exe, process.confidence) == (None, Confidence.INFERRED)


@pytest.mark.root
def test_the_user_is_the_processs_own_not_that_of_who_made_the_socket(owners: Owners) -> None:
    with subprocess.Popen(["sleep", "10"], user=65534) as other:
        assert owners.process(other.pid, 0, None).user == "nobody"
        other.kill()
