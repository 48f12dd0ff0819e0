"""The relay between programs and origins of QUIC: real sockets on loopback, hellos of a real client."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from mitmsec.audit.event import ConnectionSeen, FaultSeen, Outcome, Seen
from mitmsec.core.model import Action, Confidence, Endpoint, OnFailure, Process
from mitmsec.core.policy import Policy
from mitmsec.core.rules import Rule
from mitmsec.gate import quic_relay
from mitmsec.gate.asking import Asks
from mitmsec.gate.crew import Crew
from mitmsec.gate.faults import Faults
from mitmsec.gate.learned import Learned
from mitmsec.gate.quic_decrypting import Decrypting
from mitmsec.gate.quic_ground import Around, Led
from mitmsec.gate.quic_relay import QuicRelay
from mitmsec.gate.signals import Origin, OwnerKnown
from mitmsec.gate.terms import Terms
from mitmsec_certs.packet_cipher import Aes128

NO_BANK = Policy(rules=(Rule(name="no bank", action=Action.BLOCK, host=("bank.test",)),))

LATER = b"\x40 a packet of a later stage"


def udp(address: str = "127.0.0.1") -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, 0))
    sock.setblocking(False)
    return sock


def hello(name: str) -> list[bytes]:
    configuration = QuicConfiguration(alpn_protocols=["h3"], server_name=name)
    one = QuicConnection(configuration=configuration)
    one.connect(("192.0.2.1", 443), now=0.0)
    return [datagram for datagram, _ in one.datagrams_to_send(now=0.0)]


class Stage:
    """An origin, the relay, and a program; as the kernel would have led the one to the other."""

    def __init__(self, held: contextlib.ExitStack, address: str) -> None:
        self.origin, self.program = (held.enter_context(udp(address)) for _ in range(2))
        self._held = held
        self.exe: str | None = None
        self.relay_socket = udp(address)
        self.at = self.relay_socket.getsockname()
        self.remote = Endpoint.of(*self.origin.getsockname()[:2])
        self.bound: str | None = None
        self.recorded: list[Seen] = []
        self.asked: list[Asks] = []
        self.given_up: list[str] = []
        self.cookies: dict[int, int] = {}
        self.terms, self.is_recording, self.is_closed = Terms(on_failure=OnFailure.OPEN), True, False
        self.answers, self.found = True, 0
        self.off, self.recording, self.signing = False, True, True  # as mitmsec.gate.terms.Health
        around = Around(
            governing=lambda: (NO_BANK, self.terms),
            record=self.recorded.append,
            is_recording=lambda: self.is_recording,
            faults=Faults(self.recorded.append, "session"),
            ask=self._ask,
            give_up=lambda flow: self.given_up.append(flow.id),
            names_of=lambda address: None,
            crew=(crew := Crew(asyncio.get_running_loop(), Faults(self.recorded.append, "session"), lambda _: None)),
            mint=lambda flow, name: self.minted.append((flow, name)),
            withdraw=lambda flow: self.withdrawn.append(flow),
            decrypting=Decrypting(self, Learned()),
        )
        self.crew = crew
        self.minted: list[tuple[str, str]] = []
        self.withdrawn: list[str] = []
        self.is_led = self.is_told = True
        self.forgotten: list[int] = []
        self.relay = QuicRelay([self.relay_socket], self, Aes128(), around)

    def another_program(self) -> socket.socket:
        return self._held.enter_context(udp())

    def _ask(self, flow: Asks, origin: Origin) -> None:
        self.asked.append(flow)
        if self.answers:
            confidence = Confidence.KERNEL if self.exe else Confidence.UNKNOWN
            flow.tell(OwnerKnown(Process(pid=origin.pid, user="0", exe=self.exe, confidence=confidence)))

    def find(self, client: Endpoint, relay: Endpoint) -> Led | None:
        assert relay.port == self.at[1]
        self.found += 1
        if not self.is_led:
            return None
        origin = Origin(remote=self.remote, pid=7, uid=0, comm="curl", bound=self.bound) if self.is_told else None
        return Led(self.cookies.get(client.port, client.port), origin)

    def forget(self, client: Endpoint, relay: Endpoint, cookie: int) -> None:
        assert relay.port == self.at[1]
        self.forgotten.append(cookie)

    def close(self) -> None:
        self.is_closed = True

    def send(self, *datagrams: bytes) -> None:
        for datagram in datagrams:
            self.program.sendto(datagram, self.at)

    @property
    def connections(self) -> list[ConnectionSeen]:
        return [seen for seen in self.recorded if isinstance(seen, ConnectionSeen)]


def played(story: Callable[[Stage], Awaitable[None]], address: str = "127.0.0.1") -> None:
    async def run() -> None:
        with contextlib.ExitStack() as held:
            stage = Stage(held, address)
            try:
                await asyncio.wait_for(story(stage), 30)
            finally:
                stage.relay.close()
                assert stage.is_closed
                assert len(stage.relay) == 0

    asyncio.run(run())


async def said(sock: socket.socket) -> tuple[bytes, Any]:
    return await asyncio.get_running_loop().sock_recvfrom(sock, 65535)


def is_empty(sock: socket.socket) -> bool:
    try:
        return not sock.recv(9, socket.MSG_PEEK)
    except BlockingIOError:
        return True


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_what_passes_comes_whole_and_so_do_the_answers(address: str) -> None:
    async def story(stage: Stage) -> None:
        first = hello("origin.test")
        stage.send(*first)
        for datagram in first:
            heard, whose = await said(stage.origin)
            assert heard == datagram
        stage.origin.sendto(b"answered", whose)
        assert (await said(stage.program))[0] == b"answered"
        stage.is_led = False  # the program closes its socket
        await until(lambda: bool(stage.connections))
        (seen,) = stage.connections
        assert (seen.host, seen.action, seen.outcome) == ("origin.test", Action.BYPASS, Outcome.COMPLETED)
        assert (seen.bytes_received, seen.datagrams_sent) == (8, len(first))
        assert stage.given_up == [stage.asked[0].id]
        assert stage.forgotten == [stage.program.getsockname()[1]]

    played(story, address)


def test_what_is_refused_is_told_so_and_its_origin_hears_nothing() -> None:
    async def story(stage: Stage) -> None:
        stage.send(*hello("bank.test"))
        answer, _ = await said(stage.program)
        assert answer[0] & 0x80
        (seen,) = stage.connections
        assert (seen.action, seen.rule) == (Action.BLOCK, "no bank")
        assert is_empty(stage.origin)

    played(story)


def test_who_was_not_led_here_is_not_heard() -> None:
    async def story(stage: Stage) -> None:
        stage.is_led = False
        stage.send(*hello("origin.test"))
        await until(lambda: is_empty(stage.relay_socket))
        assert stage.asked == []
        assert len(stage.relay) == 0

    played(story)


def test_a_kernel_that_cannot_say_leads_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(stage: Stage) -> None:
        def no_memory(client: Endpoint, relay: Endpoint) -> None:
            raise OSError(12, "no memory")

        monkeypatch.setattr(stage, "find", no_memory)
        stage.send(*hello("origin.test"))
        await until(lambda: is_empty(stage.relay_socket))
        assert len(stage.relay) == 0

    played(story)


def test_while_it_is_held_nothing_is_heard_and_nothing_lost() -> None:
    async def story(stage: Stage) -> None:
        stage.relay.hold()
        stage.send(*hello("origin.test"))
        await asyncio.sleep(0.1)
        assert stage.asked == []
        stage.relay.resume()
        await said(stage.origin)

    played(story)


def test_what_cannot_be_recorded_does_not_pass_under_closed() -> None:
    async def story(stage: Stage) -> None:
        stage.terms, stage.is_recording = Terms(on_failure=OnFailure.CLOSED), False
        stage.send(*hello("origin.test"))
        await until(lambda: bool(stage.connections))
        assert stage.connections[0].action is Action.BLOCK
        assert is_empty(stage.origin)

    played(story)


def test_another_socket_at_the_same_port_is_another_flow() -> None:
    async def story(stage: Stage) -> None:
        stage.send(*hello("origin.test"))
        await said(stage.origin)
        stage.cookies[stage.program.getsockname()[1]] = 1
        await until(lambda: bool(stage.connections))
        stage.send(*hello("bank.test"))
        await until(lambda: len(stage.connections) == 2)
        assert [seen.action for seen in stage.connections] == [Action.BYPASS, Action.BLOCK]

    played(story)


def test_another_socket_at_the_same_port_is_another_flow_whatever_it_sends() -> None:
    """Without a hello it would go on under the name of the one before, and by its decision."""

    async def story(stage: Stage) -> None:
        stage.send(*hello("origin.test"))
        await said(stage.origin)
        await asyncio.sleep(2 * quic_relay.SURE_S)
        stage.cookies[stage.program.getsockname()[1]] = 1
        stage.send(LATER)
        assert (await said(stage.origin))[0] == LATER
        assert [seen.datagrams_sent for seen in stage.connections] == [1]
        assert len(stage.asked) == 2

    played(story)


def test_a_flow_whose_origin_goes_on_answering_ends_with_its_socket() -> None:
    async def story(stage: Stage) -> None:
        stage.send(*hello("origin.test"))
        _, whose = await said(stage.origin)
        stage.is_led = False
        while len(stage.relay):
            stage.origin.sendto(b"answered", whose)
            await asyncio.sleep(0.05)
        assert [seen.outcome for seen in stage.connections] == [Outcome.COMPLETED]

    played(story)


def test_a_socket_of_which_the_kernel_tells_no_more_goes_on_and_begins_no_other_flow() -> None:
    """Its place in the map was taken by another's."""

    async def story(stage: Stage) -> None:
        stage.send(*hello("origin.test"))
        await said(stage.origin)
        stage.is_told = False
        await asyncio.sleep(quic_relay.LOOK_S + 2 * quic_relay.SURE_S)
        stage.send(LATER)
        assert (await said(stage.origin))[0] == LATER
        stage.relay.end_all()
        stage.send(LATER)
        await until(lambda: is_empty(stage.relay_socket))
        assert len(stage.relay) == 0

    played(story)


def test_the_kernel_is_asked_now_and_then_and_not_for_each_datagram() -> None:
    async def story(stage: Stage) -> None:
        stage.send(*hello("origin.test"))
        await said(stage.origin)
        before, began_s = stage.found, time.monotonic()
        for _ in range(300):
            stage.send(LATER)
            await said(stage.origin)
        most = (time.monotonic() - began_s) / quic_relay.SURE_S + 1
        assert stage.found - before <= most < 100

    played(story)


def test_a_socket_that_is_connected_elsewhere_is_another_flow() -> None:
    async def story(stage: Stage) -> None:
        stage.send(*hello("origin.test"))
        await said(stage.origin)
        with udp() as elsewhere:
            stage.remote = Endpoint.of(*elsewhere.getsockname()[:2])
            stage.send(*hello("origin.test"))
            await said(elsewhere)
        assert len(stage.connections) == 1

    played(story)


def test_an_owner_who_is_not_told_is_not_waited_for_for_ever() -> None:
    async def story(stage: Stage) -> None:
        stage.answers = False
        stage.send(*hello("origin.test"))
        await said(stage.origin)  # after two seconds, by on_failure
        assert [seen.what for seen in stage.recorded if isinstance(seen, FaultSeen)] == ["owner_unknown"]

    played(story)


def test_origins_that_cannot_be_reached_and_refuse_are_the_programs_business() -> None:
    async def story(stage: Stage) -> None:
        stage.origin.close()
        first = hello("origin.test")
        stage.send(*first)
        await until(lambda: len(stage.relay) == 1 and is_empty(stage.relay_socket))
        await asyncio.sleep(0.05)  # ECONNREFUSED comes back
        stage.send(b"\x40later")
        stage.relay.end_all()
        assert stage.connections[0].outcome is Outcome.CUT
        stage.remote = Endpoint(address="240.0.0.1", port=443)
        stage.send(*first)
        await until(lambda: len(stage.relay) == 1)

    played(story)


def test_what_a_program_has_bound_is_bound_here_where_it_can_be() -> None:
    async def story(stage: Stage) -> None:
        stage.bound = "127.0.0.9"
        stage.send(*hello("origin.test"))
        assert (await said(stage.origin))[1][0] == "127.0.0.9"
        stage.relay.end_all()
        stage.bound = "192.0.2.77"
        stage.send(*hello("origin.test"))
        await said(stage.origin)

    played(story)


def test_without_a_descriptor_nothing_goes_on_and_that_is_a_fault() -> None:
    async def story(stage: Stage) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.closing(socket.socket()) as last:
            resource.setrlimit(resource.RLIMIT_NOFILE, (last.fileno(), hard))
        try:
            stage.send(*hello("origin.test"))
            await until(lambda: any(isinstance(seen, FaultSeen) for seen in stage.recorded))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        (fault,) = [seen for seen in stage.recorded if isinstance(seen, FaultSeen)]
        assert (fault.what, fault.failed) == ("not_dialled", OnFailure.CLOSED)

    played(story)


def test_the_quietest_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quic_relay, "FLOWS_LIMIT", 1)

    async def story(stage: Stage) -> None:
        stage.send(*hello("origin.test"))
        await said(stage.origin)
        with udp() as other:
            other.sendto(hello("origin.test")[0], stage.at)
            await until(lambda: bool(stage.connections))
            assert stage.connections[0].outcome is Outcome.CUT
            assert len(stage.relay) == 1

    played(story)
