"""The gate as a whole, on loopback: what programs and origins see, and what is on record."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
from typing import Any

import pytest
import trustme
from gate_house import CURL, WAIT_S, House, Server, houses, on_loop, wait_reset
from hellos import hello, server_name

from mitmsec.audit.event import BytesSeen, Outcome
from mitmsec.core.model import Action, Endpoint
from mitmsec.core.policy import Policy, Rule
from mitmsec.gate.connection import Connection
from mitmsec.gate.flow import Flow
from mitmsec.gate.refuse import reset
from mitmsec.gate.relay import Relay

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


async def dribble(client: socket.socket, data: bytes) -> None:
    for byte in data:
        client.send(bytes([byte]))
        await asyncio.sleep(0.02)


@pytest.mark.checklist("C9")
@on_loop
async def test_a_client_that_dribbles_its_hello_is_ended_in_time_and_the_next_one_served() -> None:
    async with houses() as make, Server(swallow) as origin:
        house = make(NAMED, hello_end_deadline_s=0.2)
        house.divert(origin.address)
        with house.dial() as slow:
            with pytest.raises(ConnectionError):
                await dribble(slow, TLS[:60])
            seen = await house.recorder.connection()
            assert (seen.outcome, seen.error) == (Outcome.MALFORMED, "incomplete")
        with house.dial() as quick:
            quick.send(TLS)
            assert (await house.recorder.connection(1)).outcome is Outcome.BLOCKED
        assert origin.contacts == 0


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


@pytest.mark.checklist("C7", "C8")
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

        def find(accepted: socket.socket, client: Endpoint, gate: Endpoint) -> None:
            raise OSError(22, "?")

        house.find = find  # type: ignore[method-assign]
        with house.dial() as client:
            assert await asyncio.to_thread(wait_reset, client)
        await house.gate.drain(0)
        assert house.recorder.faults() == ["origin_lookup_failed"]


@on_loop
async def test_of_a_relayed_connection_nothing_is_left_for_the_collector() -> None:
    """A collection that has to look at ten thousand dead connections costs each of them, and all live ones a pause."""

    def left() -> list[object]:
        return [one for one in gc.get_objects() if isinstance(one, Connection | Relay | Flow)]

    async with houses() as make, Server(echo) as origin:
        house = make(Action.BYPASS)
        house.divert(origin.address)
        gc.collect()
        gc.disable()
        try:
            with house.dial() as client:
                client.send(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
                assert await asyncio.to_thread(client.recv, 3) == b"GET"
                assert len(left()) == 3
                client.shutdown(socket.SHUT_WR)
                while await asyncio.to_thread(client.recv, 4096):
                    pass
            assert (await house.recorder.connection()).outcome is Outcome.COMPLETED
            assert left() == []
        finally:
            gc.enable()
