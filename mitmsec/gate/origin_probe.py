"""Asks an origin, once, whether it can prove a name: a TLS handshake of the gate's own, and nothing after it.

    a bypass by name that no DNS answer confirms ──► known already? ─── yes ──► told
                                                       │ no
                                                       ▼
                     connect, hello with that name, certificate against the roots ──► told, and kept for a while

Whoever waits for the same name at the same address waits for one handshake. An origin that is slow, or that there is no
room to ask, has confirmed nothing. What it shows is verified by OpenSSL: chain, dates and name; nobody is asked whether
it was revoked. Nothing is said to it afterwards, and nothing that it says is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
from collections import OrderedDict
from collections.abc import Callable

from mitmsec.core.model import Endpoint
from mitmsec.gate.dial import Dial
from mitmsec.gate.signals import DialFailure

DEADLINE_S = 3.0  # to connect and to shake hands; the program waits meanwhile
HELD_S, FAILED_S = 600.0, 30.0
KNOWN_LIMIT = 1024  # the oldest goes first
PROBES_LIMIT = 16  # at once
_ROOT = re.compile(rb"-----BEGIN CERTIFICATE-----\n.*?-----END CERTIFICATE-----\n", re.DOTALL)

type _Key = tuple[str, Endpoint]
type Tell = Callable[[bool], None]


class OriginProbe:
    """On the running loop, until `close`. By `roots_pem` origins may prove themselves."""

    def __init__(self, roots_pem: bytes, *, local_ports: range | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._context = _context(roots_pem)
        self._local_ports = local_ports
        self._known: OrderedDict[_Key, tuple[bool, float]] = OrderedDict()
        self._waiting: dict[_Key, list[Tell]] = {}
        self._probes: set[asyncio.Task[None]] = set()

    def ask(self, name: str, remote: Endpoint, bound: str | None, tell: Tell) -> None:
        """`tell` whether `remote` has a certificate for `name`: at once, or within DEADLINE_S."""
        key = name, remote
        holds, until_s = self._known.get(key, (False, 0.0))
        if until_s > self._loop.time():
            return tell(holds)
        if key in self._waiting:
            return self._waiting[key].append(tell)
        if len(self._waiting) >= PROBES_LIMIT:
            return tell(False)
        self._waiting[key] = [tell]
        probe = self._loop.create_task(self._probe(key, bound))
        self._probes.add(probe)
        probe.add_done_callback(self._probes.discard)

    def close(self) -> None:
        """Nobody is told anything any more."""
        for probe in self._probes:
            probe.cancel()
        self._waiting.clear()

    async def _probe(self, key: _Key, bound: str | None) -> None:
        holds = False
        with contextlib.suppress(OSError, ValueError):  # of time, of TLS; a name that no certificate could have
            async with asyncio.timeout(DEADLINE_S):
                await self._shake_hands(*key, bound)
            holds = True
        self._known[key] = holds, self._loop.time() + (HELD_S if holds else FAILED_S)
        self._known.move_to_end(key)
        if len(self._known) > KNOWN_LIMIT:
            self._known.popitem(last=False)
        for tell in self._waiting.pop(key, ()):
            tell(holds)

    async def _shake_hands(self, name: str, remote: Endpoint, bound: str | None) -> None:
        """Raises OSError, which ssl.SSLError is, or ValueError, unless all of it holds."""
        if not name:  # which asyncio would take for a name that is not to be checked
            raise ValueError("no name")
        sock = await self._connected(remote, bound)
        try:
            transport, _ = await self._loop.create_connection(
                asyncio.Protocol, sock=sock, ssl=self._context, server_hostname=name
            )
        except BaseException:
            sock.close()
            raise
        transport.abort()

    async def _connected(self, remote: Endpoint, bound: str | None) -> socket.socket:
        dialled: asyncio.Future[socket.socket] = self._loop.create_future()

        def connected(sock: socket.socket, _: Endpoint) -> None:
            if dialled.done():  # it is too late since this turn of the loop
                return sock.close()
            dialled.set_result(sock)

        def failed(failure: DialFailure) -> None:
            if not dialled.done():
                dialled.set_exception(OSError(failure.value))

        dial = Dial(
            self._loop,
            connected,
            failed,
            deadline_s=DEADLINE_S,
            bound=bound,
            local_ports=self._local_ports,
        )
        dial.add((remote,))
        try:
            return await dialled
        finally:
            dial.cancel()


def _context(roots_pem: bytes) -> ssl.SSLContext:
    """A root that OpenSSL does not read proves nothing, and is left out."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for root in _ROOT.findall(roots_pem):
        with contextlib.suppress(ssl.SSLError):
            context.load_verify_locations(cadata=root.decode("ascii", "replace"))
    return context
