"""A sandbox with the nftables backend: real rules, real clients, and a heart that beats when the test says so."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redirect_sandbox import Agent, Sandbox

from mitmsec.core.model import Endpoint, OnFailure, Quic
from mitmsec_redirect.backend import SocketOwner
from mitmsec_redirect.nftables import Nftables
from mitmsec_redirect.original_destination import original_destination
from mitmsec_redirect.pulse import Pulse

needs_nft = pytest.mark.skipif(
    shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin") is None, reason="nft is not installed (Debian: nftables)"
)
TRY = """
    s = socket.socket(); s.settimeout(0.5); s.connect(('10.77.0.1', {port})); answer = s.recv(99).decode()
"""


def beat(backend: Nftables) -> None:
    """The gate beats, and its supervisor hears it."""
    assert backend.ground.heartbeat_fd is not None
    Pulse(backend.ground.heartbeat_fd).beat()
    for watched in backend.watched:
        watched.readable()


@contextlib.contextmanager
def diverting(
    box: Sandbox, on_failure: OnFailure = OnFailure.OPEN, quic: Quic = Quic.REFUSE, **more: Any
) -> Iterator[Nftables]:
    """The backend on the sandbox's cgroup and listeners."""
    ports = {"port_v4": box.port_v4, "port_v6": box.port_v6}
    with Nftables.open(box.cgroup.path, on_failure=on_failure, quic=quic, **(ports | more)) as backend:
        yield backend


def accepted(box: Sandbox, backend: Nftables, *, v6: bool = False) -> tuple[Endpoint | None, SocketOwner | None]:
    """Where the next connection to the gate was going, and whose it is."""
    with (box.listener_v6 if v6 else box.listener_v4).accept()[0] as one:
        origin = original_destination(one)
        return origin, backend.owner(Endpoint.of(*one.getpeername()[:2]), origin) if origin else None


def ruleset() -> str:
    """All rules of the namespace."""
    return subprocess.run(["/usr/sbin/nft", "list", "ruleset"], check=True, capture_output=True, text=True).stdout


HOLDER = """
import socket, sys, threading, time
from mitmsec.core.model import OnFailure, Quic
from mitmsec_redirect.nftables import Nftables
from mitmsec_redirect.pulse import Pulse
def serve(listener):
    while True:
        c, _ = listener.accept(); c.sendall(b"gate"); c.close()
listener = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=serve, args=[listener], daemon=True).start()
backend = Nftables.open(sys.argv[1], port_v4=listener.getsockname()[1], port_v6=None,
                        on_failure=OnFailure(sys.argv[2]), quic=Quic.REFUSE)
print("ready", flush=True)
while True:
    Pulse(backend.ground.heartbeat_fd).beat()
    backend.hear()
    time.sleep(0.2)
"""


@contextlib.contextmanager
def holder(cgroup: Path, on_failure: OnFailure) -> Iterator[subprocess.Popen[str]]:
    """Supervisor and gate in one process, which beats five times a second and says "gate" to who comes."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(cgroup), on_failure], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(agent: Agent, code: str, told: dict[str, Any], limit_s: float) -> float:
    """How long it took until the agent was told this; seconds."""
    began = time.monotonic()
    while (last := agent(code)) != told:
        assert time.monotonic() - began < limit_s, f"still {last}"
        time.sleep(0.02)
    return time.monotonic() - began


def answer_http(client: socket.socket, body: bytes) -> None:
    """Read one request, answer it; the connection stays open."""
    client.settimeout(5)
    while b"\r\n\r\n" not in client.recv(4096):
        pass
    client.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))


def as_nobody(ask: Callable[[], str]) -> str:
    """What `ask` answers in a child without any privilege."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # this process may have threads, the child needs none
        pid = os.fork()
    if not pid:
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            os.write(write, ask().encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read) as answer:
        told = answer.read()
    os.waitpid(pid, 0)
    return told


PART = """
import os, socket, subprocess, sys, threading
from pathlib import Path
from mitmsec.core.model import OnFailure, Quic
from mitmsec_redirect.backend import BackendUnavailable
from mitmsec_redirect.cgroup import SessionCgroup, cgroup2_root
from mitmsec_redirect.nftables import Nftables
from mitmsec_redirect.pulse import Pulse

def serve(word):
    def answer():
        while True:
            c, _ = listener.accept(); c.sendall(word); c.close()
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=answer, daemon=True).start()
    return listener.getsockname()[1]

part, where, empty = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
root = cgroup2_root()
(part / "cgroup.procs").write_text("0")
os.unshare(os.CLONE_NEWNS | (0 if where == "part" else os.CLONE_NEWCGROUP))
commands = {
    "namespace": f"umount -l {root}; mount -t cgroup2 none {root}",
    "part": f"mount --bind {part} {empty}; umount -l {root}; mount --move {empty} {root}",
    "outside": "true",
    "elsewhere": f"mount -t cgroup2 none {empty}",
}
subprocess.run(f"set -e; mount --make-rprivate /; {commands[where]}", shell=True, check=True)
cgroup = SessionCgroup.create("part", str(os.getpid()))
client = "import socket, sys; print(socket.create_connection(('127.0.0.1', int(sys.argv[1])), 5).recv(99).decode())"
try:
    with Nftables.open(cgroup.path, port_v4=serve(b"gate"), port_v6=None,
                       on_failure=OnFailure.OPEN, quic=Quic.REFUSE) as backend:
        Pulse(backend.ground.heartbeat_fd).beat()
        backend.hear()
        subprocess.run([sys.executable, "-c", client, str(serve(b"origin"))], preexec_fn=lambda: cgroup.put(0))
except BackendUnavailable as error:
    print(error.reason, error.remedy)
finally:
    cgroup.remove()
"""


def who_answers(part: Path, where: str, empty: Path) -> str:
    """A client whose session's cgroup is below `part`: "gate" or "origin", or why there is no session.

    `where` it is seen from: "namespace", of which `part` is the root, mounted where the whole was, or "elsewhere", at
    `empty`, as well; "part", which alone is mounted; "outside", in that namespace with nothing but the whole mounted.
    """
    command = [sys.executable, "-W", "ignore", "-c", PART, str(part), where, str(empty)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
