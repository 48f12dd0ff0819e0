"""Connections that come in for what is in a cgroup are told: who listens, who accepts, what they carried; no others."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import time
from collections.abc import Iterator

import pytest
from descriptors import descriptors
from redirect_sandbox import Agent, Sandbox
from steering_stage import Standing

from mitmsec_redirect import bpf, kernel_types
from mitmsec_redirect.bpf import EbpfUnavailable
from mitmsec_redirect.inbound_hook import InboundHook
from mitmsec_redirect.inbound_records import Inbound, InboundKind
from mitmsec_redirect.verdicts import Verdict

pytestmark = pytest.mark.root
_, BEGAN, ACCEPTED, ENDED = InboundKind
SERVE = """
l = socket.create_server(({address!r}, 0), family=socket.AF_INET6 if ':' in {address!r} else socket.AF_INET,
                         dualstack_ipv6={address!r} == '::')
answer = l.getsockname()[1]
"""
ACCEPT = "c, peer = l.accept(); answer = peer[0]"
# What node and others do: whom they accept they do not ask.
ACCEPT_UNASKED = "import ctypes; c = socket.socket(fileno=ctypes.CDLL(None).accept(l.fileno(), None, None)); answer = 1"


@pytest.fixture
def hook(sandbox: Sandbox) -> Iterator[InboundHook]:
    with InboundHook.open(sandbox.cgroup.path) as opened:
        yield opened


@pytest.fixture
def standing() -> Iterator[Standing]:
    made = Standing()
    yield made
    made.close()


def told(hook: InboundHook, count: int) -> list[Inbound]:
    """The next `count` records; the kernel wakes whoever waits for them."""
    found: list[Inbound] = []
    end = time.monotonic() + 5
    while len(found) < count and time.monotonic() < end:
        select.select([hook], [], [], 0.1)
        found += hook.drain()
    assert len(found) == count, found
    return found


def served(agent: Agent, address: str = "127.0.0.1") -> int:
    port: int = agent(SERVE.format(address=address))["answer"]
    return port


@pytest.mark.parametrize(
    ("listens", "called"), [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("::", "127.0.0.1"), ("10.77.0.1", "10.77.0.1")]
)
def test_it_is_told_when_it_begins_is_accepted_and_ends(
    sandbox: Sandbox, hook: InboundHook, listens: str, called: str
) -> None:
    agent = sandbox.agent()
    port = served(agent, listens)
    before_ns = time.monotonic_ns()
    with socket.create_connection((called, port)) as client:
        here = client.getsockname()[:2]
        assert agent(ACCEPT)["answer"] in (called, f"::ffff:{called}")
        client.sendall(b"question")
        agent("c.recv(99); c.sendall(b'an answer'); c.close()")
        assert client.recv(99) == b"an answer"
    began, accepted, ended = told(hook, 3)
    assert [one.kind for one in (began, accepted, ended)] == [BEGAN, ACCEPTED, ENDED]
    assert {(one.local.address, one.local.port) for one in (began, accepted, ended)} == {(called, port)}
    assert (ended.remote.address, ended.remote.port) == here
    assert (ended.sent_bytes, ended.received_bytes, ended.error) == (9, 8, 0)
    assert [one.is_accepted for one in (began, accepted, ended)] == [False, True, True]
    assert {one.pid for one in (began, accepted, ended)} == {agent.pid}
    assert before_ns < began.began_ns <= began.at_ns <= accepted.at_ns < ended.at_ns < time.monotonic_ns()
    assert ended.caller is not None
    assert ended.caller.inode == os.stat(f"/proc/{agent.pid}/exe").st_ino


@pytest.mark.parametrize("first", ["server", "client"])
def test_what_it_carried_is_counted_whoever_ends_it(sandbox: Sandbox, hook: InboundHook, first: str) -> None:
    """The end of a direction counts as a byte for the kernel, and not for us."""
    agent = sandbox.agent()
    with socket.create_connection(("127.0.0.1", served(agent))) as client:
        agent(ACCEPT)
        agent.start("c.sendall(bytes(300_000))")
        left = 300_000
        while left:
            left -= len(client.recv(left))
        agent.finish()
        client.sendall(bytes(1000))
        agent("n = 0\nwhile n < 1000: n += len(c.recv(1000))")
        if first == "client":
            client.shutdown(socket.SHUT_WR)
            agent("c.recv(1)")
        agent("c.close()")
        assert client.recv(1) == b""
    ended = told(hook, 3)[-1]
    assert (ended.sent_bytes, ended.received_bytes) == (300_000, 1000)


def test_a_worker_that_accepts_has_it_not_who_listens(sandbox: Sandbox, hook: InboundHook) -> None:
    agent = sandbox.agent()
    port = served(agent)
    agent.start(
        """
        r, w = os.pipe()
        child = os.fork()
        if not child:
            c, _ = l.accept(); c.close(); os._exit(0)
        os.waitpid(child, 0)
        answer = child
        """
    )
    socket.create_connection(("127.0.0.1", port)).close()
    worker = agent.finish()["answer"]
    began, accepted, ended = told(hook, 3)
    assert (began.pid, accepted.pid, ended.pid) == (agent.pid, worker, worker)
    assert accepted.caller is not None
    assert accepted.caller.parent == agent.pid


def test_of_who_accepts_without_asking_for_the_peer_only_the_listener_is_known(
    sandbox: Sandbox, hook: InboundHook
) -> None:
    agent = sandbox.agent()
    with socket.create_connection(("127.0.0.1", served(agent))):
        agent(ACCEPT_UNASKED)
        (began,) = told(hook, 1)
        assert (began.is_accepted, began.pid) == (False, agent.pid)
        agent("c.getpeername()")
        (accepted,) = told(hook, 1)
        assert (accepted.kind, accepted.is_accepted, accepted.pid) == (ACCEPTED, True, agent.pid)
        agent("c.getpeername(); c.close()")
    assert [one.kind for one in told(hook, 1)] == [ENDED]


def test_a_connection_that_nobody_accepts_is_told_too(sandbox: Sandbox, hook: InboundHook) -> None:
    agent = sandbox.agent()
    with socket.create_connection(("127.0.0.1", served(agent))) as client:
        client.sendall(b"anybody?")
        agent("l.close()")
    began, ended = told(hook, 2)
    assert (began.kind, ended.kind, ended.is_accepted, ended.received_bytes) == (BEGAN, ENDED, False, 8)


def test_a_reset_is_told_as_one(sandbox: Sandbox, hook: InboundHook) -> None:
    agent = sandbox.agent()
    with socket.create_connection(("127.0.0.1", served(agent))) as client:
        agent(ACCEPT)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert told(hook, 3)[-1].error == errno.ECONNRESET


def test_what_is_outside_of_the_cgroup_is_nobodys_business(sandbox: Sandbox, hook: InboundHook) -> None:
    agent = sandbox.agent(inside=False)
    stats = bpf.enable_stats()
    try:
        with socket.create_connection(("127.0.0.1", served(agent))):
            agent(ACCEPT + "; c.close()")
    finally:
        os.close(stats)
    assert hook.drain() == []
    assert sum(count.runs for count in hook.run_counts().values()) == 0


def test_connections_that_go_out_are_not_told(sandbox: Sandbox, hook: InboundHook) -> None:
    agent = sandbox.agent()
    agent(f"connected(socket.AF_INET, ('127.0.0.1', {sandbox.port_v4})).close()")
    assert hook.drain() == []


@pytest.mark.parametrize("verdict", [Verdict.SELECTED, Verdict.UNDECIDED])
def test_under_a_selection_who_is_in_it_is_told(sandbox: Sandbox, standing: Standing, verdict: Verdict) -> None:
    with InboundHook.open(sandbox.cgroup.path, selection=standing.selection()) as hook:
        selected, other = sandbox.agent(), sandbox.agent()
        standing.judge(selected.pid, verdict)
        for agent in (other, selected):
            with socket.create_connection(("127.0.0.1", served(agent))):
                agent(ACCEPT + "; c.close()")
        assert {one.pid for one in told(hook, 3)} == {selected.pid}


def test_who_listened_before_the_hook_is_known_when_it_accepts(sandbox: Sandbox, standing: Standing) -> None:
    agent = sandbox.agent()
    port = served(agent)
    standing.judge(agent.pid, Verdict.SELECTED)
    with InboundHook.open(sandbox.cgroup.path, selection=standing.selection()) as hook:
        with socket.create_connection(("127.0.0.1", port)):
            agent(ACCEPT + "; c.close()")
        accepted, ended = told(hook, 2)
        assert (accepted.kind, ended.kind) == (ACCEPTED, ENDED)
        assert (accepted.pid, ended.local.port) == (agent.pid, port)


def test_the_acceptor_decides_over_who_listens(sandbox: Sandbox, standing: Standing) -> None:
    """A daemon's first process listens and ends; a super-server's accepts for others."""
    with InboundHook.open(sandbox.cgroup.path, selection=standing.selection()) as hook:
        agent = sandbox.agent()
        standing.judge(agent.pid, Verdict.SELECTED)
        port = served(agent)
        agent.start("child = os.fork()\nif not child: l.accept()[0].close(); os._exit(0)\nos.waitpid(child, 0)")
        socket.create_connection(("127.0.0.1", port)).close()
        agent.finish()
        (began,) = told(hook, 1)
        assert (began.kind, began.pid) == (BEGAN, agent.pid)
        time.sleep(0.05)
        assert hook.drain() == []


def test_with_everything_selected_all_are_told_but_our_own(sandbox: Sandbox, standing: Standing) -> None:
    with InboundHook.open(sandbox.cgroup.path, selection=standing.selection()) as hook:
        ours, unknown = sandbox.agent(), sandbox.agent()
        standing.judge(ours.pid, Verdict.OWN_TRAFFIC | Verdict.SELECTED)
        hook.change(everything=True)
        for agent in (ours, unknown):
            with socket.create_connection(("127.0.0.1", served(agent))):
                agent(ACCEPT + "; c.close()")
        assert {one.pid for one in told(hook, 3)} == {unknown.pid}
        hook.change(everything=False)
        with socket.create_connection(("127.0.0.1", served(unknown))):
            unknown(ACCEPT + "; c.close()")
        assert hook.drain() == []


@pytest.mark.parametrize("accept", [ACCEPT, ACCEPT_UNASKED])
@pytest.mark.parametrize("where", ["", "in/a/namespace"])
def test_what_is_in_a_run_is_left_to_the_runs_own_hook(
    sandbox: Sandbox, standing: Standing, accept: str, where: str
) -> None:
    run = sandbox.cgroup.path / where
    run.mkdir(parents=True, exist_ok=True)
    standing.runs.update(struct.pack("=Q", os.stat(run).st_ino), struct.pack("=I", 1))
    with (
        InboundHook.open(sandbox.cgroup.path, selection=standing.selection(everything=True)) as hook,
        contextlib.closing(Agent(run)) as agent,
    ):
        with socket.create_connection(("127.0.0.1", served(agent))):
            agent(accept + "; c.close()")
        assert hook.drain() == []


def test_what_finds_no_room_is_counted(sandbox: Sandbox) -> None:
    with InboundHook.open(sandbox.cgroup.path, ring_bytes=4096) as hook:
        agent = sandbox.agent()
        port = served(agent)
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", port)):
                agent(ACCEPT + "; c.close()")
        time.sleep(0.1)
        kept = len(hook.drain())
        assert 0 < kept < 60
        assert (hook.lost(), hook.lost()) == (60 - kept, 0)


def test_nothing_is_left_behind(sandbox: Sandbox) -> None:
    before = len(descriptors())
    hook = InboundHook.open(sandbox.cgroup.path)
    hook.close()
    hook.close()
    with pytest.raises(FileNotFoundError):
        InboundHook.open(sandbox.cgroup.path / "missing")
    assert len(descriptors()) == before


def test_a_kernel_that_does_not_tell_its_types_cannot_do_it(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_types, "process_offsets", lambda: None)
    with pytest.raises(EbpfUnavailable, match="types"):
        InboundHook.open(sandbox.cgroup.path)
