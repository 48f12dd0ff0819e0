"""UDP flows as the kernel tells of them: real sockets of real programs, in a cgroup and a network of our own."""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from descriptors import descriptors
from redirect_sandbox import Agent, Sandbox, beat

from mitmsec.core.model import Direction, Endpoint, OnFailure, Quic
from mitmsec_redirect import bpf, kernel_types, proc_files
from mitmsec_redirect.bpf import Attach, Map, MapKind, enable_stats
from mitmsec_redirect.callers import runs_still
from mitmsec_redirect.runs import RunCgroups
from mitmsec_redirect.steps import Selection
from mitmsec_redirect.udp_hook import UdpHook
from mitmsec_redirect.udp_records import Counts, SocketReleased, UdpFlow
from mitmsec_redirect.verdicts import Verdict, entry

pytestmark = pytest.mark.root

UDP = "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)"
UDP6 = "s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)"
TWO = "t = socket.socket({family}, socket.SOCK_DGRAM); t.bind(({address!r}, 0)); s.settimeout(5); t.settimeout(5)"
ALL = 10_000


class Seen:
    """A hook, and what it has told."""

    def __init__(self, hook: UdpHook) -> None:
        self.hook = hook

    def all(self) -> list[UdpFlow | SocketReleased]:
        return self.hook.drain(ALL).told

    def flows(self) -> list[UdpFlow]:
        return [one for one in self.all() if isinstance(one, UdpFlow)]

    def flow(self) -> UdpFlow:
        (one,) = self.flows()
        return one

    def counted(self, flow: UdpFlow) -> tuple[int, int]:
        counts = self.hook.counts(flow.key)
        assert counts is not None
        return counts.sent, counts.received


@pytest.fixture
def seen(sandbox: Sandbox) -> Iterator[Seen]:
    with UdpHook.open(sandbox.cgroup.path, quic=Quic.BYPASS) as hook:
        yield Seen(hook)


@pytest.fixture
def agent(sandbox: Sandbox) -> Agent:
    return sandbox.agent()


@pytest.mark.parametrize(
    ("make", "asked", "remote"),
    [
        (UDP, "('203.0.113.9', 5)", "203.0.113.9"),
        (UDP6, "('2001:db8::9', 5)", "2001:db8::9"),
        (UDP6, "('::ffff:203.0.113.9', 5)", "203.0.113.9"),
    ],
    ids=["v4", "v6", "mapped"],
)
def test_each_place_that_a_socket_sends_to_is_a_flow_with_its_count(
    seen: Seen, agent: Agent, make: str, asked: str, remote: str
) -> None:
    before_ns = time.monotonic_ns()
    agent(f"{make}\nfor _ in range(3): s.sendto(b'x', {asked})")
    flow = seen.flow()
    assert (flow.remote, flow.direction, flow.connected) == (Endpoint.of(remote, 5), Direction.OUTBOUND, False)
    assert (flow.pid, flow.uid, flow.comm) == (
        agent.pid,
        os.getuid(),
        Path(f"/proc/{agent.pid}/comm").read_text().strip(),
    )
    assert before_ns < flow.at_ns < time.monotonic_ns()
    assert flow.local.port > 0
    assert seen.counted(flow) == (3, 0)
    agent(f"{make}\ns.sendto(b'x', {asked})")
    assert [type(one) for one in seen.all()] == [SocketReleased, UdpFlow], "another socket takes the first one's place"


def test_who_called_is_told_by_start_and_file(seen: Seen, agent: Agent) -> None:
    assert seen.hook.tells_callers
    agent(f"{UDP}; s.sendto(b'x', ('203.0.113.9', 5))")
    caller = seen.flow().caller
    assert caller is not None
    folder = proc_files.opened(agent.pid)
    assert folder is not None
    try:
        assert runs_still(folder, caller)
    finally:
        os.close(folder)


@pytest.mark.parametrize(
    ("make", "family", "address", "named"),
    [
        (UDP, "socket.AF_INET", "127.0.0.1", "127.0.0.1"),
        (UDP6, "socket.AF_INET6", "::1", "::1"),
        (UDP6, "socket.AF_INET", "127.0.0.1", "::ffff:127.0.0.1"),
    ],
    ids=["v4", "v6", "mapped"],
)
def test_both_sides_of_an_exchange_have_a_flow_and_each_its_direction(
    seen: Seen, agent: Agent, make: str, family: str, address: str, named: str
) -> None:
    two = TWO.format(family=family, address=address)
    agent(f"{make}; {two}; s.sendto(b'x', ({named!r}, t.getsockname()[1])); d, f = t.recvfrom(9); t.sendto(d, f)")
    agent("s.recvfrom(9)")
    out, back = seen.flows()
    assert (out.direction, back.direction) == (Direction.OUTBOUND, Direction.INBOUND)
    assert (out.remote.address, back.remote.address) == (address, address)
    assert (out.remote.port, back.remote.port) == (back.local.port, out.local.port)
    assert seen.counted(out) == seen.counted(back) == (1, 1)


def test_a_wildcard_destination_is_this_machine_as_it_is_for_the_kernel(seen: Seen, agent: Agent) -> None:
    two = TWO.format(family="socket.AF_INET", address="127.0.0.1")
    agent(f"{UDP}; {two}; s.sendto(b'x', ('0.0.0.0', t.getsockname()[1])); t.sendto(*t.recvfrom(9)); s.recvfrom(9)")
    out, _ = seen.flows()
    assert out.remote.address == "127.0.0.1"
    assert seen.counted(out) == (1, 1)


def test_a_connected_socket_is_told_at_connect_and_what_it_sends_then_is_not_seen(seen: Seen, agent: Agent) -> None:
    agent(f"{UDP}; s.connect(('203.0.113.9', 5)); s.send(b'x'); s.send(b'x')")
    flow = seen.flow()
    assert (flow.connected, flow.remote) == (True, Endpoint.of("203.0.113.9", 5))
    counts = seen.hook.counts(flow.key)
    assert counts is not None
    assert (counts.sent, counts.received, counts.connected) == (0, 0, True)


def test_connecting_to_somebody_else_forgets_the_flow_before(seen: Seen, agent: Agent) -> None:
    agent(f"{UDP}; s.connect(('203.0.113.9', 5)); s.connect(('203.0.113.8', 5))")
    first, second = seen.flows()
    assert first.socket_cookie == second.socket_cookie
    assert seen.hook.counts(first.key) is None
    assert seen.hook.counts(second.key) is not None


def test_a_flow_that_began_with_a_datagram_knows_that_it_was_connected_later(seen: Seen, agent: Agent) -> None:
    agent(f"{UDP}; s.sendto(b'x', ('203.0.113.9', 5)); s.connect(('203.0.113.9', 5))")
    flow = seen.flow()
    counts = seen.hook.counts(flow.key)
    assert counts is not None
    assert (counts.sent, counts.connected) == (1, True)


def test_a_closed_socket_is_told_and_what_it_was_connected_to_is_forgotten(seen: Seen, agent: Agent) -> None:
    agent(f"{UDP}; s.sendto(b'x', ('203.0.113.9', 5)); s.connect(('203.0.113.8', 5))")
    sent, connected = seen.flows()
    before_ns = time.monotonic_ns()
    agent("s.close()")
    (released,) = seen.all()
    assert isinstance(released, SocketReleased)
    assert released.socket_cookie == sent.socket_cookie == connected.socket_cookie
    assert before_ns < released.at_ns < time.monotonic_ns()
    assert seen.hook.counts(connected.key) is None
    assert seen.hook.take(sent.key) == Counts(1, 0, sent.at_ns, connected=False)
    assert seen.hook.take(sent.key) is None


def test_a_killed_program_has_closed_its_sockets(sandbox: Sandbox, seen: Seen) -> None:
    victim = sandbox.agent()
    victim(f"{UDP}; s.sendto(b'x', ('203.0.113.9', 5))")
    cookie = seen.flow().socket_cookie
    os.kill(victim.pid, 9)
    until = time.monotonic() + 5
    while not (told := seen.all()) and time.monotonic() < until:
        time.sleep(0.01)
    assert [one.socket_cookie for one in told] == [cookie]


def test_a_flow_that_was_taken_begins_anew_with_its_next_datagram(seen: Seen, agent: Agent) -> None:
    agent(f"{UDP}; s.sendto(b'x', ('203.0.113.9', 5))")
    first = seen.flow()
    assert seen.hook.take(first.key) is not None
    agent("s.sendto(b'x', ('203.0.113.9', 5))")
    assert seen.flow().key == first.key
    assert seen.counted(first) == (1, 0)


def test_tcp_and_other_sockets_are_not_told(sandbox: Sandbox, seen: Seen, agent: Agent) -> None:
    agent("t = socket.create_server(('127.0.0.1', 0)); c = socket.create_connection(t.getsockname())")
    agent("c.close(); t.close()")
    agent("r = socket.socket(socket.AF_INET, socket.SOCK_RAW, 253); r.sendto(b'x', ('127.0.0.1', 0)); r.close()")
    assert seen.all() == []


def test_who_is_outside_the_cgroup_is_not_told(sandbox: Sandbox, seen: Seen) -> None:
    sandbox.agent(inside=False)(f"{UDP}; s.sendto(b'x', ('203.0.113.9', 5)); s.close()")
    assert seen.all() == []


def test_quic_is_told_unless_it_is_refused(sandbox: Sandbox, seen: Seen, agent: Agent) -> None:
    quic = f"{UDP}; s.sendto(b'x', ('203.0.113.9', 443)); s.connect(('203.0.113.9', 443))"
    agent(quic)
    assert seen.flow().remote.port == 443
    seen.hook.change(quic=Quic.REFUSE)
    agent(quic)
    assert seen.flows() == []
    seen.hook.change(quic=Quic.BYPASS)
    agent(quic)
    assert seen.flow().remote.port == 443


def test_beside_a_connect_hook_each_does_its_own(sandbox: Sandbox, agent: Agent) -> None:
    hook = sandbox.hook(OnFailure.OPEN, Quic.REFUSE)
    beat(hook)
    with UdpHook.open(sandbox.cgroup.path, quic=Quic.REFUSE) as udp:
        assert agent(f"{UDP}; s.connect(('203.0.113.9', 443))") == {"error": "EPERM"}
        agent("s.sendto(b'x', ('203.0.113.9', 5)); c = connected(socket.AF_INET, ('203.0.113.9', 443))")
        assert sandbox.accept(hook) is not None
        (flow,) = [one for one in udp.drain(ALL).told if isinstance(one, UdpFlow)]
        assert (flow.remote.port, len(hook.missed())) == (5, 1)


# --- bounds -----------------------------------------------------------------------------------------------------------
EVERYWHERE = f"""
{UDP}
for number in range(3000): s.sendto(b"x", (f"127.77.{{number >> 8}}.{{number & 255}}", 9))
"""


def test_what_the_ring_cannot_take_is_counted_and_told_later_if_it_goes_on(sandbox: Sandbox, agent: Agent) -> None:
    with UdpHook.open(sandbox.cgroup.path, quic=Quic.BYPASS, ring_bytes=4096) as hook:
        agent(EVERYWHERE)
        told = hook.drain(ALL).told
        assert len(told) == 4096 // 168
        assert hook.lost == 3000 - len(told)
        agent("s.sendto(b'x', ('127.77.11.183', 9))")  # the last of them
        (flow,) = (one for one in hook.drain(ALL).told if isinstance(one, UdpFlow))
        assert flow.remote.address == "127.77.11.183"


def test_the_flow_heard_of_longest_ago_makes_room(sandbox: Sandbox, agent: Agent) -> None:
    with UdpHook.open(sandbox.cgroup.path, quic=Quic.BYPASS, flows_limit=256) as hook:
        agent(EVERYWHERE)
        flows = [one for one in hook.drain(ALL).told if isinstance(one, UdpFlow)]
        kept = [hook.counts(flow.key) is not None for flow in flows]
        assert len(flows) == 3000
        assert 0 < sum(kept) <= 256
        assert kept[-1]
        assert not kept[0]
        assert hook.lost == 0


def test_of_more_flows_than_are_wanted_the_number_and_the_last_are_told_and_every_end(seen: Seen, agent: Agent) -> None:
    agent(f"{EVERYWHERE}\ns.close()")
    drained = seen.hook.drain(10)
    assert [type(one) for one in drained.told] == [UdpFlow] * 10 + [SocketReleased]
    assert drained.beyond == 2990
    assert drained.last is not None
    assert drained.last.remote.address == "127.77.11.183"
    assert seen.hook.drain(0).last is None


# --- a standing selection ---------------------------------------------------------------------------------------------
class Verdicts:
    """A hook that asks a map whom it is for."""

    def __init__(self, box: Sandbox, *, everything: bool = False) -> None:
        self.map = Map.create(MapKind.HASH, 4, 8, 1024, "ms_selected")
        self.runs = RunCgroups()
        selection = Selection(self.map.fd, self.runs.fd, everything=everything)
        self.hook = UdpHook.open(box.cgroup.path, quic=Quic.REFUSE, selection=selection)

    def say(self, agent: Agent, verdict: Verdict) -> None:
        number = entry(time.clock_gettime_ns(time.CLOCK_MONOTONIC), verdict)
        self.map.update(struct.pack("=I", agent.pid), struct.pack("=Q", number))

    def sends(self, agent: Agent) -> list[UdpFlow]:
        agent(f"{UDP}; s.sendto(b'x', ('203.0.113.9', 5))")
        return [one for one in self.hook.drain(ALL).told if isinstance(one, UdpFlow)]

    def close(self) -> None:
        self.hook.close()
        self.map.close()
        self.runs.close()


@pytest.fixture
def verdicts(sandbox: Sandbox) -> Iterator[Verdicts]:
    made = Verdicts(sandbox)
    with contextlib.closing(made):
        yield made


def test_of_a_selection_only_who_belongs_to_it_is_told_and_whether_that_was_sure(
    sandbox: Sandbox, verdicts: Verdicts
) -> None:
    chosen, doubtful, ours, other = (sandbox.agent() for _ in range(4))
    verdicts.say(chosen, Verdict.SELECTED)
    verdicts.say(doubtful, Verdict.UNDECIDED)
    verdicts.say(ours, Verdict.SELECTED | Verdict.OWN_TRAFFIC)
    assert [one.selected for one in verdicts.sends(chosen)] == [True]
    assert [one.selected for one in verdicts.sends(doubtful)] == [False]
    assert verdicts.sends(ours) == []
    assert verdicts.sends(other) == []


def test_everything_includes_whom_nobody_judged_until_the_terms_change(sandbox: Sandbox) -> None:
    with contextlib.closing(Verdicts(sandbox, everything=True)) as verdicts:
        agent = sandbox.agent()
        assert len(verdicts.sends(agent)) == 1
        verdicts.hook.change(quic=Quic.REFUSE)
        assert verdicts.sends(agent) == []


def test_a_command_with_a_hook_of_its_own_is_left_to_that(sandbox: Sandbox, verdicts: Verdicts) -> None:
    agent = sandbox.agent()
    verdicts.say(agent, Verdict.SELECTED)
    verdicts.runs.are([sandbox.cgroup.path])
    assert verdicts.sends(agent) == []


# --- its life ---------------------------------------------------------------------------------------------------------
def test_outside_the_cgroup_not_one_instruction_runs(sandbox: Sandbox, seen: Seen, agent: Agent) -> None:
    other = sandbox.agent(inside=False)
    counting = enable_stats()
    try:
        other(f"{UDP}; s.connect(('203.0.113.9', 5)); s.send(b'x'); s.sendto(b'x', ('203.0.113.9', 6)); s.close()")
        assert {count.runs for count in seen.hook.run_counts().values()} == {0}
        agent(f"{UDP}; s.sendto(b'x', ('203.0.113.9', 6)); s.close()")
        runs = {attach: count.runs for attach, count in seen.hook.run_counts().items()}
        assert (runs[Attach.SENDMSG4], runs[Attach.SOCK_RELEASE], runs[Attach.CONNECT4]) == (1, 1, 0)
    finally:
        os.close(counting)


def test_closed_or_detached_it_sees_nothing_and_twice_is_once(sandbox: Sandbox, agent: Agent) -> None:
    before = len(descriptors())
    hook = UdpHook.open(sandbox.cgroup.path, quic=Quic.BYPASS)
    hook.detach()
    agent(f"{UDP}; s.sendto(b'x', ('203.0.113.9', 5))")
    assert hook.drain(ALL).told == []
    hook.detach()
    hook.close()
    hook.close()
    assert len(descriptors()) == before


def test_what_cannot_be_attached_leaves_nothing_open(sandbox: Sandbox) -> None:
    before = len(descriptors())
    with pytest.raises(OSError):
        UdpHook.open("/proc", quic=Quic.BYPASS)
    with pytest.raises(FileNotFoundError):
        UdpHook.open(sandbox.cgroup.path / "nobody", quic=Quic.BYPASS)
    assert len(descriptors()) == before


def test_where_the_kernel_hides_its_types_the_caller_is_told_by_its_pid_alone(
    sandbox: Sandbox, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A verifier that refuses to look at the task: as if the offsets were those of another kernel."""
    offsets = kernel_types.process_offsets()
    assert offsets is not None
    load, refused = bpf.load_program, []

    def picky(code: bytes, attach: Attach, name: str) -> int:
        if not refused:
            refused.append(name)
            raise bpf.ProgramRejected(13, "no")
        return load(code, attach, name)

    monkeypatch.setattr(bpf, "load_program", picky)
    with UdpHook.open(sandbox.cgroup.path, quic=Quic.BYPASS) as hook:
        assert not hook.tells_callers
        agent(f"{UDP}; s.sendto(b'x', ('203.0.113.9', 5))")
        (flow,) = (one for one in hook.drain(ALL).told if isinstance(one, UdpFlow))
        assert (flow.caller, flow.pid) == (None, agent.pid)
