"""DNS over TCP is heard while it passes, by nobody else, and passes whatever it is."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest
from dns_writer import HTTPS, address, query, response, service
from gate_house import Server, Tape, houses, on_loop

from mitmsec.audit.event import BytesSeen
from mitmsec.core import dns_frames
from mitmsec.core.dns_offers import Offers, limited
from mitmsec.core.model import Action, Direction, Endpoint
from mitmsec.gate import dns_ear
from mitmsec.gate.account import Account
from mitmsec.gate.dns_ear import DnsEar, speaks_dns

QUESTION, ANSWER = query("a.test"), response("a.test", address("a.test", "192.0.2.1"))


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


class Heard:
    """An ear, and what it says."""

    def __init__(self, tap: Tape | None = None) -> None:
        self.messages: list[tuple[bool, bytes]] = []
        self.enough = 0
        self.ear = DnsEar(lambda sent, message: self.messages.append((sent, message)), tap, self._enough)

    def _enough(self) -> None:
        self.enough += 1


def test_it_hears_both_directions_each_by_itself() -> None:
    heard = Heard()
    asked, answered = framed(QUESTION), framed(ANSWER)
    for sent, data in ((True, asked[:5]), (False, answered[:9]), (True, asked[5:]), (False, answered[9:])):
        assert heard.ear.take(sent, data)
    assert heard.messages == [(True, QUESTION), (False, ANSWER)]
    assert not heard.ear.wait(lambda: None)
    assert not heard.enough


def test_what_a_capture_keeps_and_refuses_and_has_no_room_for_is_its_own_business() -> None:
    tape = Tape()
    heard = Heard(tape)
    assert heard.ear.take(True, framed(QUESTION))
    assert bytes(tape.kept[True]) == framed(QUESTION)
    tape.refuses = tape.full = True
    assert not heard.ear.take(False, framed(ANSWER))
    assert heard.messages == [(True, QUESTION)], "what does not pass is not heard"
    assert heard.ear.wait(lambda: None)


def test_it_says_when_it_has_heard_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_frames, "STREAM_LIMIT_BYTES", 100)
    heard = Heard()
    assert heard.ear.take(False, framed(ANSWER))
    assert not heard.enough
    assert heard.ear.take(False, framed(bytes(100)))
    assert heard.enough


@pytest.mark.parametrize(
    ("port", "direction", "selected", "does"),
    [
        (53, Direction.OUTBOUND, True, True),
        (853, Direction.OUTBOUND, True, False),
        (53, Direction.INBOUND, True, False),
        (53, Direction.OUTBOUND, False, False),
    ],
)
def test_only_selected_programs_and_their_name_servers_speak_it(
    port: int, direction: Direction, *, selected: bool, does: bool
) -> None:
    about = Account("f")
    about.remote, about.direction, about.selected = Endpoint.of("192.0.2.53", port), direction, selected
    assert speaks_dns(about) is does


@pytest.fixture
def resolver_port(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    return lambda port: monkeypatch.setattr(dns_ear, "DNS_PORT", port)


@pytest.mark.parametrize("action", [Action.BYPASS, Action.CAPTURE])
def test_a_flow_to_a_name_server_is_heard_before_the_answer_arrives(
    resolver_port: Callable[[int], None], action: Action
) -> None:
    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(framed(QUESTION)))
        writer.write(framed(ANSWER))
        await reader.read()
        writer.close()

    async def scenario() -> None:
        async with houses() as make, Server(answers) as server:
            resolver_port(server.address[1])
            house = make(action, capture=True)
            house.divert(server.address)
            reader, writer = await house.client()
            writer.write(framed(QUESTION))
            assert await reader.readexactly(len(framed(ANSWER))) == framed(ANSWER)
            (asked, answered) = house.dns
            assert asked[2:] == (True, QUESTION)
            assert answered == (*asked[:2], False, ANSWER)
            assert asked[1] == Endpoint.of(*server.address[:2])
            writer.close()
            await house.recorder.connection()

    asyncio.run(scenario())


def test_what_is_no_dns_passes_whole_and_after_a_while_unread(resolver_port: Callable[[int], None]) -> None:
    data = random.Random(3).randbytes(3 << 20)

    async def gives(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        writer.close()

    async def scenario() -> None:
        async with houses() as make, Server(gives) as server:
            resolver_port(server.address[1])
            house = make(Action.BYPASS)
            house.divert(server.address)
            reader, writer = await house.client()
            assert await reader.read(-1) == data
            (flow,) = house.gate._flows.values()
            assert flow._relay is not None
            assert flow._relay.tee is None, "joined unread from then on"
            writer.close()
            await house.recorder.connection()

    asyncio.run(scenario())


OFFER = response("a.test", service("a.test"), kind=HTTPS).replace(b"\2h2", b"\2h3")
NO_H3 = Offers(h3=False)


@pytest.mark.parametrize(
    ("action", "offers", "kind", "is_limited"),
    [
        (Action.DECRYPT, NO_H3, HTTPS, True),
        (Action.CAPTURE, NO_H3, HTTPS, True),
        (Action.BYPASS, NO_H3, HTTPS, False),
        (Action.CAPTURE, Offers(), HTTPS, False),
        (Action.CAPTURE, NO_H3, 1, False),
    ],
)
def test_what_a_name_server_says_offers_no_more_than_the_terms_say_unless_the_flow_is_bypassed(
    resolver_port: Callable[[int], None], action: Action, offers: Offers, kind: int, *, is_limited: bool
) -> None:
    """In pieces, and the capture keeps what came."""
    wire = framed(OFFER)

    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(framed(query("a.test", kind))))
        for piece in (wire[:1], wire[1:30], wire[30:], wire[:9]):
            writer.write(piece)
            await asyncio.sleep(0.02)
        writer.close()

    async def scenario() -> None:
        async with houses() as make, Server(answers) as server:
            resolver_port(server.address[1])
            house = make(action, capture=True, offers=offers)
            house.divert(server.address)
            reader, writer = await house.client()
            writer.write(framed(query("a.test", kind)))
            expected = framed(limited(OFFER, NO_H3)) if is_limited else wire
            assert limited(OFFER, NO_H3) != OFFER
            assert await reader.read(-1) == expected + wire[:9]
            writer.close()
            seen = await house.recorder.connection()
            assert seen.bytes_received == len(wire) + 9
            kept = b"".join(one.data for one in house.recorder.events if isinstance(one, BytesSeen) and not one.sent)
            assert kept == (b"" if action is Action.BYPASS else wire + wire[:9])

    asyncio.run(scenario())


@pytest.mark.parametrize("is_asked", [True, False])
def test_after_the_last_message_that_is_heard_answers_are_still_limited_where_they_were_asked_for(
    resolver_port: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, *, is_asked: bool
) -> None:
    monkeypatch.setattr(dns_frames, "STREAM_LIMIT_BYTES", len(framed(OFFER)) + 9)
    wire = framed(OFFER) * 3
    asked = framed(query("a.test", HTTPS if is_asked else 1))

    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(asked))
        writer.write(wire[:-5])
        await asyncio.sleep(0.05)
        writer.write(wire[-5:])
        writer.close()

    async def scenario() -> None:
        async with houses() as make, Server(answers) as server:
            resolver_port(server.address[1])
            house = make(Action.CAPTURE, offers=NO_H3)
            house.divert(server.address)
            reader, writer = await house.client()
            writer.write(asked)
            assert await reader.read(-1) == (framed(limited(OFFER, NO_H3)) * 3 if is_asked else wire)
            writer.close()

    asyncio.run(scenario())


@on_loop
async def test_other_flows_are_not_heard() -> None:
    async def echoes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(100))
        writer.close()

    async with houses() as make, Server(echoes) as server:
        house = make(Action.BYPASS)
        house.divert(server.address)
        reader, writer = await house.client()
        writer.write(framed(QUESTION))
        await reader.read(-1)
        assert house.dns == []
        writer.close()
