"""Connections that never leave the machine are diverted, decided, captured and recorded like any other."""

from __future__ import annotations

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
REFUSED = PASSED.replace("bypass", "block")


def origin_at(network: Network, address: str) -> str:
    """An origin that says what it hears; its port."""
    process = network.start(sys.executable, "-I", "-S", "-c", ORIGIN, address, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return str(process.stdout.readline().strip())


def call(mitmsec: Mitmsec, address: str, port: str, *options: str) -> subprocess.CompletedProcess[str]:
    return mitmsec.run(*options, "--", sys.executable, "-I", "-S", "-c", CLIENT, address, port, WORDS.decode())


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.8.7", "::1", V4, V6])
def test_it_is_captured(network: Network, mitmsec: Mitmsec, tmp_path: Path, address: str) -> None:
    port, capture = origin_at(network, address), tmp_path / "own.pcapng"
    done = call(mitmsec, address, port, "--policy", mitmsec.policy(CAPTURED), "--capture", str(capture))
    assert done.stdout == f"{WORDS.decode()} {address}\n", done.stderr
    (connection,) = mitmsec.of_kind("connection")
    assert (connection["action"], connection["direction"]) == ("capture", "outbound")
    assert connection["remote"] == {"address": address, "port": int(port), "host": None}
    assert connection["bytes"] == {"sent": len(WORDS), "received": len(WORDS)}
    assert capture.read_bytes().count(WORDS) == 2, "once sent, once received"


@both_backends
def test_a_rule_may_let_it_pass_or_refuse_it(network: Network, mitmsec: Mitmsec) -> None:
    address = "127.9.8.7"
    port = origin_at(network, address)
    assert call(mitmsec, address, port, "--policy", mitmsec.policy(CAPTURED + PASSED)).returncode == 0
    assert call(mitmsec, address, port, "--policy", mitmsec.policy(CAPTURED + REFUSED)).returncode != 0
    passed, refused = mitmsec.of_kind("connection")
    assert (passed["action"], passed["rule"]) == ("bypass", "own machine")
    assert (refused["action"], refused["rule"], refused["outcome"]) == ("block", "own machine", "blocked")
