"""Another machine beside our network, and servers that run under `mitmsec run` for it to call."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Mitmsec, Network

PEER_V4, PEER_V6 = "198.18.7.2", "2001:db8:7::2"
OURS_V4, OURS_V6 = "198.18.7.1", "2001:db8:7::1"
ANSWER = b"served here"
SERVER = """
import http.server, os, socket, sys
addresses = sys.argv[1].split(",")
while len(addresses) > 1:  # each has a process of its own
    sys.argv[1] = addresses.pop()
    if not os.fork(): break
else: sys.argv[1] = addresses[0]
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "11"); self.end_headers()
        self.wfile.write(b"served here")
        names = self.client_address, self.request.getpeername(), self.request.getsockname()
        print(*(name[0] for name in names), file=sys.stderr, flush=True)
    def log_message(self, *_): pass
class Server(http.server.HTTPServer):
    allow_reuse_port = True
    address_family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
    def server_bind(self):
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()
server = Server((sys.argv[1], 0), Page)
for _ in range(int(sys.argv[2]) - 1):
    if not os.fork(): break
print(server.server_port, os.getpid(), sys.argv[1], flush=True)
try: server.serve_forever()
except KeyboardInterrupt: pass
"""
CALLS_ITSELF = """
import os, socket
l = socket.create_server(("127.0.0.1", 0))
if not os.fork():
    c, _ = l.accept(); c.sendall(c.recv(9)); c.close(); os._exit(0)
s = socket.create_connection(l.getsockname()); s.sendall(b"question"); print(s.recv(9).decode()); os.wait()
"""


@pytest.fixture(scope="module")
def outside(network: Network) -> Iterator[list[str]]:
    """How a command is run on another machine: a network namespace joined to ours by a veth pair."""
    name = f"mitmsec-peer-{os.getpid()}"
    pair = ["veth", "peer", "name", "ms-peer", "netns", name]
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        for words in (
            ["-n", network.name, "link", "add", "ms-ours", "type", *pair],
            *(["-n", one, "link", "set", link, "addrgenmode", "none", "up"] for one, link in _ends(network, name)),
            ["-n", network.name, "address", "add", f"{OURS_V4}/24", "dev", "ms-ours"],
            ["-n", network.name, "address", "add", f"{OURS_V6}/64", "dev", "ms-ours", "nodad"],
            ["-n", name, "address", "add", f"{PEER_V4}/24", "dev", "ms-peer"],
            ["-n", name, "address", "add", f"{PEER_V6}/64", "dev", "ms-peer", "nodad"],
        ):
            subprocess.run(["ip", *words], check=True)
        yield ["nsenter", f"--net=/run/netns/{name}"]
    finally:  # a namespace goes some time later, and its links with it: the next one of this name could not be made
        subprocess.run(["ip", "-n", network.name, "link", "delete", "ms-ours"], check=False)
        subprocess.run(["ip", "netns", "delete", name], check=False)


def _ends(network: Network, peer: str) -> tuple[tuple[str, str], ...]:
    return (network.name, "ms-ours"), (peer, "ms-peer")


class Served:
    """A server that runs under `mitmsec run`, in one process or several; one for each address, if there are more."""

    def __init__(self, mitmsec: Mitmsec, address: str, *options: str, processes: int = 1) -> None:
        server = [sys.executable, "-I", "-S", "-c", SERVER, address, str(processes)]
        processes *= len(address.split(","))
        self._run = mitmsec.start(*options, "--", *server)
        assert self._run.stderr is not None
        assert self._run.stdout is not None
        self._said = ""
        told = [self._run.stdout.readline().split() for _ in range(processes)]
        self.port, self.pids = told[0][0], {int(pid) for _, pid, _ in told}
        self.at = {address: (int(pid), port) for port, pid, address in told}

    def end(self) -> list[str]:
        """What it had to say of whom it served, a line each: by accept(), by getpeername(), by getsockname()."""
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        if not self._said:
            self._said = self._run.communicate(timeout=30)[1]
        return [line for line in self._said.splitlines() if not line.startswith("mitmsec: ")]


@pytest.fixture
def serve(mitmsec: Mitmsec) -> Iterator[Callable[..., Served]]:
    begun: list[Served] = []

    def begin(address: str, *options: str, processes: int = 1) -> Served:
        begun.append(Served(mitmsec, address, *options, processes=processes))
        return begun[-1]

    yield begin
    for served in begun:
        served.end()


def fetch(where: list[str], address: str, port: str) -> bytes:
    host = f"[{address}]" if ":" in address else address
    command = [*where, "curl", "-sS", "--max-time", "20", f"http://{host}:{port}/"]
    return subprocess.run(command, check=True, capture_output=True).stdout


def until_listens(network: Network, port: int) -> None:
    wanted, end = f":{port}", time.monotonic() + 30
    while wanted not in subprocess.run(network.inside("ss", "-ltn"), capture_output=True, text=True).stdout:
        assert time.monotonic() < end
        time.sleep(0.05)


def until(mitmsec: Mitmsec, count: int) -> list[dict[str, Any]]:
    """The connections that came in, once so many have ended and are on record."""
    end = time.monotonic() + 30
    while len(found := inbound(mitmsec)) < count and time.monotonic() < end:
        time.sleep(0.1)
    assert len(found) == count, found
    return found


def inbound(mitmsec: Mitmsec) -> list[dict[str, Any]]:
    return [event for event in mitmsec.of_kind("connection") if event["direction"] == "inbound"]


def nginx_conf(folder: Path, address: str, port: int) -> Path:
    """Of an nginx that goes into the background, and answers ANSWER from two workers."""
    server = f"server {{ listen {address}:{port}; location / {{ return 200 '{ANSWER.decode()}'; }} }}"
    names = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"{name}_temp_path {folder}/{name};" for name in names)
    conf = folder / "nginx.conf"
    conf.write_text(
        f"pid {folder}/pid; error_log {folder}/error.log; worker_processes 2; events {{}}"
        f"http {{ access_log off; {paths} {server} }}"
    )
    return conf


def call_itself(mitmsec: Mitmsec, policy: str) -> None:
    """A command with a server and a client, that exchange eight bytes."""
    done = mitmsec.run("--policy", policy, "--", sys.executable, "-I", "-S", "-c", CALLS_ITSELF)
    assert done.stdout == "question\n", done.stderr
