"""The machine under the benchmark: its facts, and the two network namespaces that the run lives in."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CLIENT_ADDRESS, ORIGIN_ADDRESS = "10.213.7.1", "10.213.7.2"
ORIGIN_NAME = "origin.bench.example"
_APART = "10.213.8.1", "10.213.8.2"
_TUNABLES = {
    "net/ipv4/ip_local_port_range": "20000 65500",
    "net/ipv4/tcp_tw_reuse": "1",
    "net/core/somaxconn": "4096",
}
_MIRROR = f"""
link add mirror type veth peer name behind
address add {CLIENT_ADDRESS}/32 dev mirror
address add {ORIGIN_ADDRESS}/32 dev mirror
link set mirror up
link set behind up
rule add pref 10 iif lo lookup 100
rule add pref 20 lookup local
rule del pref 0
route add {CLIENT_ADDRESS} dev mirror table 100
route add {ORIGIN_ADDRESS} dev mirror src {CLIENT_ADDRESS} table 100
neighbour add {CLIENT_ADDRESS} lladdr 02:00:00:00:00:01 dev mirror
neighbour add {ORIGIN_ADDRESS} lladdr 02:00:00:00:00:02 dev mirror
"""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a reader must know of the machine to judge the figures."""

    kernel: str
    architecture: str
    cpu: str
    cores: int
    memory_gib: float
    load_average: tuple[float, float, float]
    python: str
    versions: dict[str, str]


class Failed(Exception):
    """A program ended with an error; the message holds the last of what it printed."""


def run(argv: Sequence[str], *, timeout_s: float = 30, stdin: str | None = None) -> str:
    """What the program printed on stdout; raises `Failed`."""
    try:
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired) as wrong:
        raise Failed(f"{argv[0]}: {wrong}") from wrong
    if done.returncode:
        raise Failed(f"{' '.join(argv[:3])}: {(done.stderr or done.stdout).strip()[-400:]}")
    return done.stdout


def enter_private_mounts(hosts: Path) -> None:
    """Give this process mounts of its own, in which the origin's name is known; they end with it."""
    hosts.write_text(f"127.0.0.1 localhost {platform.node()}\n{ORIGIN_ADDRESS} {ORIGIN_NAME}\n")
    os.unshare(os.CLONE_NEWNS)
    run(["mount", "--make-rprivate", "/"])
    run(["mount", "--bind", str(hosts), "/etc/hosts"])


def enter_client_namespace() -> int:
    """Move this process into a new client namespace, joined by veth to a new origin namespace.

    Gives the descriptor that keeps the origin's namespace alive.
    """
    os.unshare(os.CLONE_NEWNET)
    origin_fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    _tune()
    os.unshare(os.CLONE_NEWNET)
    _tune()
    _join(origin_fd, "bench", CLIENT_ADDRESS, ORIGIN_ADDRESS)
    return origin_fd


def apart(origin_fd: int) -> int:
    """A further client namespace, joined to the same origin, for who would be in the others' way: its descriptor."""
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.unshare(os.CLONE_NEWNET)
        _tune()
        _join(origin_fd, "apart", *_APART)
        run(["ip", "route", "add", ORIGIN_ADDRESS, "via", _APART[1]])
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.setns(here, os.CLONE_NEWNET)
        os.close(here)


def mirror() -> int:
    """A namespace with both ends of a connection in it, whose packets leave by a link all the same: its descriptor.

    Who sends takes the other's address for a neighbour's, who is not there; what comes in from the link is ours.
    """
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.unshare(os.CLONE_NEWNET)
        _tune()
        for line in _MIRROR.strip().splitlines():
            run(["ip", *line.split()])
        for name, value in {"accept_local": "1", "rp_filter": "0"}.items():
            for place in ("all", "mirror"):
                Path("/proc/sys/net/ipv4/conf", place, name).write_text(value)
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.setns(here, os.CLONE_NEWNET)
        os.close(here)


def links() -> list[str]:
    """The network interfaces where we are, but loopback."""
    return [name for _, name in socket.if_nameindex() if name != "lo"]


@contextmanager
def within(namespace_fd: int | None) -> Iterator[None]:
    """What is started meanwhile is started in that namespace; None: where we are."""
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if namespace_fd is not None:
            os.setns(namespace_fd, os.CLONE_NEWNET)
        yield
    finally:
        os.setns(here, os.CLONE_NEWNET)
        os.close(here)


def origin_namespace(origin_fd: int) -> str:
    """The path by which other programs reach the namespace that the descriptor holds."""
    return f"/proc/{os.getpid()}/fd/{origin_fd}"


def in_namespace(path: str, argv: Sequence[str]) -> list[str]:
    """The command line that runs `argv` in the network namespace (`ip netns exec` would hide cgroup v2)."""
    return ["nsenter", f"--net={path}", "--", *argv]


def end_with_us(argv: Sequence[str]) -> list[str]:
    """The command line whose program is killed when this process dies, however that happens."""
    return ["setpriv", "--pdeathsig", "KILL", "--", *argv]


def commit() -> list[str]:
    """What is measured, in a word or two; none outside of a checkout, or without git."""
    if shutil.which("git") is None:
        return []
    told = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return [f"commit {told.stdout.strip()}"] if told.returncode == 0 else []


def facts(versions: dict[str, str]) -> Facts:
    """The machine as it is now; call it before the load starts."""
    return Facts(
        kernel=platform.release(),
        architecture=platform.machine(),
        cpu=_first_value("/proc/cpuinfo", "model name") or platform.processor(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(int((_first_value("/proc/meminfo", "MemTotal") or "0 kB").split()[0]) / 2**20, 1),
        load_average=os.getloadavg(),
        python=platform.python_version(),
        versions=versions,
    )


def _join(origin_fd: int, name: str, client_address: str, origin_address: str) -> None:
    """A veth pair from the namespace that we are in."""
    origin = origin_namespace(origin_fd)
    run(["ip", "link", "add", f"{name}-c", "type", "veth", "peer", "name", f"{name}-o"])
    run(["ip", "link", "set", f"{name}-o", "netns", origin])
    run(["ip", "address", "add", f"{client_address}/24", "dev", f"{name}-c"])
    run(["ip", "link", "set", f"{name}-c", "up"])
    run(in_namespace(origin, ["ip", "address", "add", f"{origin_address}/24", "dev", f"{name}-o"]))
    run(in_namespace(origin, ["ip", "link", "set", f"{name}-o", "up"]))


def _tune() -> None:
    run(["ip", "link", "set", "lo", "up"])
    for name, value in _TUNABLES.items():
        Path("/proc/sys", name).write_text(value)


def _first_value(path: str, key: str) -> str | None:
    for line in Path(path).read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return None
