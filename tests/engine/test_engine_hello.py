"""A client's hello comes in any pieces, or does not come."""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest
from hellos import hello, server_name

from mitmsec.audit.event import Outcome
from mitmsec.core.clienthello import HELLO_LIMIT_BYTES, ClientHello
from mitmsec.engine.hello import read_hello
from mitmsec.engine.leg import Leg
from mitmsec.engine.side import Ended

HELLO = hello(server_name(b"a.test"))
RESET = struct.pack("ii", 1, 0)


def read(*pieces: bytes, resets: bool = False) -> tuple[ClientHello, bytes]:
    async def main() -> tuple[ClientHello, bytes]:
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname())
            leg = Leg(listener.accept()[0], loop)
        reading = loop.create_task(read_hello(leg))
        client.setblocking(False)
        for piece in pieces:
            await loop.sock_sendall(client, piece)
            await asyncio.sleep(0.01)
        if resets:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.close()
        try:
            return await asyncio.wait_for(reading, 20)
        finally:
            leg.abort()

    return asyncio.run(main())


@pytest.mark.parametrize("at", [1, 5, 20, len(HELLO) - 1])
def test_a_hello_in_two_pieces_is_one(at: int) -> None:
    found, raw = read(HELLO[:at], HELLO[at:])
    assert (found.sni, raw) == ("a.test", HELLO)


@pytest.mark.parametrize(
    ("sent", "resets", "outcome", "why"),
    [
        (HELLO[:9], False, Outcome.CLIENT_CLOSED, "ended before its hello was complete"),
        (b"", False, Outcome.CLIENT_CLOSED, "ended before its hello was complete"),
        (HELLO[:9], True, Outcome.CLIENT_CLOSED, "reset"),
        (b"\x16\x03\x01\x00\x05\x01\xff\xff\xff\xff", False, Outcome.MALFORMED, "client's hello: "),
        (b"\x16\x03\x01\x00\x01\x01" * (HELLO_LIMIT_BYTES // 6 + 1), False, Outcome.MALFORMED, "client's hello: "),
    ],
)
def test_what_is_no_hello_says_how_it_ends(sent: bytes, resets: bool, outcome: Outcome, why: str) -> None:
    with pytest.raises(Ended) as ended:
        read(sent, resets=resets)
    assert ended.value.outcome is outcome
    assert why in ended.value.error
