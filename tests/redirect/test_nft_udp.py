"""UDP flows as rules of nftables count them: real sockets of real programs, in a cgroup and a network of our own."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from descriptors import descriptors
from nft_stage import beat, diverting, needs_nft
from redirect_sandbox import Agent, Sandbox

from mitmsec.core.model import Confidence, Direction, Endpoint, Quic
from mitmsec_redirect import nflog, nft, nft_udp
from mitmsec_redirect.nftables import Nftables, Trouble
from mitmsec_redirect.shortfall import Untold
from mitmsec_redirect.udp_records import Counts, SocketReleased, UdpFlow

pytestmark = [pytest.mark.root, needs_nft]
UDP = "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)"
UDP6 = "s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)"
SERVER = "t = socket.socket({family}, socket.SOCK_DGRAM); t.bind(({address!r}, 0)); t.settimeout(5)"
PORT = "answer = t.getsockname()[1]"
ANSWER = "d, f = t.recvfrom(9); t.sendto(d, f)"
EVERYWHERE = "for n in range({}): s.sendto(b'x', (f'127.77.{{n >> 8}}.{{n & 255}}', 4000))"
ALL, TICK_NS = 10_000, 20_000_000


class Seen:
    """What a table's rules have told."""

    def __init__(self, backend: Nftables) -> None:
        assert backend.udp is not None
        self.backend, self.udp = backend, backend.udp

    def all(self) -> list[UdpFlow | SocketReleased]:
        return self.udp.drain(ALL).told

    def flows(self) -> list[UdpFlow]:
        return [one for one in self.all() if isinstance(one, UdpFlow)]

    def flow(self) -> UdpFlow:
        (one,) = self.flows()
        return one

    def counted(self, flow: UdpFlow) -> tuple[int, int]:
        return both(self.udp.counts(flow.key))


def both(counts: Counts | None) -> tuple[int, int]:
    assert counts is not None
    return counts.sent, counts.received


@pytest.fixture
def seen(sandbox: Sandbox) -> Iterator[Seen]:
    with diverting(sandbox, quic=Quic.BYPASS) as backend:
        yield Seen(backend)


@pytest.fixture
def agent(sandbox: Sandbox) -> Agent:
    return sandbox.agent()


@pytest.fixture
def others(sandbox: Sandbox) -> Agent:
    """A program that is not selected."""
    return sandbox.agent(inside=False)


def serving(agent: Agent, address: str) -> int:
    """The port at which it has a socket `t`."""
    family = "socket.AF_INET6" if ":" in address else "socket.AF_INET"
    return int(agent(f"{SERVER.format(family=family, address=address)}; {PORT}")["answer"])


@pytest.mark.parametrize(
    ("make", "address", "asked"),
    [(UDP, "127.0.0.1", "127.0.0.1"), (UDP6, "::1", "::1"), (UDP6, "127.0.0.1", "::ffff:127.0.0.1")],
    ids=["v4", "v6", "mapped"],
)
@pytest.mark.parametrize("how", ["s.sendto(b'x', {0})", "s.connect({0}); s.send(b'x')"], ids=["sendto", "connected"])
def test_a_flow_has_its_program_and_all_its_datagrams_that_of_a_connected_socket_too(
    seen: Seen, agent: Agent, others: Agent, make: str, address: str, asked: str, how: str
) -> None:
    port = serving(others, address)
    before_ns = time.monotonic_ns()
    agent(f"{make}; s.settimeout(5)")
    for _ in range(3):
        agent(how.format(f"({asked!r}, {port})"))
        others(ANSWER)
        agent("s.recvfrom(9)")
    flow = seen.flow()
    assert (flow.remote, flow.direction, flow.connected) == (Endpoint.of(address, port), Direction.OUTBOUND, False)
    assert flow.local == Endpoint.of(address, agent("answer = s.getsockname()[1]")["answer"])
    assert (flow.pid, flow.uid) == (agent.pid, os.getuid())
    assert flow.comm == Path(f"/proc/{agent.pid}/comm").read_text().strip()
    assert flow.owner is not None
    assert (flow.owner.confidence, flow.owner.source) == (Confidence.TABLE, "sock_diag")
    assert before_ns < flow.at_ns < time.monotonic_ns()
    assert seen.counted(flow) == (3, 3)
    counts = seen.udp.counts(flow.key)
    assert counts is not None
    assert before_ns - TICK_NS < counts.last_ns < time.monotonic_ns()
    assert seen.all() == []


def test_who_is_spoken_to_first_has_a_flow_that_came_in(seen: Seen, agent: Agent, others: Agent) -> None:
    port = serving(agent, "127.0.0.1")
    others(f"{UDP}; s.sendto(b'x', ('127.0.0.1', {port}))")
    agent(ANSWER)
    flow = seen.flow()
    assert (flow.direction, flow.pid, flow.local.port) == (Direction.INBOUND, agent.pid, port)
    assert seen.counted(flow) == (1, 1)


def test_between_two_programs_each_has_its_own_flow(seen: Seen, sandbox: Sandbox, agent: Agent) -> None:
    server = sandbox.agent()
    port = serving(server, "127.0.0.1")
    agent(f"{UDP}; s.sendto(b'x', ('127.0.0.1', {port})); s.sendto(b'x', ('127.0.0.1', {port}))")
    out, came = seen.flows()
    assert [(one.direction, one.pid) for one in (out, came)] == [("outbound", agent.pid), ("inbound", server.pid)]
    assert (seen.counted(out), seen.counted(came)) == ((2, 0), (0, 2))


def test_a_socket_that_is_only_connected_and_what_others_send_is_no_flow(
    seen: Seen, agent: Agent, others: Agent
) -> None:
    port = serving(others, "127.0.0.1")
    agent(f"{UDP}; s.connect(('127.0.0.1', {port}))")
    others(f"{UDP}; s.sendto(b'x', ('127.0.0.1', {port})); {ANSWER}")
    assert seen.all() == []


def test_what_is_taken_is_over_and_the_next_datagram_begins_anew(seen: Seen, agent: Agent) -> None:
    agent(f"{UDP}; s.sendto(b'x', ('127.0.0.1', 9))")
    flow = seen.flow()
    assert both(seen.udp.take(flow.key)) == (1, 0)
    assert (seen.udp.counts(flow.key), seen.udp.take(flow.key)) == (None, None)
    agent("s.sendto(b'x', ('127.0.0.1', 9)); s.sendto(b'x', ('127.0.0.1', 9))")
    assert seen.counted(seen.flow()) == (2, 0)


def test_of_a_socket_with_several_addresses_all_are_counted_together(seen: Seen, agent: Agent, others: Agent) -> None:
    port = serving(agent, "0.0.0.0")
    asks = "s.sendto(b'x', ('{}', {})); {}"
    others(f"{UDP}; s.bind(('127.0.0.1', 0)); {asks.format('127.0.0.5', port, '')}{asks.format('127.0.0.6', port, '')}")
    first, second = seen.flows()
    assert (first.key, {first.local.address, second.local.address}) == (second.key, {"127.0.0.5", "127.0.0.6"})
    assert seen.counted(first) == (0, 2)
    assert both(seen.udp.take(first.key)) == (0, 2)
    assert seen.udp.counts(second.key) is None


@pytest.mark.parametrize("closes", ["s.close()", "os._exit(0)"], ids=["closed", "ended"])
def test_a_socket_that_ends_is_told(
    seen: Seen, sandbox: Sandbox, agent: Agent, closes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nft_udp, "POLL_S", 0.0)
    monkeypatch.setattr(nft_udp, "POLL_SHARE", 1e9)
    stays = sandbox.agent()
    for one in (agent, stays):
        one(f"{UDP}; s.sendto(b'x', ('127.0.0.1', 9))")
    gone, lives = seen.flows()
    assert seen.all() == []
    agent.start(closes)
    deadline = time.monotonic() + 30
    while not (told := seen.all()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [(type(one), one.socket_cookie) for one in told] == [(SocketReleased, gone.socket_cookie)]
    seen.udp.take(gone.key)
    assert (seen.all(), seen.counted(lives)) == ([], (1, 0))


def test_who_has_closed_its_socket_already_is_unknown_but_for_the_user(seen: Seen, agent: Agent) -> None:
    agent(f"{UDP}; s.sendto(b'x', ('127.0.0.1', 9)); s.close()")
    flow, released = seen.all()
    assert isinstance(flow, UdpFlow)
    assert flow.owner is not None
    assert (flow.pid, flow.owner.confidence, flow.owner.uid) == (0, Confidence.UNKNOWN, os.getuid())
    assert isinstance(released, SocketReleased)
    assert released.socket_cookie == flow.socket_cookie
    assert seen.counted(flow) == (1, 0)


def test_a_socket_that_is_bound_to_a_device_is_found(seen: Seen, agent: Agent) -> None:
    agent(f"{UDP}; s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'lo'); s.sendto(b'x', ('127.0.0.1', 9))")
    assert seen.flow().pid == agent.pid


def test_one_that_lives_and_is_not_found_is_not_told_again_and_again(
    seen: Seen, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sends from an address that it is not bound to."""
    monkeypatch.setattr(nft_udp, "POLL_S", 0.0)
    monkeypatch.setattr(nft_udp, "POLL_SHARE", 1e9)
    agent(f"{UDP}; s.bind(('127.0.0.5', 0)); source = bytes(4) + socket.inet_aton('127.0.0.7') + bytes(4)")
    sends = "s.sendmsg([b'x'], [(socket.IPPROTO_IP, 8, source)], 0, ('127.0.0.1', 9))"  # IP_PKTINFO
    agent(sends)
    first, released = seen.all()
    assert (isinstance(first, UdpFlow), isinstance(released, SocketReleased)) == (True, True)
    assert isinstance(first, UdpFlow)
    assert (first.local.address, first.pid) == ("127.0.0.7", 0)
    assert both(seen.udp.take(first.key)) == (1, 0)
    agent(sends)
    again = seen.flow()
    agent(sends)
    assert (seen.all(), seen.counted(again)) == ([], (2, 0))


def test_owners_are_looked_for_no_longer_than_there_is_time(
    seen: Seen, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nft_udp, "LOOKUPS_S", -1.0)
    agent(f"{UDP}; s.sendto(b'x', ('127.0.0.1', 9))")
    owner = seen.flow().owner
    assert owner is not None
    assert (owner.pid, owner.confidence, owner.uid) == (0, Confidence.UNKNOWN, os.getuid())


# --- bounds -----------------------------------------------------------------------------------------------------------
def test_a_program_that_sends_everywhere_is_told_or_counted_as_lost(seen: Seen, agent: Agent) -> None:
    agent(f"{UDP}\n{EVERYWHERE.format(5000)}")
    drained = seen.udp.drain(100)
    assert (len(drained.told), drained.last is not None) == (100, True)
    assert 200 < 100 + drained.beyond < 5000
    assert seen.udp.lost == 5000 - 100 - drained.beyond
    assert len(seen.udp._ends) == 100, "what was beyond is not kept"
    agent("s.sendto(b'x', ('127.77.0.200', 4000))")
    assert seen.flow().remote.address == "127.77.0.200", "and begins anew"


def test_after_an_overrun_the_lost_are_counted_and_all_begin_anew(
    seen: Seen, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent(f"{UDP}; s.sendto(b'x', ('127.0.0.1', 9))")
    early = seen.flow()
    seen.udp._log._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    agent(EVERYWHERE.format(250))
    told = len(seen.flows())
    assert (0 < told < 250, seen.udp.lost) == (True, 250 - told)
    assert seen.udp.counts(early.key) is None
    agent("s.sendto(b'x', ('127.0.0.1', 9))")
    assert (seen.flow().key, seen.counted(early)) == (early.key, (1, 0))


# --- beside the other rules -------------------------------------------------------------------------------------------
def test_refused_quic_is_no_flow(sandbox: Sandbox) -> None:
    with diverting(sandbox, quic=Quic.REFUSE) as backend:
        beat(backend)
        agent = sandbox.agent()
        assert agent(f"{UDP}; s.sendto(b'x', ('127.0.0.1', 443))") == {"error": "EPERM"}
        agent("s.sendto(b'x', ('127.0.0.1', 444))")
        assert Seen(backend).flow().remote.port == 444


def test_rules_that_somebody_removed_count_anew_once_they_are_restored(seen: Seen, agent: Agent) -> None:
    agent(f"{UDP}; s.sendto(b'x', ('127.0.0.1', 9))")
    flow = seen.flow()
    nft.load("flush ruleset\n")
    agent("s.sendto(b'x', ('127.0.0.1', 9))")
    assert (seen.all(), seen.udp.counts(flow.key)) == ([], None)
    beat(seen.backend)
    assert [one.what for one in seen.backend.troubles()] == [Trouble.RULES_RESTORED]
    agent("s.sendto(b'x', ('127.0.0.1', 9))")
    assert (seen.flow().key, seen.counted(flow), seen.udp.lost) == (flow.key, (1, 0), 0)


def test_another_gate_changes_nothing_of_what_is_counted(seen: Seen, sandbox: Sandbox, agent: Agent) -> None:
    agent(f"{UDP}; s.sendto(b'x', ('127.0.0.1', 9))")
    flow = seen.flow()
    seen.backend.set_port(sandbox.port_v4, None)
    agent("s.sendto(b'x', ('127.0.0.1', 9))")
    assert (seen.all(), seen.counted(flow)) == ([], (2, 0))


def test_detached_it_sees_nothing_more_and_what_was_counted_is_told(seen: Seen, agent: Agent) -> None:
    agent(f"{UDP}; s.sendto(b'x', ('127.0.0.1', 9))")
    flow = seen.flow()
    seen.backend.detach()
    seen.udp.detach()
    agent("s.sendto(b'x', ('127.0.0.1', 9)); s.sendto(b'x', ('127.0.0.1', 10))")
    assert (seen.flows(), both(seen.udp.take(flow.key))) == ([], (1, 0))


def test_without_a_log_all_is_as_ever_and_why_udp_is_not_seen_is_said(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = nflog.GROUPS[0]
    monkeypatch.setattr(nflog, "GROUPS", range(first, first + 2))  # one for what is missed, one for flows, none for DNS
    agent = sandbox.agent()
    before = len(descriptors())
    with diverting(sandbox) as backend:
        beat(backend)
        assert backend.udp is None
        assert backend.shortfall is not None
        assert (backend.shortfall.untold, "no NFLOG group is free" in str(backend.shortfall)) == (Untold.UDP, True)
        agent(f"{UDP}; s.sendto(b'x', ('127.0.0.1', 9))")
    assert len(descriptors()) == before


def test_it_leaves_no_descriptor_open(sandbox: Sandbox) -> None:
    before = len(descriptors())
    with diverting(sandbox) as backend:
        assert backend.udp is not None
        backend.udp.close()
    assert len(descriptors()) == before
