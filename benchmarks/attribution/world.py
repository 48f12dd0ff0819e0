"""The two namespaces of a corpus, with a prefix of each family that leads from the client's to the origin's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import host
from benchmarks.attribution.job import Job
from benchmarks.attribution.plan import V4_PREFIX, V6_PREFIX

SERVER_V4, SERVER_V6, ORIGIN_V6 = host.CLIENT_ADDRESS, "fd77:a77::1", "fd77:a77::2"
_PYTHON = (sys.executable, "-m")


def enter() -> int:
    """Move this process into the client's namespace; gives the descriptor that keeps the origin's alive."""
    fd = host.enter_client_namespace()
    origin = host.origin_namespace(fd)
    for words in (
        f"-6 address add {SERVER_V6}/64 dev bench-c nodad",
        f"route add {V4_PREFIX} via {host.ORIGIN_ADDRESS}",
        f"-6 route add {V6_PREFIX} via {ORIGIN_V6}",
    ):
        host.run(["ip", *words.split()])
    for words in (
        f"-6 address add {ORIGIN_V6}/64 dev bench-o nodad",
        f"route add local {V4_PREFIX} dev lo",
        f"-6 route add local {V6_PREFIX} dev lo",
    ):
        host.run(host.in_namespace(origin, ["ip", *words.split()]))
    # callers from outside bind an address each; for IPv4 the local route is enough
    host.run(host.in_namespace(origin, ["sysctl", "-qw", "net.ipv6.ip_nonlocal_bind=1"]))
    return fd


@contextmanager
def far_side(work: Job, path: Path, origin_fd: int) -> Iterator[None]:
    """The origin and the callers from outside, alive in the context. Raises `Failed` for an origin that is not."""
    with _started("origin", path, origin_fd) as origin:
        assert origin.stdout is not None
        if origin.stdout.readline() != b"ready\n":
            raise host.Failed(f"the origin ended with {origin.wait()}")
        with _started("outside", path, origin_fd):
            yield


@contextmanager
def _started(module: str, path: Path, origin_fd: int) -> Iterator[subprocess.Popen[bytes]]:
    argv = [*_PYTHON, f"benchmarks.attribution.{module}", str(path)]
    inside = host.in_namespace(host.origin_namespace(origin_fd), host.end_with_us(argv))
    with subprocess.Popen(inside, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()
