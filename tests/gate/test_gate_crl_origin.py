"""The gate as the origin of revocation lists: through a whole gate, and against hostile requests."""

from __future__ import annotations

import asyncio
import socket
import urllib.request

import pytest
from gate_house import WAIT_S, houses, on_loop
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.audit.event import Outcome
from mitmsec.core.crl_place import CRL_PLACE
from mitmsec.core.messages import Crls
from mitmsec.core.model import Action
from mitmsec.gate import crl_origin
from mitmsec.gate.crl_origin import CrlOrigin, response

LISTS = {"/0a.crl": b"\x30\x03DER", "/0b.crl": b"\x30\x00"}


def get(path: bytes) -> bytes:
    return b"GET " + path + b" HTTP/1.1\r\nHost: 192.0.2.80\r\n\r\n"


@on_loop
async def test_a_diverted_program_gets_the_list_and_the_connection_is_on_record_like_any_other() -> None:
    """Nobody is contacted: there is nobody at that address."""
    async with houses() as house:
        h = house(Action.BYPASS)
        h.signer.send(Crls(lists=tuple(LISTS.items())))
        h.divert((CRL_PLACE.address, CRL_PLACE.port))
        reader, writer = await h.client()
        writer.write(get(b"/0a.crl"))
        answer = await asyncio.wait_for(reader.read(), WAIT_S)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"application/pkix-crl" in answer
        assert answer.endswith(b"\r\n\r\n" + LISTS["/0a.crl"])
        writer.close()
        seen = await h.recorder.connection()
        assert (seen.remote, seen.action, seen.outcome) == (CRL_PLACE, Action.BYPASS, Outcome.COMPLETED)
        assert seen.bytes_received == len(answer)


@on_loop
async def test_a_policy_that_blocks_the_place_blocks_it() -> None:
    async with houses() as house:
        h = house(Action.BLOCK)
        h.signer.send(Crls(lists=tuple(LISTS.items())))
        h.divert((CRL_PLACE.address, CRL_PLACE.port))
        reader, writer = await h.client()
        writer.write(get(b"/0a.crl"))
        assert b"403" in (await asyncio.wait_for(reader.read(), WAIT_S)).partition(b"\r\n")[0]
        writer.close()
        assert (await h.recorder.connection()).outcome is Outcome.BLOCKED


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (get(b"/0a.crl"), "200"),
        (get(b"http://192.0.2.80/0a.crl"), "200"),
        (get(b"/"), "404"),
        (get(b"/../0a.crl"), "404"),
        (get(b"/0c.crl"), "404"),
        (b"POST /0a.crl HTTP/1.1\r\n\r\n", "405"),
        (b"\r\n\r\n", "405"),
        (b"GET", "404"),
    ],
)
def test_what_is_asked_for_is_answered(request_: bytes, status: str) -> None:
    assert response(request_, LISTS).split(b" ")[1].decode() == status


def test_head_gets_the_head() -> None:
    whole, head = response(get(b"/0a.crl"), LISTS), response(get(b"/0a.crl").replace(b"GET", b"HEAD"), LISTS)
    assert whole == head + LISTS["/0a.crl"]


@given(st.binary(max_size=300))
def test_any_bytes_are_answered(data: bytes) -> None:
    assert response(data, LISTS).startswith(b"HTTP/1.1 ")


async def read_all(sock: socket.socket) -> bytes:
    loop, data = asyncio.get_running_loop(), b""
    while piece := await asyncio.wait_for(loop.sock_recv(sock, 65536), WAIT_S):
        data += piece
    return data


@on_loop
async def test_a_request_in_pieces_is_answered_and_one_without_an_end_is_too_once_it_is_too_long() -> None:
    loop = asyncio.get_running_loop()
    origin = CrlOrigin(loop)
    origin.lists = LISTS
    with origin.connect() as sock:
        for byte in get(b"/0b.crl"):
            await loop.sock_sendall(sock, bytes([byte]))
        assert (await read_all(sock)).endswith(LISTS["/0b.crl"])
    with origin.connect() as sock:
        await loop.sock_sendall(sock, b"x" * (crl_origin.REQUEST_LIMIT_BYTES + 1))
        assert b"405" in await read_all(sock)
    origin.close()


@on_loop
async def test_whoever_says_nothing_or_leaves_is_not_waited_for_and_there_are_never_too_many() -> None:
    before = crl_origin.ANSWERING_LIMIT, crl_origin.DEADLINE_S
    crl_origin.ANSWERING_LIMIT, crl_origin.DEADLINE_S = 2, 0.05
    try:
        origin = CrlOrigin(asyncio.get_running_loop())
        silent, leaving = origin.connect(), origin.connect()
        with pytest.raises(ConnectionRefusedError):
            origin.connect()
        leaving.close()
        assert await read_all(silent) == b""
        silent.close()
        while True:  # both places are free again
            try:
                last = origin.connect()
                break
            except ConnectionRefusedError:
                await asyncio.sleep(0.01)
        origin.close()
        assert await read_all(last) == b""
        last.close()
    finally:
        crl_origin.ANSWERING_LIMIT, crl_origin.DEADLINE_S = before


@on_loop
async def test_a_usual_client_reads_it() -> None:
    """Python's, through a port that leads to it."""
    loop, origin = asyncio.get_running_loop(), CrlOrigin(asyncio.get_running_loop())
    origin.lists = LISTS

    async def lead(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection(sock=origin.connect())
        forth.write(await reader.readuntil(b"\r\n\r\n"))
        writer.write(await back.read())
        writer.close()
        forth.close()

    async with await asyncio.start_server(lead, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}/0a.crl"
        content = await loop.run_in_executor(None, lambda: urllib.request.urlopen(url, timeout=WAIT_S).read())
        assert content == LISTS["/0a.crl"]
