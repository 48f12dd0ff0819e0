"""Connections that never leave the machine are diverted, decided, captured and recorded like any other."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import V4, V6, Mitmsec, Network, both_backends

pytestmark = [pytest.mark.root, pytest.mark.joined]
WORDS = b"said on this machine"
ORIGIN = """
import socket, sys
l = socket.create_server((sys.argv[1], 0), family=socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
print(l.getsockname()[1], flush=True)
while True:
    c, _ = l.accept()
    c.sendall(c.recv(99)); c.close()
"""
CLIENT = """
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
s.sendall(sys.argv[3].encode()); print(s.recv(99).decode(), s.getpeername()[0])
"""
CAPTURED = '[defaults]\naction = "capture"\n'
PASSED = '[[rule]]\nname = "own machine"\naddress = ["127.0.0.0/8", "::1/128"]\naction = "bypass"\n'
REFUSED = '[[rule]]\nname = "but this"\naddress = ["127.9.8.6"]\naction = "block"\n'


def origin_at(network: Network, address: str) -> str:
    """An origin that says what it hears; its port."""
    process = network.start(sys.executable, "-I", "-S", "-c", ORIGIN, address, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return str(process.stdout.readline().strip())


def call(mitmsec: Mitmsec, ports: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    """One after another, in one run."""
    client = (sys.executable, "-I", "-S", "-c", CLIENT)
    script = "\n".join(f"{shlex.join([*client, *one, WORDS.decode()])}; echo $?" for one in ports.items())
    return mitmsec.run(*options, "--", "sh", "-c", script)


def test_it_is_captured(network: Network, mitmsec: Mitmsec, tmp_path: Path) -> None:
    ports = {address: origin_at(network, address) for address in ("127.0.0.1", "127.9.8.7", "::1", V4, V6)}
    capture = tmp_path / "own.pcapng"
    done = call(mitmsec, ports, "--policy", mitmsec.policy(CAPTURED), "--capture", str(capture))
    assert done.stdout == "".join(f"{WORDS.decode()} {address}\n0\n" for address in ports), done.stderr
    connections = mitmsec.of_kind("connection")
    assert [connection["remote"] for connection in connections] == [
        {"address": address, "port": int(port), "host": None} for address, port in ports.items()
    ]
    for connection in connections:
        assert (connection["action"], connection["direction"]) == ("capture", "outbound")
        assert connection["bytes"] == {"sent": len(WORDS), "received": len(WORDS)}
    assert capture.read_bytes().count(WORDS) == 2 * len(ports), "once sent, once received"


@both_backends
def test_a_rule_may_let_it_pass_or_refuse_it(network: Network, mitmsec: Mitmsec) -> None:
    ports = {address: origin_at(network, address) for address in ("127.9.8.7", "127.9.8.6")}
    done = call(mitmsec, ports, "--policy", mitmsec.policy(CAPTURED + REFUSED + PASSED))
    said, passes, refuses = done.stdout.splitlines()
    assert (said, passes, refuses == "0") == (f"{WORDS.decode()} 127.9.8.7", "0", False), done.stderr
    passed, refused = mitmsec.of_kind("connection")
    assert (passed["action"], passed["rule"]) == ("bypass", "own machine")
    assert (refused["action"], refused["rule"], refused["outcome"]) == ("block", "but this", "blocked")
