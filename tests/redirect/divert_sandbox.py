"""Two network namespaces, an origin in the far one, and in the near one the backend with a relay in the gate's place.

programs ── va 10.78.0.1, fd78::1 ════ vb 10.78.0.2, fd78::2 ── the origin says whom it sees
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from redirect_sandbox import ip

from mitmsec.core.model import Endpoint, OnFailure, Process, Quic
from mitmsec_redirect import clsact
from mitmsec_redirect.bystanders import Bystanders
from mitmsec_redirect.divert_seams import Call, Callbacks, SocketTold, Statistics
from mitmsec_redirect.divert_signals import Choice, Report
from mitmsec_redirect.expected_flows import ExpectedFlow
from mitmsec_redirect.filters import Own, Ports
from mitmsec_redirect.windivert import Windivert

GATE_PORT, UPSTREAM = 8085, Ports(first=61000, last=62999)  # where no program's port is chosen from
OWN = Own(gate_port=GATE_PORT, upstream=UPSTREAM)
ORIGIN_V4, ORIGIN_V6, ORIGIN_PORT = "10.78.0.2", "fd78::2", 7001
GET = b"GET /%d HTTP/1.0\r\n\r\n"
RELAY = Path(__file__).with_name("divert_relay.py")
ORIGIN = """
import os, re, socket, subprocess, sys, threading
os.unshare(os.CLONE_NEWNET)
print("new", flush=True)
sys.stdin.readline()
for line in ("addr add 10.78.0.2/24 dev vb", "-6 addr add fd78::2/64 dev vb nodad", "link set lo up", "link set vb up"):
    subprocess.run(["ip", *line.split()], check=True)
def serve(c):
    with c:
        peer, head = c.getpeername(), b""
        while b"\\r\\n\\r\\n" not in head:
            data = c.recv(65536)
            if not data:
                return
            head += data
        size = int(re.match(rb"\\w+ /(\\d*)", head)[1] or 0)
        wanted = int((re.search(rb"(?i)content-length: *(\\d+)", head) or [0, 0])[1])
        got = len(head) - head.index(b"\\r\\n\\r\\n") - 4
        while got < wanted and (data := c.recv(1 << 20)):
            got += len(data)
        said = f"{peer[0].removeprefix('::ffff:')} {peer[1]} {got}\\n".encode() + bytes(size)
        c.sendall(b"HTTP/1.0 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(said) + said)
udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
udp.bind(("::", 443))
def echo():
    while True:
        data, peer = udp.recvfrom(65536)
        udp.sendto(data, peer)
threading.Thread(target=echo, daemon=True).start()
l = socket.create_server(("", int(sys.argv[1])), family=socket.AF_INET6, backlog=1024, dualstack_ipv6=True)
print("ready", flush=True)
while True:
    threading.Thread(target=serve, args=(l.accept()[0],), daemon=True).start()
"""


@contextlib.contextmanager
def link_to_an_origin() -> Iterator[int]:
    """This thread in a network namespace of its own, and an origin beyond the link. The namespace that it came from."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    os.unshare(os.CLONE_NEWNET)
    origin = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", ORIGIN, str(ORIGIN_PORT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert origin.stdin is not None
        assert origin.stdout is not None
        assert origin.stdout.readline() == "new\n"
        ip(
            f"""
            link set lo up
            link add va type veth peer name vb netns {origin.pid}
            addr add 10.78.0.1/24 dev va
            -6 addr add fd78::1/64 dev va nodad
            link set va up
            """
        )
        origin.stdin.write("go\n")
        origin.stdin.flush()
        assert origin.stdout.readline() == "ready\n"
        yield before
    finally:
        origin.kill()
        origin.communicate()
        os.setns(before, os.CLONE_NEWNET)
        os.close(before)


class Relay:
    """The process that stands for the gate."""

    def __init__(self, port: int = GATE_PORT, upstream: Ports = UPSTREAM, fixed: tuple[str, int] | None = None) -> None:
        command = [sys.executable, "-I", "-S", str(RELAY), str(port), str(upstream.first), str(upstream.last)]
        self.process = subprocess.Popen(
            command + ([fixed[0], str(fixed[1])] if fixed else []), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def expect(self, flow: ExpectedFlow) -> None:
        origin = flow.origin.remote
        line = f"{flow.client.address} {flow.client.port} {flow.gate.address} {origin.address} {origin.port}\n"
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode())
        self.process.stdin.flush()

    def close(self) -> list[str]:
        """Whom it did not know."""
        self.process.kill()
        return self.process.communicate()[0].decode().splitlines()


class Divert:
    """The backend under test: chooses by the program's name, and remembers what it was asked and told."""

    def __init__(self, choices: dict[str, Choice]) -> None:
        self.choices = choices
        self.relay = Relay()
        self.tells: Callable[[ExpectedFlow], object] = self.relay.expect
        self.concerns: Callable[[SocketTold], bool] = lambda told: True
        self.asked: list[tuple[Process, Endpoint]] = []
        self.expected: list[ExpectedFlow] = []
        self.faults: list[Report] = []
        self.backend: Windivert | None = None
        self.on_failure = OnFailure.OPEN
        self._is_closed = False

    def open(
        self,
        on_failure: OnFailure = OnFailure.OPEN,
        quic: Quic = Quic.BYPASS,
        netns_fd: int | None = None,
        bystanders: Callable[[int], Bystanders] | None = None,
        calls: Callable[[int], Call | None] | None = None,
    ) -> Windivert:
        callbacks = Callbacks(
            decide=lambda *asked: self.decide(*asked),
            expect=self.expect,
            report=self.faults.append,
            concerns=lambda told: self.concerns(told),
        )
        self.on_failure = on_failure
        self.backend = Windivert.open(
            OWN, callbacks, on_failure=on_failure, quic=quic, netns_fd=netns_fd, bystanders=bystanders, calls=calls
        )
        return self.backend

    def begin_anew(self, choices: dict[str, Choice]) -> None:
        """As it was made, but as open or closed as it is."""
        self.choices, self.tells, self.concerns = choices, self.relay.expect, lambda told: True
        for told in (self.asked, self.expected, self.faults):
            told.clear()

    def at_work(self) -> Windivert:
        """The backend, which is open."""
        assert self.backend is not None
        return self.backend

    def decide(self, process: Process, remote: Endpoint, told: SocketTold) -> Choice:
        self.asked.append((process, remote))
        return self.choices.get(Path(process.exe or "").name, Choice.LEAVE)

    def expect(self, flow: ExpectedFlow, told: SocketTold) -> None:
        self.expected.append(flow)
        self.tells(flow)

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        if self.backend is not None:
            self.backend.close()
        assert self.relay.close() == [], "every flow was announced before it came"


def curl(*arguments: str, host: str = ORIGIN_V4, path: str = "", **options: object) -> subprocess.CompletedProcess[str]:
    where = f"http://{f'[{host}]' if ':' in host else host}:{ORIGIN_PORT}/{path}"
    command = ["curl", "-sS", "-g", "--noproxy", "*", "--max-time", "20", *arguments, where]
    return subprocess.run(command, capture_output=True, text=True, **options)  # type: ignore[call-overload,no-any-return]


def seen_port(answer: str) -> int:
    """From which port the origin saw the connection come."""
    found = re.match(r"\S+ (\d+) ", answer)
    assert found is not None, answer
    return int(found[1])


def fetched(host: str = ORIGIN_V4, size: int = 0, source: tuple[str, int] | None = None) -> bytes:
    """What the origin says to this process, which nobody diverts unless a test says so."""
    with socket.create_connection((host, ORIGIN_PORT), timeout=20, source_address=source) as sock:
        sock.sendall(GET % size)
        data = b""
        while more := sock.recv(1 << 20):
            data += more
    return data.partition(b"\r\n\r\n")[2]


def from_port(answer: bytes) -> int:
    return seen_port(answer.decode("latin-1"))


def forged_syn(port: int) -> None:
    """A SYN that no socket has sent."""
    header = struct.pack("!HHIIBBHHH", port, ORIGIN_PORT, 1, 0, 5 << 4, 2, 8192, 0, 0)
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
        raw.sendto(header, (ORIGIN_V4, 0))


def was_diverted(answer: str) -> bool:
    return seen_port(answer) in UPSTREAM


def at_rest(backend: Windivert, patience_s: float = 10, pause_s: float = 0.05) -> Statistics:
    """What was counted when no diverted flow is left and its last packets, too, have come through other threads."""
    deadline_s, before = time.monotonic() + patience_s, None
    while (now := backend.statistics()) != before or now.live:
        assert time.monotonic() < deadline_s, now
        before = now
        time.sleep(pause_s)
    return now


def nothing_is_left() -> bool:
    """No interface of this namespace has a program of a backend's."""
    with contextlib.closing(clsact.TrafficControl()) as control:
        return control.clsact() == frozenset()
