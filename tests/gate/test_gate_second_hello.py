"""What a relay does not look at: a hello that is said again, over TCP. docs/policy.md tells of it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl

import trustme
from gate_house import WAIT_S, houses, on_loop
from OpenSSL import SSL

from mitmsec.core.model import Action
from mitmsec.core.policy import Policy, Rule

ALLOWED, BLOCKED = "allowed.test", "blocked.test"


def server_of(names: list[str]) -> ssl.SSLContext:
    """One that takes P-384 only, so that it has clients say their hello again, and notes the names in it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert(ALLOWED, BLOCKED).configure_cert(context)
    context.set_ecdh_curve("secp384r1")
    context.sni_callback = lambda _sock, name, _context: names.append(name)
    return context


def asks_for_two(sock: socket.socket) -> bytes:
    """What a client reads whose share the server does not take, and which names another host when it is asked again."""
    client = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), None)
    client.set_tlsext_host_name(ALLOWED.encode())
    client.set_connect_state()
    while True:
        try:
            return client.recv(9)
        except SSL.WantReadError:
            with contextlib.suppress(SSL.WantReadError):
                while True:
                    sock.sendall(client.bio_read(1 << 16))
        client.bio_write(sock.recv(1 << 16))
        client.set_tlsext_host_name(BLOCKED.encode())


@on_loop
async def test_a_real_server_goes_by_the_second_name_and_what_is_bypassed_is_not_asked_about_it() -> None:
    names: list[str] = []

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hi")
        await writer.drain()
        writer.close()

    blocks = Rule(name="blocked", host=(BLOCKED,), action=Action.BLOCK)
    server = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=server_of(names))
    async with houses() as make, server:
        house = make(Policy(action=Action.BYPASS, rules=(blocks,)))
        house.divert(server.sockets[0].getsockname())
        with house.dial() as sock:
            assert await asyncio.wait_for(asyncio.to_thread(asks_for_two, sock), WAIT_S) == b"hi"
        seen = await house.recorder.connection()
        assert (seen.action, seen.host) == (Action.BYPASS, ALLOWED)
        assert names == [ALLOWED, BLOCKED]
