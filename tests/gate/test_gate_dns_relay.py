"""The relay between programs and name servers: real sockets on loopback; nobody is root here."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from ipaddress import ip_address

import pytest

from mitmsec.core.model import Endpoint
from mitmsec.gate import dns_relay
from mitmsec.gate.dns_relay import DnsRelay

IP_PKTINFO = 8


def udp(address: str = "127.0.0.1", port: int = 0) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, port))
    sock.setblocking(False)
    return sock


class Servers:
    """Who is behind a relay, as the kernel's maps would say it."""

    def __init__(self) -> None:
        self.known: dict[int, Endpoint] = {}
        self.led: set[Endpoint] = set()
        self.withdrawn: list[Endpoint] = []
        self.strangers: set[Endpoint] = set()
        self.closed = False

    def leads(self, asker: Endpoint, relay: Endpoint) -> bool:
        assert relay.port in self.known
        assert ip_address(relay.address).is_loopback
        return asker not in self.strangers

    def behind(self, port: int) -> Endpoint | None:
        return self.known.get(port)

    def withdraw(self, server: Endpoint) -> None:
        self.led.discard(server)
        self.withdrawn.append(server)

    def restore(self, server: Endpoint, port: int) -> None:
        assert self.known[port] == server
        self.led.add(server)

    def close(self) -> None:
        self.closed = True


class Stage:
    """A server, its relay, and programs; all sockets close with it."""

    def __init__(
        self, held: contextlib.ExitStack, address: str = "127.0.0.1", limited: Callable[[bytes], bytes] = bytes
    ) -> None:
        self._held, self._address = held, address
        self.servers, self.heard = Servers(), list[tuple[Endpoint, Endpoint, bool, bytes]]()
        self.server = self.program()
        self.relay_socket = udp(address)
        if self.relay_socket.family == socket.AF_INET6:
            self.relay_socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            self.relay_socket.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        self.at = self.relay_socket.getsockname()
        self.behind = Endpoint.of(*self.server.getsockname()[:2])
        self.serve(self.behind)
        self.relay = DnsRelay([self.relay_socket], self.servers, lambda *heard: self.heard.append(heard), limited)

    def serve(self, server: Endpoint) -> None:
        self.servers.known[self.at[1]] = server
        self.servers.led.add(server)

    def program(self) -> socket.socket:
        return self._held.enter_context(udp(self._address))


def played(
    story: Callable[[Stage], Awaitable[None]],
    address: str = "127.0.0.1",
    limited: Callable[[bytes], bytes] = bytes,
) -> None:
    async def run() -> None:
        with contextlib.ExitStack() as held:
            stage = Stage(held, address, limited)
            try:
                await asyncio.wait_for(story(stage), 30)
            finally:
                stage.relay.close()
                assert stage.servers.closed
                assert len(stage.relay) == 0

    asyncio.run(run())


async def said(sock: socket.socket) -> tuple[bytes, tuple[str, int]]:
    message, whose = await asyncio.get_running_loop().sock_recvfrom(sock, 65535)
    return message, whose[:2]


def is_empty(sock: socket.socket) -> bool:
    try:
        return not sock.recv(9, socket.MSG_PEEK)
    except BlockingIOError:
        return True


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.005)


def age(stage: Stage, port: int, by_s: float = 3600) -> None:
    """So long ago has this port of ours been asked for the last time."""
    (asker,) = [one for one in stage.relay._askers.values() if one.ours.getsockname()[1] == port]
    asker.last_s -= by_s


@pytest.mark.parametrize("address", ["127.0.0.1", "127.4.0.9", "::1"])
def test_question_and_answer_pass_unchanged_and_both_are_heard_before_they_are_had(address: str) -> None:
    async def story(stage: Stage) -> None:
        program = stage.program()
        for question, answer in ((b"q", b"a" * 9000), (b"", b""), (b"\0\xff" * 700, b"again")):
            program.sendto(question, stage.at)
            asked, ours = await said(stage.server)
            assert (asked, stage.heard[-1][2:]) == (question, (True, question))
            assert ours[1] not in (stage.at[1], program.getsockname()[1])
            stage.server.sendto(answer, ours)
            assert await said(program) == (answer, stage.at[:2])
            local = Endpoint.of(*program.getsockname()[:2])
            assert stage.heard[-1] == (local, stage.behind, False, answer)
        assert len(stage.relay) == 1

    played(story, address)


def test_an_answer_is_heard_as_it_came_and_had_as_it_may_be() -> None:
    async def story(stage: Stage) -> None:
        program = stage.program()
        program.sendto(b"q", stage.at)
        _, ours = await said(stage.server)
        stage.server.sendto(b"an offer", ours)
        assert await said(program) == (b"an OFFER", stage.at[:2])
        assert stage.heard[-1][2:] == (False, b"an offer")

    played(story, limited=lambda answer: answer.replace(b"offer", b"OFFER"))


def test_each_program_gets_what_its_own_question_brought_whatever_stands_in_it() -> None:
    async def story(stage: Stage) -> None:
        programs = [stage.program() for _ in range(5)]
        for program in programs:
            program.sendto(b"the same", stage.at)
        askers = [(await said(stage.server))[1] for _ in programs]
        assert len(set(askers)) == 5
        for number, asker in enumerate(askers):
            stage.server.sendto(b"%d" % number, asker)
        assert sorted([(await said(program))[0] for program in programs]) == [b"0", b"1", b"2", b"3", b"4"]

    played(story)


def test_an_answer_from_anybody_else_is_none() -> None:
    async def story(stage: Stage) -> None:
        program, other = stage.program(), stage.program()
        program.sendto(b"q", stage.at)
        _, ours = await said(stage.server)
        other.sendto(b"forged", ours)
        stage.server.sendto(b"true", ours)
        assert (await said(program))[0] == b"true"
        assert [message for *_, message in stage.heard] == [b"q", b"true"]

    played(story)


def test_the_answer_comes_from_where_the_question_was_sent_to() -> None:
    """Of all the machine's addresses; a connected socket would not hear another."""

    async def story(stage: Stage) -> None:
        with udp("0.0.0.0") as everywhere, udp() as program:
            everywhere.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
            port = everywhere.getsockname()[1]
            stage.servers.known[port] = stage.behind
            relay = DnsRelay([everywhere], stage.servers, lambda *heard: None)
            for address in ("127.0.0.1", "127.8.8.8"):
                program.sendto(b"q", (address, port))
                stage.server.sendto(b"a", (await said(stage.server))[1])
                assert await said(program) == (b"a", (address, port))
            assert len(relay) == 2
            relay.close()

    played(story)


def test_the_quietest_makes_room_and_time_does_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_relay, "ASKERS_LIMIT", 2)

    async def story(stage: Stage) -> None:
        programs = [stage.program() for _ in range(3)]
        askers = []
        for program in programs:
            program.sendto(b"q", stage.at)
            askers.append((await said(stage.server))[1])
            assert len(stage.relay) <= 2
        stage.server.sendto(b"late", askers[0])
        stage.server.sendto(b"a", askers[2])
        assert (await said(programs[2]))[0] == b"a"
        with pytest.raises(BlockingIOError):
            programs[0].recv(9)
        for asker in askers[1:]:
            age(stage, asker[1])
        stage.relay._sweep()
        assert len(stage.relay) == 0

    played(story)


def test_it_is_looked_by_itself_who_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_relay, "IDLE_S", 0.05)

    async def story(stage: Stage) -> None:
        stage.program().sendto(b"q", stage.at)
        await said(stage.server)
        await until(lambda: len(stage.relay) == 0)

    played(story)


def test_who_goes_on_asking_keeps_its_place_while_others_lose_theirs() -> None:
    async def story(stage: Stage) -> None:
        busy, quiet = stage.program(), stage.program()
        ports = []
        for program in (busy, quiet, busy):
            program.sendto(b"q", stage.at)
            ports.append((await said(stage.server))[1][1])
            age(stage, ports[-1], 20)
        age(stage, ports[1])
        stage.relay._sweep()
        assert [asker.ours.getsockname()[1] for asker in stage.relay._askers.values()] == [ports[0]] == [ports[2]]

    played(story)


def test_a_server_that_refuses_is_withdrawn_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_relay, "WITHDRAWN_S", 0.05)

    async def story(stage: Stage) -> None:
        with udp() as nobody:
            gone = Endpoint.of(*nobody.getsockname())
        stage.serve(gone)
        program = stage.program()
        program.sendto(b"q", stage.at)
        await until(lambda: stage.servers.withdrawn == [gone])
        assert len(stage.relay) == 0
        await until(lambda: gone in stage.servers.led)

    played(story)


def test_one_that_stays_silent_to_us_is_withdrawn_and_for_twice_as_long_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Something may let programs through to it, and not the gate."""
    monkeypatch.setattr(dns_relay, "SILENT_S", 0.0)

    async def story(stage: Stage) -> None:
        program, loop = stage.program(), asyncio.get_running_loop()

        async def asked() -> tuple[str, int]:
            program.sendto(b"q", stage.at)
            return (await said(stage.server))[1]

        for times in (1, 2, 4):
            for _ in range(dns_relay.SILENT_QUESTIONS):
                assert stage.behind in stage.servers.led
                await asked()
            ours = await asked()
            timer = stage.relay._withdrawn[stage.behind]
            assert stage.behind not in stage.servers.led
            assert 0 < timer.when() - loop.time() - (times - 1) * dns_relay.WITHDRAWN_S <= dns_relay.WITHDRAWN_S
            timer.cancel()
            stage.relay._restore(stage.behind, stage.at[1])
        stage.server.sendto(b"a", ours)
        assert (await said(program))[0] == b"a"
        for _ in range(dns_relay.SILENT_QUESTIONS + 1):
            await asked()
        assert stage.relay._withdrawn[stage.behind].when() - loop.time() <= dns_relay.WITHDRAWN_S

    played(story)


@pytest.mark.parametrize("why", ["it answers now and then", "that is seconds ago", "it is asked once in a while"])
def test_who_answers_or_was_hardly_asked_is_not_silent(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    monkeypatch.setattr(dns_relay, "SILENT_S", 3600.0 if "seconds" in why else 0.0)

    async def story(stage: Stage) -> None:
        program = stage.program()
        for number in range(4 * dns_relay.SILENT_QUESTIONS):
            program.sendto(b"q", stage.at)
            _, ours = await said(stage.server)
            if not number % dns_relay.SILENT_QUESTIONS:
                if "answers" in why:
                    stage.server.sendto(b"a", ours)
                    await said(program)
                elif "while" in why:
                    stage.relay._known[stage.behind].last_s -= 2 * dns_relay.IDLE_S
        assert stage.servers.withdrawn == []

    played(story)


def test_one_that_cannot_be_reached_at_all_is_withdrawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(stage: Stage) -> None:
        nowhere = Endpoint.of("255.255.255.255", 53)  # needs a permission that we have not asked for
        stage.serve(nowhere)
        for _ in range(2):
            stage.program().sendto(b"q", stage.at)
        await until(lambda: nowhere not in stage.servers.led)
        await asyncio.sleep(0)
        assert len(stage.relay._withdrawn) == 1
        assert stage.heard == []

    played(story)


def test_an_asker_from_where_nobody_could_ask_is_asked_for_from_elsewhere() -> None:
    """From a link's address without its link, or one that has just gone."""
    with contextlib.ExitStack() as held:
        server = held.enter_context(udp())
        ours = held.enter_context(dns_relay._towards(Endpoint.of(*server.getsockname()), ("203.0.113.77", 5)))
        ours.send(b"q")
        server.setblocking(True)
        server.settimeout(30)
        assert server.recvfrom(9) == (b"q", ours.getsockname())


def test_where_nobody_is_behind_the_relay_yet_nothing_is_sent() -> None:
    async def story(stage: Stage) -> None:
        stage.servers.known.clear()
        program = stage.program()
        program.sendto(b"too early", stage.at)
        await until(lambda: is_empty(stage.relay_socket))
        stage.serve(stage.behind)
        program.sendto(b"q", stage.at)
        assert (await said(stage.server))[0] == b"q"

    played(story)


def test_many_at_once_are_taken_in_turns_and_all_are_relayed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_relay, "TURN_LIMIT", 2)

    async def story(stage: Stage) -> None:
        program = stage.program()
        for number in range(7):
            program.sendto(b"%d" % number, stage.at)
        asked = [await said(stage.server) for _ in range(7)]
        assert [message for message, _ in asked] == [b"%d" % number for number in range(7)]
        for message, ours in asked:
            stage.server.sendto(message, ours)
        assert [(await said(program))[0] for _ in range(7)] == [message for message, _ in asked]

    played(story)


def test_a_server_that_never_stops_takes_few_answers_worth_of_a_turn() -> None:
    async def story(stage: Stage) -> None:
        program = stage.program()
        program.sendto(b"q", stage.at)
        _, ours = await said(stage.server)
        for number in range(50):
            stage.server.sendto(b"%d" % number, ours)
        (asker,) = stage.relay._askers.values()
        stage.relay._answered(asker)
        assert len(stage.heard) == 1 + dns_relay.ANSWERS_TURN_LIMIT
        assert [(await said(program))[0] for _ in range(50)] == [b"%d" % number for number in range(50)]

    played(story)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_of_whoever_was_not_led_here_nothing_is_sent_or_heard_and_no_socket_is_kept(address: str) -> None:
    async def story(stage: Stage) -> None:
        stranger, program = stage.program(), stage.program()
        stage.servers.strangers.add(Endpoint.of(*stranger.getsockname()[:2]))
        for _ in range(3):
            stranger.sendto(b"let me", stage.at)
        program.sendto(b"q", stage.at)
        asked, ours = await said(stage.server)
        assert asked == b"q"
        assert is_empty(stage.server)
        assert [message for _, _, _, message in stage.heard] == [b"q"]
        assert len(stage.relay) == 1
        stage.server.sendto(b"a", ours)
        assert (await said(program))[0] == b"a"

    played(story, address)
