"""Copies of a command's DNS: real sockets, in a cgroup and a network of our own, and a reader without privilege."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from descriptors import descriptors
from redirect_sandbox import Agent, Sandbox

from mitmsec_redirect.bpf import Attach, enable_stats
from mitmsec_redirect.dns_hook import RING_BYTES, DnsHook, DnsRing
from mitmsec_redirect.dns_records import PACKET_LIMIT_BYTES, RECORD_BYTES

pytestmark = pytest.mark.root
MOST = PACKET_LIMIT_BYTES - 28  # of an IPv4 datagram
UNPRIVILEGED = """
import os, sys
from mitmsec_redirect.dns_hook import DnsRing
fd = int(sys.argv[1])
os.setgroups([]); os.setgid(65534); os.setuid(65534)
print([packet.payload for packet in DnsRing(fd).drain()])
"""


@pytest.fixture
def hook(sandbox: Sandbox) -> Iterator[DnsHook]:
    made = DnsHook.open(sandbox.cgroup.path)
    yield made
    made.close()


@pytest.fixture
def ring(hook: DnsHook) -> Iterator[DnsRing]:
    made = DnsRing(os.dup(hook.ring_fd))
    yield made
    made.close()


@pytest.fixture
def server(sandbox: Sandbox) -> Agent:
    return sandbox.agent(inside=False)


@pytest.mark.parametrize(("family", "address"), [(2, "127.0.0.1"), (10, "::1")])
@pytest.mark.parametrize("call", ["c.connect(({0!r}, 53)); c.send(b'question')", "c.sendto(b'question', ({0!r}, 53))"])
def test_questions_and_answers_are_copied_in_their_order(
    sandbox: Sandbox, ring: DnsRing, server: Agent, family: int, address: str, call: str
) -> None:
    server(f"s = socket.socket({family}, 2); s.bind(({address!r}, 53))")
    client = sandbox.agent()
    client(f"c = socket.socket({family}, 2); c.settimeout(5); {call.format(address)}")
    server("d, f = s.recvfrom(99); s.sendto(b'answer to ' + d, f)")
    assert client("answer = c.recv(99).decode()") == {"answer": "answer to question"}
    asked, answered = ring.drain()
    assert (asked.sent, asked.payload, answered.sent, answered.payload) == (
        True,
        b"question",
        False,
        b"answer to question",
    )
    assert (asked.local, asked.server) == (answered.local, answered.server)
    assert (asked.server.address, asked.server.port) == (address, 53)
    assert ring.drain() == []


def test_other_ports_tcp_and_other_programs_are_not_copied(sandbox: Sandbox, ring: DnsRing, server: Agent) -> None:
    server("s = socket.create_server(('127.0.0.1', 53)); u = socket.socket(2, 2); u.sendto(b'x', ('127.0.0.1', 53))")
    client = sandbox.agent()
    client("c = connected(socket.AF_INET, ('127.0.0.1', 53)); c.sendall(b'x'); u = socket.socket(2, 2)")
    client("u.sendto(b'x', ('127.0.0.1', 54)); u.sendto(b'x', ('127.0.0.1', 5353)); u.bind(('127.0.0.1', 0))")
    assert ring.drain() == []


def test_the_longest_is_copied_whole_and_what_is_longer_not_at_all(sandbox: Sandbox, ring: DnsRing) -> None:
    sandbox.agent()(f"u = socket.socket(2, 2)\nfor n in (0, {MOST}, {MOST + 1}): u.sendto(b'x' * n, ('127.0.0.1', 53))")
    assert [len(packet.payload) for packet in ring.drain()] == [0, MOST]


def test_what_the_ring_cannot_take_passes_all_the_same(sandbox: Sandbox, ring: DnsRing) -> None:
    many = RING_BYTES // RECORD_BYTES + 100
    agent = sandbox.agent()
    told = agent(f"u = socket.socket(2, 2); answer = sum(u.sendto(b'x', ('127.0.0.1', 53)) for _ in range({many}))")
    assert told == {"answer": many}
    assert RING_BYTES // RECORD_BYTES - 10 < len(ring.drain()) < many
    agent("u.sendto(b'last', ('127.0.0.1', 53))")
    assert [packet.payload for packet in ring.drain()] == [b"last"]


def test_who_reads_needs_no_privilege_and_the_next_reads_on(sandbox: Sandbox, hook: DnsHook, ring: DnsRing) -> None:
    agent = sandbox.agent()
    agent("u = socket.socket(2, 2); u.sendto(b'first', ('127.0.0.1', 53))")
    fd = os.dup(hook.ring_fd)
    os.set_inheritable(fd, True)
    command = [sys.executable, "-c", UNPRIVILEGED, str(fd)]
    done = subprocess.run(command, pass_fds=[fd], capture_output=True, text=True, timeout=30)
    os.close(fd)
    assert done.stdout == "[b'first']\n", done.stderr
    agent("u.sendto(b'second', ('127.0.0.1', 53))")
    assert [packet.payload for packet in ring.drain()] == [b"second"]


def test_outside_the_cgroup_not_one_instruction_runs(sandbox: Sandbox, hook: DnsHook) -> None:
    counting = enable_stats()
    try:
        sandbox.agent(inside=False)("u = socket.socket(2, 2); u.sendto(b'x', ('127.0.0.1', 53))")
        assert {count.runs for count in hook.run_counts().values()} == {0}
        sandbox.agent()("u = socket.socket(2, 2); u.sendto(b'x', ('127.0.0.1', 9))")
        assert hook.run_counts()[Attach.EGRESS].runs >= 1
    finally:
        os.close(counting)


def test_closed_it_copies_nothing_and_leaves_nothing_open(sandbox: Sandbox) -> None:
    agent = sandbox.agent()
    before = len(descriptors())
    hook = DnsHook.open(sandbox.cgroup.path)
    ring = DnsRing(os.dup(hook.ring_fd))
    hook.close()
    hook.close()
    agent("u = socket.socket(2, 2); u.sendto(b'x', ('127.0.0.1', 53))")
    assert ring.drain() == []
    ring.close()
    with pytest.raises(FileNotFoundError):
        DnsHook.open(sandbox.cgroup.path / "nobody")
    assert len(descriptors()) == before
