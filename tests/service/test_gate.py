"""The gate as a process of its own, as its supervisor starts it; origins come from a real BPF map."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import dns_writer
import pytest

from mitmsec.audit.event import BytesSeen, ConnectionSeen, FaultSeen, FlowHanded, NamedBy, Outcome
from mitmsec.channel import Channel, pair
from mitmsec.core.host_lists import HostList
from mitmsec.core.messages import (
    Committed,
    DnsRelays,
    Drain,
    Drained,
    Fault,
    FlowsAnswer,
    FlowsQuestion,
    GateSettings,
    Govern,
    Governed,
    HandOver,
    MintDecision,
    MintWithdrawn,
    ModulesAnswer,
    ModulesQuestion,
    Ready,
    UpstreamAnswer,
    Whose,
    WhoseAnswer,
    WorkerUp,
)
from mitmsec.core.model import Action, Caller, Endpoint, OnFailure, Process
from mitmsec.core.policy import Policy
from mitmsec.core.policy_packing import packed
from mitmsec.core.rules import Rule
from mitmsec.service.gate import LEGS_LIMIT, LedWay, _given
from mitmsec_redirect import records
from mitmsec_redirect.backend import BackendKind
from mitmsec_redirect.bpf import Map, MapKind
from mitmsec_redirect.dns_lead import Lead
from mitmsec_redirect.inbound_records import Inbound, InboundKind
from mitmsec_redirect.legs import Leg
from mitmsec_redirect.pulse import Pulse

pytestmark = pytest.mark.root

WAIT_S = 30.0
SO_COOKIE, IP_PKTINFO = 57, 8
CALLED = (5_000_000_001, 4_000_000_002, 41, 0, 8, 9, 2, 3, 0)
CALLER = Caller(5_000_000_001, 41, 4_000_000_002, device=8, inode=9, ctime_ns=2_000_000_003)
CURL = Process(pid=4711, exe="/usr/bin/curl", name="curl")


class GateProcess:
    """The child, and the test's ends of everything that it is connected to."""

    def __init__(
        self,
        policy: Policy,
        *,
        on_failure: OnFailure = OnFailure.CLOSED,
        v6: bool = False,
        backend: BackendKind = BackendKind.CONNECT_HOOK,
        relays: bool = False,
    ) -> None:
        self._recorded = 0
        self.origins = Map.create(MapKind.LRU_HASH, records.COOKIE.size, records.ATTEMPT.size, 64, "ms_origins")
        self.heartbeat = Map.create(MapKind.ARRAY, 4, 8, 1, "ms_heartbeat")
        self.pulse_fd = Pulse.new()
        given = {
            BackendKind.CONNECT_HOOK: [self.origins.fd, self.heartbeat.fd],
            BackendKind.NFTABLES: [self.pulse_fd],
        }
        self.listeners = [socket.create_server(("127.0.0.1", 0))]
        if v6:
            self.listeners.append(socket.create_server(("::1", 0), family=socket.AF_INET6))
        control, theirs = pair()
        recorder, recorder_end = pair()
        signer, signer_end = pair()
        self.control = Channel(control, [Ready, Fault, Whose, Drained, Governed, FlowsAnswer, ModulesAnswer])
        self.recorder = Channel(recorder, [FlowHanded, ConnectionSeen, BytesSeen, FaultSeen])
        self.signer = Channel(signer, [MintDecision, MintWithdrawn])
        policy_fd = os.memfd_create("policy")
        os.write(policy_fd, packed(policy))
        with theirs, recorder_end, signer_end:
            command = [sys.executable, "-m", "mitmsec.service", "gate", str(theirs.fileno())]
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
            settings = GateSettings(
                session="s", on_failure=on_failure, has_v6=v6, capture=False, backend=backend, relays=relays
            )
            fds = [
                policy_fd,
                self.listeners[0].fileno(),
                recorder_end.fileno(),
                signer_end.fileno(),
                *given.get(backend, []),
                *(listener.fileno() for listener in self.listeners[1:]),
            ]
            self.answer = self.told(self.control, settings, *fds)
        os.close(policy_fd)

    def told(self, channel: Channel, message: Any, *fds: int) -> Any:
        """The next message of the child, after `message` where there is one."""
        received = channel.exchange(message, *fds, timeout_s=WAIT_S)
        return None if received is None else received[0]

    def recorded(self) -> Any:
        """The next event, which is committed at once."""
        seen = self.told(self.recorder, None)
        self._recorded += 1
        self.recorder.send(Committed(count=self._recorded))
        return seen

    def divert(self, target: tuple[Any, ...], family: int = socket.AF_INET) -> socket.socket:
        """A client as the connect hook would have it: in the map under its cookie, connected to the gate."""
        client = socket.socket(family)
        client.settimeout(WAIT_S)
        (cookie,) = records.COOKIE.unpack(client.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))
        remote, port = records.address_bytes(target[0]), records.port_field(target[1])
        value = records.ATTEMPT.pack(remote, port, 6, 0, 4711, 1000, b"curl", bytes(16), 0, 0, 0, 0, 0, *CALLED)
        self.origins.update(records.COOKIE.pack(cookie), value)
        client.connect(self.listeners[-1 if family == socket.AF_INET6 else 0].getsockname())
        return client

    def owner_asked(self) -> None:
        whose = self.told(self.control, None)
        assert (whose.pid, whose.uid, whose.comm) == (4711, 1000, "curl")
        assert whose.caller == CALLER
        self.control.send(WhoseAnswer(number=whose.number, process=CURL))

    def end(self) -> int:
        self.control.close()
        try:
            return self.process.wait(WAIT_S)
        finally:
            self.process.kill()
            self.process.wait()
            for channel in (self.recorder, self.signer):
                channel.close()
            for listener in self.listeners:
                listener.close()
            self.origins.close()
            self.heartbeat.close()
            os.close(self.pulse_fd)


@pytest.fixture
def origin() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(WAIT_S)
        yield listener


def test_a_diverted_connection_is_relayed_under_its_owners_name(origin: socket.socket) -> None:
    gate = GateProcess(Policy(action=Action.BYPASS), v6=True)
    try:
        for family in (socket.AF_INET, socket.AF_INET6):
            with gate.divert(origin.getsockname(), family) as client:
                gate.owner_asked()
                client.send(b"\x80ping")
                client.shutdown(socket.SHUT_WR)
                server = origin.accept()[0]
                with server:
                    assert server.makefile("rb").read() == b"\x80ping"
                    server.send(b"pong")
                assert client.makefile("rb").read() == b"pong"
            seen = gate.recorded()
            assert isinstance(seen, ConnectionSeen)
            assert (seen.outcome, seen.process, seen.bytes_sent) == (Outcome.COMPLETED, CURL, 5)
            assert seen.remote.port == origin.getsockname()[1]
        assert not list(gate.origins.keys())  # known connections make room
        assert gate.heartbeat.lookup(bytes(4)) != bytes(8)
    finally:
        assert gate.end() == 0


@pytest.mark.parametrize("backend", [BackendKind.CONNECT_HOOK, BackendKind.NFTABLES])
def test_a_connection_that_no_hook_diverted_is_a_strangers(backend: BackendKind) -> None:
    gate = GateProcess(Policy(action=Action.BYPASS), backend=backend)
    try:
        address = gate.listeners[0].getsockname()
        with pytest.raises(ConnectionResetError), socket.create_connection(address, WAIT_S) as client:
            client.recv(1)  # the reset may have been quicker
        assert gate.recorded().what == "stranger"
        assert gate.recorded().outcome is Outcome.STRANGER
    finally:
        assert gate.end() == 0


def test_under_nftables_it_beats_on_what_its_supervisor_hears() -> None:
    gate = GateProcess(Policy(), backend=BackendKind.NFTABLES, v6=True)
    try:
        assert gate.answer == Ready()
        heard, deadline = 0, time.monotonic() + WAIT_S
        while heard < 2:  # from its own loop, and not once only
            heard += Pulse(gate.pulse_fd).heard()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert gate.heartbeat.lookup(bytes(4)) == bytes(8)
    finally:
        assert gate.end() == 0


@pytest.mark.parametrize(
    ("kind", "descriptors"),
    [(BackendKind.WINDIVERT, 1), (BackendKind.REPLAY, 0), (BackendKind.NFTABLES, 2), (BackendKind.CONNECT_HOOK, 1)],
)
def test_for_a_backend_that_no_gate_serves_or_other_descriptors_there_is_none(
    kind: BackendKind, descriptors: int
) -> None:
    with pytest.raises(ValueError):
        _given(kind, [-1] * descriptors)


def test_what_it_relays_to_a_name_server_names_the_flows_that_show_no_name(origin: socket.socket) -> None:
    with contextlib.ExitStack() as held:
        server, relay, program = (
            held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(3)
        )
        server.bind((f"127.53.{os.getpid() % 250}.{os.getpid() // 250 % 250}", 53))
        relay.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        relay.bind(("127.0.0.1", 0))
        for sock in (server, program):
            sock.settimeout(WAIT_S)
        lead = held.enter_context(contextlib.closing(Lead.open([relay])))
        lead.meet(server.getsockname()[0], named=True)
        gate = GateProcess(Policy(action=Action.BYPASS), relays=True)
        try:
            gate.control.send(DnsRelays())  # without sockets it means nothing
            gate.control.send(DnsRelays(), *lead.descriptors, relay.fileno())
            lead._asking.update(program.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), bytes(4))
            program.sendto(dns_writer.query("a.test"), relay.getsockname())
            _, ours = server.recvfrom(999)
            server.sendto(dns_writer.response("a.test", dns_writer.address("a.test", "127.0.0.1")), ours)
            program.recv(999)
            with gate.divert(origin.getsockname()) as client:
                gate.owner_asked()
                client.send(b"\x80ping")
                client.shutdown(socket.SHUT_WR)
                with origin.accept()[0] as there:
                    assert there.makefile("rb").read() == b"\x80ping"
                assert client.recv(1) == b""
            seen = gate.recorded()
            assert (seen.host, seen.named_by) == ("a.test", NamedBy.DNS)
        finally:
            assert gate.end() == 0


def test_a_flow_is_handed_to_the_worker_that_came_up(origin: socket.socket) -> None:
    gate = GateProcess(Policy())
    mine, theirs = pair()
    worker = Channel(mine, [HandOver, UpstreamAnswer])
    try:
        with theirs:
            gate.control.send(WorkerUp(worker=3), theirs.fileno())
        gate.control.send(WorkerUp(worker=4))  # without a channel: nobody
        with gate.divert(origin.getsockname()) as client:
            gate.owner_asked()
            client.send(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
            received = worker.exchange(None, timeout_s=WAIT_S)
            assert received is not None
            message, fds = received
            assert (message.name, len(fds)) == ("a.test", 2)
            for fd in fds:
                os.close(fd)
            handed = gate.recorded()
            assert (handed.flow, handed.worker, handed.host, handed.process) == (message.flow, 3, "a.test", CURL)
    finally:
        assert gate.end() == 0
        worker.close()


def test_who_comes_while_a_policy_is_taken_in_is_decided_by_it(origin: socket.socket) -> None:
    """The hook selects by it already: the old policy is not made for those."""
    names = "\n".join(f"n{number}.example" for number in range(400_000))
    rule = Rule(name="new", action=Action.BLOCK)
    listed = Rule(name="listed", action=Action.BYPASS, host=("@l",))
    policy = Policy(action=Action.BYPASS, rules=(listed, rule), lists=(HostList.of("@l", names),))
    gate = GateProcess(Policy(action=Action.BYPASS))
    try:
        policy_fd = os.memfd_create("policy")
        with os.fdopen(policy_fd, "wb", closefd=False) as file:
            file.write(packed(policy))
        gate.control.send(Govern(on_failure=OnFailure.CLOSED, workers=()), policy_fd)
        os.close(policy_fd)
        gate.control.send(FlowsQuestion())
        assert isinstance(gate.told(gate.control, None), FlowsAnswer)
        with gate.divert(origin.getsockname()) as client:
            assert gate.told(gate.control, None) == Governed()  # before it asks whose this is
            gate.owner_asked()
            client.send(b"GET / HTTP/1.1\r\nHost: other.test\r\n\r\n")
            assert gate.recorded().rule == "new"
    finally:
        gate.end()


def test_a_policy_that_it_cannot_take_in_is_told_and_ends_it() -> None:
    """It accepts nobody by then: connections would wait for a gate that looks alive."""
    gate = GateProcess(Policy(action=Action.BYPASS))
    policy_fd = os.memfd_create("policy")
    os.write(policy_fd, b"no policy")
    gate.control.send(Govern(on_failure=OnFailure.CLOSED, workers=()), policy_fd)
    os.close(policy_fd)
    told = gate.told(gate.control, None)
    assert isinstance(told, Fault)
    assert told.what == "policy_not_taken"
    assert gate.end() == 1


def test_a_long_list_is_taken_in_beside_what_it_does_and_decides_from_then_on(origin: socket.socket) -> None:
    names = "\n".join(f"n{number}.example" for number in range(200_000))
    rule = Rule(name="listed", action=Action.BLOCK, host=("@l",))
    policy = Policy(action=Action.BYPASS, rules=(rule,), lists=(HostList.of("@l", names),))
    gate = GateProcess(Policy(action=Action.BYPASS))
    try:
        policy_fd = os.memfd_create("policy")
        with os.fdopen(policy_fd, "wb", closefd=False) as file:
            file.write(packed(policy))
        gate.control.send(Govern(on_failure=OnFailure.CLOSED, workers=()), policy_fd)
        os.close(policy_fd)
        gate.control.send(FlowsQuestion())
        assert isinstance(gate.told(gate.control, None), FlowsAnswer)  # before the list is there
        assert gate.told(gate.control, None) == Governed()
        with gate.divert(origin.getsockname()) as client:
            gate.owner_asked()
            client.send(b"GET / HTTP/1.1\r\nHost: www.n199999.example\r\n\r\n")
            seen = gate.recorded()
        assert (seen.outcome, seen.rule, seen.host) == (Outcome.BLOCKED, "listed", "www.n199999.example")
    finally:
        assert gate.end() == 0


def test_it_drains_and_says_how_many_it_had_to_cut(origin: socket.socket) -> None:
    gate = GateProcess(Policy(action=Action.BYPASS))
    try:
        with gate.divert(origin.getsockname()) as client:
            gate.owner_asked()
            server = origin.accept()[0]
            gate.control.send(Drain(grace_s=0.05))
            gate.control.send(Drain(grace_s=0.05))
            seen = gate.recorded()
            assert seen.outcome is Outcome.CUT
            gate.recorder.close()  # nobody will commit: the gate does not wait for it
            assert gate.told(gate.control, None) == Drained(cut=1)
            with pytest.raises(ConnectionResetError):
                client.recv(1)
            server.close()
    finally:
        assert gate.end() == 0


def test_it_ends_with_its_supervisor_and_resets_what_it_carried(origin: socket.socket) -> None:
    gate = GateProcess(Policy(action=Action.BYPASS))
    with gate.divert(origin.getsockname()) as client:
        gate.owner_asked()
        server = origin.accept()[0]
        gate.recorder.close()
        assert gate.end() == 0
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        server.close()


def test_it_holds_no_module_that_touches_keys_tls_or_the_log() -> None:
    gate = GateProcess(Policy())
    try:
        modules = set(gate.told(gate.control, ModulesQuestion()).modules)
        roots = {name.partition(".")[0] for name in modules}
        assert not roots & {"mitmproxy", "OpenSSL", "cryptography", "sqlite3", "psutil", "pydivert", "mitmsec_certs"}
        assert not {name for name in modules if name.startswith(("mitmsec.engine", "mitmsec.capture"))}
        assert "mitmsec.gate.loop" in modules
    finally:
        assert gate.end() == 0


class PlayedLeg(Leg):
    """To a listener of the test's."""

    def __init__(self, listener: socket.socket, whose: Inbound | None) -> None:
        self.called, self.listener, self.is_closed = Endpoint.of(*listener.getsockname()), whose, False
        self._address = listener.getsockname()

    def connect(self) -> socket.socket:
        return socket.create_connection(self._address)

    def close(self) -> None:
        self.is_closed = True


HERE = Endpoint(address="198.51.100.1", port=443)
WHOSE = Inbound(InboundKind.LISTENS, 1, 1, HERE, HERE, 0, 0, 0, 0, 0, False, 80, 33, "nginx", None)


def test_a_way_has_further_legs_as_long_as_somebody_of_ours_listens_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        begun: list[PlayedLeg] = []
        whose: Inbound | None = WHOSE

        def begin() -> Leg:
            begun.append(PlayedLeg(listener, whose))
            return begun[-1]

        way = LedWay(begin)
        assert (way.is_ours, way.origin.comm, len(begun)) == (True, "nginx", 1)
        for number in (1, 2, 3):
            way.connect().close()
            assert len(begun) == number
        whose = None
        with pytest.raises(ConnectionRefusedError):
            way.connect()
        way.close()
        assert all(leg.is_closed for leg in begun)


def test_the_oldest_leg_of_a_way_makes_room() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        begun: list[PlayedLeg] = []

        def begin() -> Leg:
            begun.append(PlayedLeg(listener, WHOSE))
            return begun[-1]

        way = LedWay(begin)
        for _ in range(LEGS_LIMIT + 1):
            way.connect().close()
        assert [leg.is_closed for leg in begun] == [True] + [False] * LEGS_LIMIT
        way.close()


def test_a_way_to_somebody_elses_listener_is_nobodys() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        way = LedWay(lambda: PlayedLeg(listener, None))
        assert (way.is_ours, way.origin.pid) == (False, 0)
        way.connect().close()
