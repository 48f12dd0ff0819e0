"""The gate as a whole, on loopback: what programs and origins see, and what is on record."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import ssl
from typing import Any

import pytest
import trustme
from gate_house import CURL, WAIT_S, House, Server, houses, on_loop, wait_reset
from hellos import hello, server_name

from mitmsec.audit.event import BytesSeen, ConnectionSeen, Outcome
from mitmsec.channel import ChannelFull
from mitmsec.core.model import Action, OnFailure
from mitmsec.core.policy import Policy, Rule
from mitmsec.gate import loop as module
from mitmsec.gate.loop import RESERVED_FDS, flows_limit
from mitmsec.gate.refuse import reset

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


# --- bypass and capture -----------------------------------------------------------------------------------------------
@on_loop
async def test_a_bypassed_program_speaks_tls_with_the_origin_itself_and_its_name_is_on_record() -> None:
    authority = Authority()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await writer.start_tls(authority.server)
        writer.write(await reader.readexactly(4))
        writer.close()

    async with houses() as make, Server(serve) as origin:
        house = make(Action.BYPASS)
        house.divert(origin.address)
        reader, writer = await asyncio.open_connection(*house.address, ssl=authority.client, server_hostname="a.test")
        writer.write(b"ping")
        assert await reader.read() == b"ping"
        writer.close()
        seen = await house.recorder.connection()
        assert (seen.outcome, seen.protocol, seen.host, seen.action) == (Outcome.COMPLETED, "tls", "a.test", "bypass")
        assert seen.process == CURL
        assert seen.tls is not None
        assert seen.tls.client is not None
        assert seen.tls.client.ja4 is not None
        assert seen.bytes_sent > 200
        assert not house.minted
        assert not [event for event in house.recorder.events if isinstance(event, BytesSeen)]


@on_loop
async def test_a_hundred_megabytes_arrive_and_are_counted() -> None:
    total = 100 << 20

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        for _ in range(total >> 20):
            writer.write(bytes(1 << 20))
            await writer.drain()
        writer.close()

    async with houses() as make, Server(serve) as origin:
        house = make(Action.BYPASS)
        house.divert(origin.address)
        reader, writer = await house.client()
        writer.write(b"\x80")
        received = 0
        while data := await reader.read(1 << 20):
            received += len(data)
        writer.close()
        seen = await house.recorder.connection()
        assert received == seen.bytes_received == total
        assert seen.bytes_sent == 1


@on_loop
async def test_captured_bytes_reach_the_program_and_the_recorder() -> None:
    async with houses() as make, Server(echo) as origin:
        house = make(Action.CAPTURE, capture=True)
        house.divert(origin.address)
        assert await exchange(house, b"\x80" + b"x" * 100_000) == b"\x80" + b"x" * 100_000
        seen = await house.recorder.connection()
        pieces = [event for event in house.recorder.events if isinstance(event, BytesSeen)]
        assert pieces[0].process == CURL
        assert pieces[0].local == seen.local
        for sent in (True, False):
            assert b"".join(piece.data for piece in pieces if piece.sent is sent) == b"\x80" + b"x" * 100_000
        assert all(len(piece.data) <= 65536 for piece in pieces)


@on_loop
async def test_a_server_that_speaks_first_is_heard() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-server\r\n")
        await echo(reader, writer)

    async with houses() as make, Server(serve) as origin:
        for policy in (Policy(), NAMED):  # decided at once, and after the wait for a name
            house = make(policy)
            house.divert(origin.address)
            reader, writer = await house.client()
            assert await asyncio.wait_for(reader.readline(), WAIT_S) == b"SSH-2.0-server\r\n"
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()
            assert (await house.recorder.connection()).protocol == "ssh"


# --- hellos -----------------------------------------------------------------------------------------------------------
@on_loop
async def test_a_hello_byte_by_byte_is_decided_by_its_name() -> None:
    async with houses() as make, Server(echo) as origin:
        house = make(NAMED)
        house.divert(origin.address)
        with house.dial() as client:
            for number in range(len(TLS)):
                client.send(TLS[number : number + 1])
                await asyncio.sleep(0)
            seen = await house.recorder.connection()
            assert (seen.outcome, seen.rule, seen.host) == (Outcome.BLOCKED, "host", "a.test")
            assert await asyncio.to_thread(wait_reset, client)
        assert origin.contacts == 0


@on_loop
async def test_half_a_hello_and_silence_ends_after_its_time_and_is_not_decrypted() -> None:
    async with houses() as make, Server(swallow) as origin:
        house = make(Action.DECRYPT, hello_deadline_s=0.02, hello_end_deadline_s=0.05)
        house.divert(origin.address)
        with house.dial() as client:
            client.send(TLS[:40])
            assert await asyncio.to_thread(wait_reset, client)
        seen = await house.recorder.connection()
        assert (seen.outcome, seen.error, seen.bytes_sent) == (Outcome.MALFORMED, "incomplete", 0)
        assert not house.minted


# --- block, strangers, origins that fail ------------------------------------------------------------------------------
@pytest.mark.parametrize("data", [TLS, b"\x16\x03\x01\x00\x05\x01\xff\xff\xff\xff", b"\x01binary"])
def test_block_resets_and_the_origin_sees_nothing(data: bytes) -> None:
    async def scenario() -> None:
        async with houses() as make, Server(echo) as origin:
            house = make(Action.BLOCK)
            house.divert(origin.address)
            with house.dial() as client:
                client.send(data)
                assert (await house.recorder.connection()).outcome is Outcome.BLOCKED
                assert await asyncio.to_thread(wait_reset, client)
            assert origin.contacts == 0

    asyncio.run(scenario())


@on_loop
async def test_block_answers_http_with_a_page_that_names_the_flow_on_record() -> None:
    async with houses() as make, Server(echo) as origin:
        house = make(Action.BLOCK)
        house.divert(origin.address)
        reader, writer = await house.client()
        writer.write(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        page = await reader.read()
        writer.close()
        seen = await house.recorder.connection()
        assert page.startswith(b"HTTP/1.1 403 ")
        assert seen.flow.encode() in page
        assert origin.contacts == 0
        while house.gate.live:
            await asyncio.sleep(0.001)


@on_loop
async def test_strangers_are_reset_and_recorded() -> None:
    async with houses() as make:
        house = make(Action.BYPASS)
        for number in range(3):
            with house.dial() as client:
                assert (await house.recorder.connection(number)).outcome is Outcome.STRANGER
                assert await asyncio.to_thread(wait_reset, client)
        await house.gate.drain(0)
        faults = [seen for seen in house.recorder.events if getattr(seen, "what", "") == "stranger"]
        assert sum(fault.count for fault in faults) == 3
        assert len(faults) == 2


@on_loop
async def test_an_origin_that_refuses_is_a_reset_and_named_on_record() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = closed.getsockname()
    async with houses() as make:
        house = make(Action.BYPASS)
        house.divert(address)
        with house.dial() as client:
            client.send(TLS)
            assert await asyncio.to_thread(wait_reset, client)
        assert (await house.recorder.connection()).outcome is Outcome.ORIGIN_REFUSED


@on_loop
async def test_resets_pass_through_in_both_directions() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sock = writer.get_extra_info("socket")
        if await reader.read(1) == b"\x80":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            writer.transport.abort()
        else:
            with contextlib.suppress(ConnectionResetError):
                await reader.read()
            ends.set_result(reader.exception())

    ends: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    async with houses() as make, Server(serve) as origin:
        house = make(Action.BYPASS)
        house.divert(origin.address)
        with house.dial() as client:
            client.send(b"\x80")
            assert await asyncio.to_thread(wait_reset, client)
        assert (await house.recorder.connection()).outcome is Outcome.ORIGIN_RESET
        client = house.dial()
        client.send(b"\x81")
        while origin.contacts < 2:
            await asyncio.sleep(0.001)
        reset(client)
        assert isinstance(await asyncio.wait_for(ends, WAIT_S), ConnectionResetError)
        assert (await house.recorder.connection(1)).error == "reset by the client"


@on_loop
async def test_a_client_that_resets_before_it_speaks_is_closed_and_so_is_its_origin() -> None:
    async with houses() as make, Server(swallow) as origin:
        house = make(Action.BYPASS)
        house.divert(origin.address)
        client = house.dial()
        while not origin.contacts:
            await asyncio.sleep(0.001)
        reset(client)
        assert (await house.recorder.connection()).outcome is Outcome.CLIENT_CLOSED


@on_loop
async def test_a_reset_origin_of_a_silent_client_is_passed_on() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()

    async with houses() as make, Server(serve) as origin:
        house = make(Action.BYPASS)
        house.divert(origin.address)
        with house.dial() as client:
            assert (await house.recorder.connection()).outcome is Outcome.ORIGIN_RESET
            assert await asyncio.to_thread(wait_reset, client)


@on_loop
async def test_a_cut_does_not_wait_for_the_reader_of_a_page() -> None:
    async with houses() as make:
        house = make(Action.BLOCK)
        house.divert(("192.0.2.1", 80))
        with house.dial() as client:
            client.send(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
            await house.recorder.connection()
            assert house.gate.live == 1
            assert await house.gate.drain(0) == 1
            assert house.gate.live == 0


@on_loop
async def test_an_origin_lookup_that_fails_is_a_reset_and_a_fault() -> None:
    async with houses() as make:
        house = make(Action.BYPASS)

        def find(accepted: socket.socket) -> None:
            raise OSError(22, "?")

        house.find = find  # type: ignore[method-assign]
        with house.dial() as client:
            assert await asyncio.to_thread(wait_reset, client)
        await house.gate.drain(0)
        assert house.recorder.faults() == ["origin_lookup_failed"]


@on_loop
async def test_an_error_of_our_own_costs_one_flow_and_no_other() -> None:
    class Broken(Policy, frozen=True):
        def at_connect(self, process: Any, remote: Any) -> Any:
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
        def at_connect(self, process: Any, remote: Any) -> Any:
            raise KeyError("a bug")

        def at_hello(self, process: Any, remote: Any, **more: Any) -> Any:
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
