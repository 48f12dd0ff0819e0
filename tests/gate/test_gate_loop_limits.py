"""The gate as a whole where something runs out, goes wrong or ends: limits, our own errors, time, draining."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import ssl
from typing import Any

import pytest
import trustme
from gate_house import CURL, WAIT_S, House, Server, houses, on_loop, wait_reset
from hellos import hello, server_name

from mitmsec.audit.event import BytesSeen, ConnectionSeen, Outcome
from mitmsec.audit.producer import Producer
from mitmsec.channel import ChannelFull
from mitmsec.core.model import Action, OnFailure
from mitmsec.core.policy import Policy, Rule
from mitmsec.gate import loop as module
from mitmsec.gate.descriptors import RESERVED_FDS, flows_limit

TLS = hello(server_name(b"a.test"))
NAMED = Policy(action=Action.BYPASS, rules=(Rule(name="host", host=("a.test",), action=Action.BLOCK),))


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(1 << 20):
        pass
    writer.close()


async def exchange(house: House, data: bytes) -> bytes:
    """What an echoing origin gives back, read to its end."""
    reader, writer = await house.client()
    writer.write(data)
    writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), WAIT_S)
    writer.close()
    return answer


class Authority:
    """Certificates for one test: an origin's context, and a client's that trusts it."""

    def __init__(self) -> None:
        self.ca = trustme.CA()
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert("a.test").configure_cert(self.server)
        self.client = ssl.create_default_context()
        self.ca.configure_trust(self.client)


# --- our own errors ---------------------------------------------------------------------------------------------------
@on_loop
async def test_an_error_of_our_own_costs_one_flow_and_no_other() -> None:
    class Broken(Policy, frozen=True):
        def at_connect(self, process: Any, remote: Any, at_s: float) -> Any:
            raise KeyError("a bug")

    async with houses() as make, Server(echo) as origin:
        for on_failure, answer in ((OnFailure.OPEN, b"\x80x"), (OnFailure.CLOSED, b"")):
            house = make(Broken(), on_failure=on_failure)
            house.divert(origin.address)
            with contextlib.suppress(ConnectionResetError):
                assert await exchange(house, b"\x80x") == answer
            seen = await house.recorder.connection()
            assert seen.outcome is Outcome.FAULT
            await house.gate.drain(0)
            assert house.recorder.faults() == ["gate_failed"]


@on_loop
async def test_an_error_while_an_error_is_handled_ends_the_flow_and_nothing_else() -> None:
    class Broken(Policy, frozen=True):
        def at_connect(self, process: Any, remote: Any, at_s: float) -> Any:
            raise KeyError("a bug")

        def at_hello(self, process: Any, remote: Any, at_s: float, **more: Any) -> Any:
            raise KeyError("another")

    async with houses() as make:
        house = make(Broken(), on_failure=OnFailure.CLOSED)
        house.divert(("192.0.2.1", 80))
        with house.dial() as client:
            assert await asyncio.to_thread(wait_reset, client)
        assert house.gate.live == 0


@on_loop
async def test_a_signer_that_takes_nothing_more_counts_as_gone() -> None:
    async with houses() as make:
        house = make(Action.DECRYPT)

        def full(message: Any) -> None:
            raise ChannelFull

        house.gate._around.signer.send = full  # type: ignore[method-assign,assignment]
        house.gate._mint("f", "a.test")
        house.gate._withdraw("f")
        await house.recorder.until(lambda events: "signer_gone" in house.recorder.faults())


def test_an_end_whose_record_fails_once_is_still_an_end_and_on_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that raises after the flow has ended: what is left of the end is done without it."""
    record = Producer.record
    failed: list[ConnectionSeen] = []

    def fails_once(producer: Producer, seen: Any) -> None:
        if isinstance(seen, ConnectionSeen) and not failed:
            failed.append(seen)
            raise RuntimeError
        record(producer, seen)

    monkeypatch.setattr(Producer, "record", fails_once)

    async def scenario() -> None:
        async with houses() as make:
            house = make(Action.BLOCK)
            house.divert(("192.0.2.1", 443))
            with house.dial() as client:
                client.send(TLS)
                assert await asyncio.to_thread(wait_reset, client)
            seen = await house.recorder.connection()
            assert [seen] == failed
            assert seen.outcome is Outcome.BLOCKED
            assert house.recorder.faults() == ["gate_failed"]
            assert house.gate.live == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("answers", ["never", "too late", "cannot be asked"])
def test_nobody_is_asked_for_when_a_flow_has_ended(answers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with houses() as make:
            house = make(Action.BYPASS, on_failure=OnFailure.CLOSED, owner_deadline_s=0.02)
            house.divert(("192.0.2.1", 443))
            house.process = None
            asked: list[int] = []

            def ask(number: int, origin: Any) -> None:
                asked.append(number)
                if answers == "cannot be asked":
                    raise ChannelFull

            monkeypatch.setattr(house.gate._asking, "_send", ask)
            with house.dial() as client:
                assert await asyncio.to_thread(wait_reset, client)
            assert (await house.recorder.connection()).error == "owner_unknown"
            assert (len(asked), house.gate._asking.open) == (1, 0)
            if answers == "too late":
                house.gate.owner(asked[0], CURL)
            assert house.gate.live == 0

    asyncio.run(scenario())


# --- limits -----------------------------------------------------------------------------------------------------------
@on_loop
async def test_idle_connections_make_room_for_one_that_speaks() -> None:
    async with houses() as make, Server(echo) as origin:
        house = make(NAMED, limit=50, hello_deadline_s=60)
        house.divert(origin.address)
        idle = [house.dial() for _ in range(60)]
        assert await exchange(house, b"\x80x") == b"\x80x"
        await house.recorder.until(lambda events: [e for e in events if getattr(e, "error", "") == "flow_limit"])
        assert house.gate.live <= 50
        assert await asyncio.to_thread(wait_reset, idle[0])  # the oldest went first
        idle[-1].settimeout(0)
        with pytest.raises(BlockingIOError):
            idle[-1].recv(1)
        for sock in idle:
            sock.close()


@on_loop
async def test_when_all_have_spoken_the_new_one_is_reset() -> None:
    async with houses() as make, Server(echo) as origin:
        house = make(Action.BYPASS, limit=3)
        house.divert(origin.address)
        busy = []
        for _ in range(3):
            reader, writer = await house.client()
            writer.write(b"\x80")
            assert await reader.read(1) == b"\x80"
            busy.append((reader, writer))
        with house.dial() as client:
            assert await asyncio.to_thread(wait_reset, client)
        await house.recorder.until(lambda events: "flow_limit" in house.recorder.faults())
        for reader, writer in busy:
            writer.write(b"\x81")
            assert await reader.read(1) == b"\x81"
            writer.close()


@on_loop
async def test_without_descriptors_the_oldest_silent_flow_makes_room() -> None:
    async with houses() as make, Server(echo) as origin:
        house = make(NAMED, hello_deadline_s=60)
        house.divert(origin.address)
        idle = house.dial()
        while not house.gate.live:
            await asyncio.sleep(0.001)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        late = house.dial()
        used = late.fileno() + 1
        late2 = house.dial()
        resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))
        try:
            await house.recorder.until(lambda events: "no_descriptors" in house.recorder.faults())
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for shed in (idle, late):
            assert await asyncio.to_thread(wait_reset, shed)
        late2.sendall(TLS)
        assert (await house.recorder.connection(2)).outcome is Outcome.BLOCKED  # served, under its name
        for sock in (idle, late, late2):
            sock.close()


@on_loop
async def test_accepting_pauses_when_there_is_no_descriptor_and_nobody_to_shed() -> None:
    async with houses() as make, Server(echo) as origin:
        house = make(Action.BYPASS)
        house.divert(origin.address)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        client = house.dial()
        resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 1, hard))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not house.gate.live
        assert house.recorder.faults() == ["no_descriptors"]
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        client.send(b"\x80")
        assert await asyncio.to_thread(client.recv, 1) == b"\x80"
        client.close()


def test_the_limit_of_flows_follows_from_the_limit_of_descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        assert flows_limit() == max((hard - RESERVED_FDS) // 2, 16)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- time, and the end ------------------------------------------------------------------------------------------------
@on_loop
async def test_the_heart_beats_until_the_end_and_not_after() -> None:
    async with houses() as make:
        house = make(Action.BYPASS)
        while house.beats < 3:
            await asyncio.sleep(0.001)
        await house.gate.close()
        beats = house.beats
        await asyncio.sleep(0.03)
        assert house.beats == beats


def test_what_lives_long_is_on_record_before_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TICK_S", 0.01)

    async def scenario() -> None:
        async with houses() as make, Server(echo) as origin:
            house = make(Action.BYPASS)
            house.divert(origin.address)
            reader, writer = await house.client()
            writer.write(b"\x80abc")
            assert await reader.readexactly(4) == b"\x80abc"
            monkeypatch.setattr(module, "LONG_LIVED_S", 0.0)
            (seen,) = await house.recorder.until(
                lambda events: [event for event in events if isinstance(event, ConnectionSeen)]
            )
            assert (seen.outcome, seen.bytes_sent, seen.bytes_received) == (Outcome.OPEN, 4, 4)
            writer.close()
            assert (await house.recorder.connection()).flow == seen.flow

    asyncio.run(scenario())


@on_loop
async def test_draining_serves_what_has_arrived_waits_and_then_cuts() -> None:
    async with houses() as make, Server(echo) as origin:
        house = make(Action.BYPASS)
        house.divert(origin.address)
        reader, writer = await house.client()
        writer.write(b"\x80")
        assert await reader.read(1) == b"\x80"
        waiting = house.dial()  # in the backlog: the loop has not seen it
        waiting.send(b"\x80late")
        draining = asyncio.ensure_future(house.gate.drain(0.3))
        got = await asyncio.to_thread(waiting.recv, 10)
        assert got == b"\x80late"
        waiting.close()
        assert await draining == 1
        outcomes = {(await house.recorder.connection(number)).outcome for number in range(2)}
        assert outcomes == {Outcome.COMPLETED, Outcome.CUT}
        with pytest.raises(ConnectionRefusedError):
            house.dial()
        assert house.producer.committed == house.producer.sent
        writer.close()


def test_many_flows_are_cut_in_turns_between_which_the_heart_may_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CUT_BURST", 1)

    async def scenario() -> None:
        async with houses() as make, Server(echo) as origin:
            house = make(Action.BYPASS)
            house.divert(origin.address)
            clients = [await house.client() for _ in range(3)]
            for reader, writer in clients:
                writer.write(b"\x80")
                assert await reader.read(1) == b"\x80"
            loop, live = asyncio.get_running_loop(), set[int]()

            def turn() -> None:
                live.add(house.gate.live)
                if house.gate.live:
                    loop.call_soon(turn)

            turn()
            assert await house.gate.drain(0) == 3
            assert live == {3, 2, 1, 0}
            for _, writer in clients:
                writer.close()

    asyncio.run(scenario())


@on_loop
async def test_draining_without_flows_is_over_at_once() -> None:
    async with houses() as make:
        assert await asyncio.wait_for(make(Action.BYPASS).gate.drain(1000), WAIT_S) == 0


@pytest.mark.parametrize("on_failure", OnFailure)
def test_a_recorder_that_dies_closes_or_leaves_open_what_comes_after(on_failure: OnFailure) -> None:
    async def scenario() -> None:
        async with houses() as make, Server(echo) as origin:
            house = make(Action.BYPASS, on_failure=on_failure)
            house.divert(origin.address)
            house.recorder.die()
            while not house.producer.gone:
                await asyncio.sleep(0)
            if on_failure is OnFailure.OPEN:
                assert await exchange(house, b"\x80x") == b"\x80x"
            else:
                with house.dial() as client:
                    assert await asyncio.to_thread(wait_reset, client)
            assert origin.contacts == (1 if on_failure is OnFailure.OPEN else 0)

    asyncio.run(scenario())


@on_loop
async def test_a_recorder_that_falls_behind_and_loses_events_counts_as_gone_until_it_has_caught_up() -> None:
    async with houses() as make, Server(echo) as origin:
        house = make(Action.BYPASS, on_failure=OnFailure.CLOSED)
        house.recorder.answers = False
        while not house.producer.lost:
            house.producer.record(BytesSeen(flow="x", sent=True, data=bytes(60_000)))
            await asyncio.sleep(0)
        house.divert(origin.address)
        with house.dial() as client:
            assert await asyncio.to_thread(wait_reset, client)
        assert origin.contacts == 0
        await house.recorder.until(lambda events: len(events) >= house.producer.sent)
        house.recorder.commit()
        await house.producer.flushed()
        assert await exchange(house, b"\x80x") == b"\x80x"


def test_a_listener_that_ends_takes_no_more_of_its_backlog_than_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who keeps connecting while the backlog is taken must not keep the gate from ending."""
    monkeypatch.setattr(module, "BACKLOG_LIMIT", 2)

    async def scenario() -> None:
        async with houses() as make:
            house = make(Action.BLOCK)
            house.divert(("192.0.2.1", 443))
            waiting = [house.dial() for _ in range(4)]  # the loop has seen none of them
            assert await house.gate.drain(0) == 2
            for client in waiting:
                assert await asyncio.to_thread(wait_reset, client)
                client.close()
            records = [event for event in house.recorder.events if isinstance(event, ConnectionSeen)]
            assert [seen.outcome for seen in records] == [Outcome.CUT] * 2

    asyncio.run(scenario())
