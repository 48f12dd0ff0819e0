"""Connections that came in and were led to the gate: whom the policy is asked about, and how they go on."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import AsyncIterator

import policies
import pytest
from gate_house import WAIT_S, House, houses, on_loop
from gate_stage import HTTP, NEVER, TLS, Colleagues
from hellos import hello, server_name
from hypothesis import given
from playbook import Playbook

from mitmsec.audit.event import BytesSeen, ConnectionSeen, FlowHanded, Outcome
from mitmsec.core.known_service import KnownService
from mitmsec.core.messages import Plaintext, Upgrading
from mitmsec.core.model import Action, Confidence, Direction, Endpoint, OnFailure, Process
from mitmsec.core.policy import Policy, Rule
from mitmsec.core.sniff import Shown
from mitmsec.gate.flow import Flow
from mitmsec.gate.inward import Inward
from mitmsec.gate.loop import Gate
from mitmsec.gate.names import Names
from mitmsec.gate.signals import (
    Accepted,
    Ask,
    Close,
    Deadline,
    Dial,
    Dialled,
    Ending,
    FirstBytes,
    Hand,
    Origin,
    OwnerKnown,
    Peek,
    Record,
    Relay,
    RelayEnded,
    Reset,
    ServerSpoke,
    SetDeadline,
    Staff,
    Staffed,
    TakeBack,
    WatchClient,
    WatchServer,
    WorkerUpgrades,
)
from mitmsec.gate.surroundings import Surroundings
from mitmsec.gate.terms import Terms

SERVICE = Process(pid=80, exe="/usr/sbin/nginx", name="nginx", confidence=Confidence.KERNEL)
PARTNER = Endpoint(address="192.0.2.7", port=50_000)


@given(policies.policies, policies.processes, policies.endpoints, policies.shows, policies.moments)
def test_the_policy_is_asked_for_incoming_connections_about_peer_and_service(
    policy: Policy, process: Process, service: Endpoint, shown: Shown, at_s: float
) -> None:
    inward = Inward(policy, PARTNER)
    asked = Endpoint(address=PARTNER.address, port=service.port)
    way = Direction.INBOUND
    early = policy.at_connect(process, asked, at_s, way)
    is_certain = early is not None and early.action is not Action.DECRYPT
    assert inward.at_connect(process, service, at_s) == (early if is_certain else None)
    said = policy.at_hello(process, asked, at_s, shown=shown, direction=way)
    keyed = policy.with_key(said, service, shown.name) if shown.is_tls else said
    assert inward.at_hello(process, service, at_s, shown=shown) == keyed
    assert inward.at_silence(process, service, at_s) == policy.at_silence(process, asked, at_s, way)
    assert inward.with_key(said, service, shown.name) == policy.with_key(said, service, shown.name)
    assert inward.can_judge(process) == policy.can_judge(process, way)
    assert inward.rules == policy.rules


class Way:
    """To a service that the test plays."""

    def __init__(self, service: Endpoint, *, is_ours: bool) -> None:
        self.origin = Origin(remote=service, pid=80, uid=0, comm="nginx")
        self.is_ours, self.closed, self._service = is_ours, 0, service

    def connect(self) -> socket.socket:
        sock = socket.socket()
        sock.setblocking(False)
        error = sock.connect_ex((self._service.address, self._service.port))
        assert error in (0, errno.EINPROGRESS)
        return sock

    def close(self) -> None:
        self.closed += 1


class Door:
    """A gate's listener for connections that came in, and the service behind it."""

    def __init__(self, house: House, policy: Policy, address: str, *, capture: bool, is_ours: bool) -> None:
        self.recorder = house.recorder
        self.service = socket.create_server(("127.0.0.1", 0))
        self.service.settimeout(WAIT_S)
        self.ways: list[Way] = []
        self.is_ours = is_ours
        self.listener = socket.create_server((address, 0))
        around = Surroundings(
            origins=house,
            recorder=house.producer,
            signer=house.gate._around.signer,
            ask=self._ask,
            beat=lambda: None,
            hangs=lambda worker: None,
            ways=self,
        )
        terms = Terms(on_failure=OnFailure.OPEN, capture=capture)
        self.port = self.listener.getsockname()[1]
        self.gate = Gate([], around, policy, terms, inward=[self.listener])
        self.gate.open()

    def begin(self, accepted: socket.socket) -> Way:
        self.ways.append(Way(Endpoint.of(*self.service.getsockname()), is_ours=self.is_ours))
        return self.ways[-1]

    def _ask(self, number: int, origin: Origin) -> None:
        if self.is_ours:
            asyncio.get_running_loop().call_soon(self.gate.owner, number, SERVICE)

    async def call(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def answer(self) -> bytes:
        """To nothing."""
        reader, _ = await self.call()
        return await asyncio.wait_for(reader.read(), WAIT_S)

    async def served(self) -> socket.socket:
        accepted, _ = await asyncio.to_thread(self.service.accept)
        return accepted


@contextlib.asynccontextmanager
async def doors(
    policy: Policy, *, capture: bool = False, is_ours: bool = True, led: bool = True
) -> AsyncIterator[Door]:
    """A door; `led`: it stands on all addresses, so that another than its own is called, as if led here."""
    async with houses() as house:
        address = "0.0.0.0" if led else "127.0.0.1"
        door = Door(house(), policy, address, capture=capture, is_ours=is_ours)
        try:
            yield door
        finally:
            await door.gate.close()
            door.service.close()


async def carried(door: Door) -> None:
    """The peer asks, the service answers, and both end."""
    reader, writer = await door.call()
    writer.write(b"question")
    service = await door.served()
    service.settimeout(WAIT_S)
    assert await asyncio.to_thread(service.recv, 99) == b"question"
    service.sendall(b"an answer")
    service.close()
    assert await asyncio.wait_for(reader.read(), WAIT_S) == b"an answer"
    writer.close()


def inbound(action: Action) -> Policy:
    return Policy(action=Action.BLOCK, inbound=action)


@on_loop
async def test_it_is_carried_on_and_told_from_the_services_side() -> None:
    async with doors(inbound(Action.BYPASS)) as door:
        await carried(door)
        seen = await door.recorder.connection()
        assert (seen.direction, seen.action, seen.outcome) == (Direction.INBOUND, Action.BYPASS, Outcome.COMPLETED)
        assert seen.local == Endpoint.of(*door.service.getsockname())
        assert seen.remote.address == "127.0.0.1"
        assert (seen.bytes_sent, seen.bytes_received) == (len(b"an answer"), len(b"question"))
        assert (seen.process.pid, seen.process.confidence) == (80, Confidence.INFERRED)
        assert [way.closed for way in door.ways] == [1]


@on_loop
async def test_what_is_captured_is_kept() -> None:
    async with doors(inbound(Action.CAPTURE), capture=True) as door:
        await carried(door)
        await door.recorder.connection()
        pieces = [(seen.sent, seen.data) for seen in door.recorder.events if isinstance(seen, BytesSeen)]
        assert pieces == [(True, b"question"), (False, b"an answer")]


@on_loop
async def test_what_is_blocked_gets_no_page_and_reaches_nobody() -> None:
    async with doors(inbound(Action.BLOCK)) as door:
        reader, writer = await door.call()
        writer.write(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), WAIT_S)
        seen = await door.recorder.connection()
        assert (seen.outcome, seen.host, seen.protocol) == (Outcome.BLOCKED, "a.test", "http")
        door.service.setblocking(False)
        with pytest.raises(BlockingIOError):
            door.service.accept()
        assert [way.closed for way in door.ways] == [1]


@on_loop
async def test_nobody_of_ours_is_joined_and_not_recorded() -> None:
    async with doors(inbound(Action.BLOCK), is_ours=False) as door:
        await carried(door)
        async with asyncio.timeout(WAIT_S):
            while door.gate.live:
                await asyncio.sleep(0.01)
        assert [way.closed for way in door.ways] == [1]
        assert door.recorder.events == []


@on_loop
async def test_a_rule_for_incoming_connections_may_ask_for_the_peer() -> None:
    rule = Rule(name="me", action=Action.BYPASS, direction=Direction.INBOUND, address=("127.0.0.1/32",))
    async with doors(Policy(inbound=Action.BLOCK, rules=(rule,))) as door:
        await carried(door)
        assert (await door.recorder.connection()).rule == "me"


@on_loop
async def test_whoever_calls_the_listener_itself_is_a_stranger() -> None:
    async with doors(inbound(Action.BYPASS), led=False) as door:
        with pytest.raises(ConnectionResetError):
            await door.answer()
        assert (await door.recorder.connection()).outcome is Outcome.STRANGER
        assert door.ways == []


# -- decrypted ---------------------------------------------------------------------------------------------------------
SHOP = KnownService(name="shop", names=("a.test",))
HERE = Endpoint(address="198.51.100.1", port=443)


def flow(on_failure: OnFailure = OnFailure.OPEN) -> tuple[Flow, Playbook, Colleagues]:
    """One that came in, up to its first bytes. No certificate of ours can be had, and none is needed."""
    policy, health = Policy(inbound=Action.DECRYPT, services=(SHOP,), on_failure=on_failure), Colleagues()
    health.signing = False
    made = Flow("f", Terms(on_failure=on_failure), Inward(policy, PARTNER), Names(), health)
    made.about.direction = Direction.INBOUND
    play = Playbook(made.told) >> Accepted(PARTNER, HERE, Origin(remote=HERE, pid=80, uid=0, comm="nginx"), 0.0)
    play << SetDeadline << Ask
    play >> OwnerKnown(SERVICE) << SetDeadline(0.3) << Peek(1)
    return made, play, health


def test_tls_for_a_known_service_goes_to_a_worker_and_nothing_is_minted() -> None:
    made, play, _ = flow()
    play >> FirstBytes(TLS) << NEVER << Dial((HERE,))
    play >> Dialled(HERE) << Staff()
    play >> Staffed(3) << NEVER << Record
    handed = play.last.seen
    assert isinstance(handed, FlowHanded)
    assert (handed.direction, handed.process.confidence) == (Direction.INBOUND, Confidence.INFERRED)
    play << Hand
    order = play.last.order
    assert (order.kind, order.name, order.decision.service) == (Plaintext.TLS, "a.test", "shop")
    assert (order.client, order.origin, order.owner) == (PARTNER, HERE, "")
    assert play << WatchClient()
    assert made.about.service == "shop"


OTHER = hello(server_name(b"b.test"))


def test_tls_for_nobody_whose_key_is_known_is_relayed_unread() -> None:
    _, play, _ = flow()
    play >> FirstBytes(OTHER) << NEVER << Dial((HERE,))
    play >> Dialled(HERE) << Relay(False)
    seen = ended_in_order(play)
    assert (seen.action, seen.outcome, seen.host) == (Action.BYPASS, Outcome.COMPLETED, "b.test")
    assert "no [[inbound]] is for b.test on port 443, so it is relayed unread" in seen.reason


def ended_in_order(play: Playbook) -> ConnectionSeen:
    play >> RelayEnded(Ending.ORDERLY, 1, 2) << NEVER << Close() << Record
    assert isinstance(play.last.seen, ConnectionSeen)
    return play.last.seen


def test_where_failures_close_it_is_reset_and_the_service_hears_nothing_of_it() -> None:
    _, play, _ = flow(OnFailure.CLOSED)
    play >> FirstBytes(OTHER) << NEVER << Reset() << Record
    assert (play.last.seen.action, play.last.seen.outcome) == (Action.BLOCK, Outcome.BLOCKED)


def test_plain_http_needs_no_key() -> None:
    _, play, _ = flow()
    play >> FirstBytes(HTTP) << NEVER << Dial((HERE,))
    play >> Dialled(HERE) << Staff()
    play >> Staffed(3) << NEVER << Record << Hand
    assert play.last.order.kind is Plaintext.HTTP
    assert play << WatchClient()


def test_what_no_worker_reads_is_relayed_as_if_it_went_out() -> None:
    _, play, _ = flow()
    play >> FirstBytes(b"SSH-2.0-x\r\n") << NEVER << Dial((HERE,))
    play >> Dialled(HERE) << Relay(False)
    assert ended_in_order(play).action is Action.CAPTURE


def upgrading(on_failure: OnFailure = OnFailure.OPEN) -> Playbook:
    """A dialogue that came in has been agreed to go on under TLS."""
    _, play, _ = flow(on_failure)
    play >> Deadline() << Dial((HERE,))
    play >> Dialled(HERE) << WatchServer()
    play >> ServerSpoke(b"220 a.test ESMTP\r\n") << NEVER << Staff()
    play >> Staffed(3) << NEVER << Record << Hand << WatchClient()
    upgrade = WorkerUpgrades(Upgrading(flow="f", bytes_sent=1, bytes_received=1))
    return play >> upgrade << SetDeadline(30.0) << TakeBack() << Peek(1)


def test_a_dialogue_that_goes_on_under_tls_takes_the_key_of_its_service() -> None:
    play = upgrading()
    play >> FirstBytes(TLS) << NEVER << Staff(3)
    play >> Staffed(3) << NEVER << Record << Hand
    order = play.last.order
    assert (order.kind, order.name, order.decision.service) == (Plaintext.TLS, "a.test", "shop")
    assert play << WatchClient()


def test_a_dialogue_that_goes_on_under_tls_for_nobody_whose_key_is_known_is_what_failures_are() -> None:
    play = upgrading()
    play >> FirstBytes(OTHER) << NEVER << Relay(False)
    assert ended_in_order(play).action is Action.BYPASS
    play = upgrading(OnFailure.CLOSED)
    play >> FirstBytes(OTHER) << NEVER << Reset() << Record
    assert (play.last.seen.action, play.last.seen.outcome) == (Action.BLOCK, Outcome.BLOCKED)
