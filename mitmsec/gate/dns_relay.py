"""Relays what selected programs ask name servers over UDP, where the kernel leads that to us.

program ── question ──► relay's socket, one for each server ──► the program's own socket here ──► server
   ▲                       │ heard                                         │ heard                  │
   └───────────────────────┴─────────────────── answer ◄───────────────────┴────────────────────────┘

Each socket of a program has a socket of ours, so that its questions leave by a port that nobody can guess, and what
comes back there is its answer, whatever stands in it. Of whoever was not led here nothing is heard or sent. An answer
is heard before the program gets it, and may be limited in what it offers (mitmsec.core.dns_offers); else not one byte
is changed. A server that refuses, or stays silent, or that we cannot reach, is met by the program itself for a while:
only so does it see how that fails, if it does.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Any, Protocol

import msgspec

from mitmsec.core.model import Endpoint

ASKERS_LIMIT = 2048  # the one that has been quiet for longest goes first
IDLE_S = 30.0  # resolvers give up sooner, and names are told for as long
WITHDRAWN_S, WITHDRAWN_MOST_S = 30.0, 300.0  # twice as long each time that it does not get better
SILENT_QUESTIONS, SILENT_S = 3, 3.0  # so many more than one, and for so long: a server may be slow
TURN_LIMIT = 32  # questions to one relay, then others have their turn
ANSWERS_TURN_LIMIT = 4  # to one asker, of whom there may be thousands, each with a server that never stops
DATAGRAM_LIMIT_BYTES = 65535

_V4_INFO, _V6_INFO = struct.Struct("=I4s4s"), struct.Struct("=16sI")  # struct in_pktinfo, in6_pktinfo
ANCILLARY_BYTES = 64  # more than either with its header

type _Ancillary = tuple[int, int, bytes]
type _Key = tuple[int, tuple[Any, ...], _Ancillary]


class Servers(Protocol):
    """Who is behind a relay: mitmsec_redirect.dns_lead.LedServers."""

    def behind(self, port: int) -> Endpoint | None: ...
    def leads(self, asker: Endpoint, relay: Endpoint) -> bool: ...
    def withdraw(self, server: Endpoint) -> None: ...
    def restore(self, server: Endpoint, port: int) -> None: ...
    def close(self) -> None: ...


class _Asker(msgspec.Struct):
    """A program's socket, as it speaks to one relay, and ours for it."""

    key: _Key
    relay: socket.socket
    local: Endpoint
    server: Endpoint
    ours: socket.socket
    last_s: float


class _Server(msgspec.Struct):
    """How it goes with one: what it left unanswered since it last answered anything, and how often it was withdrawn."""

    unanswered: int = 0
    since_s: float = 0.0
    last_s: float = 0.0
    withdrawals: int = 0


class DnsRelay:
    """On the running loop; it owns sockets and `servers`. `hear` as in `mitmsec.service.dns_names.DnsNames`.

    `limited` gives what a program gets instead of an answer.

    The sockets are told what each message was sent to (IP_PKTINFO, IPV6_RECVPKTINFO).
    """

    def __init__(
        self,
        relays: Sequence[socket.socket],
        servers: Servers,
        hear: Callable[[Endpoint, Endpoint, bool, bytes], None],
        limited: Callable[[bytes], bytes] = bytes,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._relays, self._servers, self._hear, self._limited = relays, servers, hear, limited
        self._askers: OrderedDict[_Key, _Asker] = OrderedDict()
        self._known: defaultdict[Endpoint, _Server] = defaultdict(_Server)
        self._withdrawn: dict[Endpoint, asyncio.TimerHandle] = {}
        self._sweeping: asyncio.TimerHandle | None = None
        for relay in relays:
            relay.setblocking(False)
            self._loop.add_reader(relay.fileno(), self._asked, relay)

    def __len__(self) -> int:
        return len(self._askers)

    # -- questions -----------------------------------------------------------------------------------------------------
    def _asked(self, relay: socket.socket) -> None:
        for _ in range(TURN_LIMIT):
            try:
                question, told, _, address = relay.recvmsg(DATAGRAM_LIMIT_BYTES, ANCILLARY_BYTES)
            except OSError:  # there is no more
                return
            if (asker := self._asker(relay, address, _from_there(told[0]))) is not None:
                self._ask(asker, question)

    def _asker(self, relay: socket.socket, address: tuple[Any, ...], back: _Ancillary) -> _Asker | None:
        """None: it cannot be reached, or nobody is behind this relay yet, or whoever asks was not led to it."""
        port = relay.getsockname()[1]
        key = (port, address, back)
        asker = self._askers.get(key)
        if asker is not None:
            return asker
        server, local = self._servers.behind(port), Endpoint.of(*address[:2])
        if server is None or not self._servers.leads(local, _there(back, port)):
            return None
        try:
            ours = _towards(server, address)
        except OSError:
            self._withdraw(server, port)
            return None
        asker = _Asker(key, relay, local, server, ours, self._loop.time())
        self._askers[asker.key] = asker
        self._loop.add_reader(ours.fileno(), self._answered, asker)
        if len(self._askers) > ASKERS_LIMIT:
            self._forget(next(iter(self._askers.values())))
        self._sweep_later()
        return asker

    def _ask(self, asker: _Asker, question: bytes) -> None:
        self._askers.move_to_end(asker.key)
        asker.last_s = self._loop.time()
        self._hear(asker.local, asker.server, True, question)
        try:
            asker.ours.send(question)
        except BlockingIOError:
            pass  # as a network that is full drops it
        except OSError:
            self._failed(asker)
        else:
            self._wait(asker)

    def _wait(self, asker: _Asker) -> None:
        """Whatever swallows what we ask may let programs pass, so a server that stays silent is theirs for a while."""
        known = self._known[asker.server]
        if not known.unanswered or asker.last_s - known.last_s > IDLE_S:
            known.unanswered, known.since_s = 0, asker.last_s
        known.unanswered, known.last_s = known.unanswered + 1, asker.last_s
        if known.unanswered > SILENT_QUESTIONS and asker.last_s - known.since_s > SILENT_S:
            self._withdraw(asker.server, asker.key[0])

    # -- answers -------------------------------------------------------------------------------------------------------
    def _answered(self, asker: _Asker) -> None:
        for _ in range(ANSWERS_TURN_LIMIT):
            try:
                answer = asker.ours.recv(DATAGRAM_LIMIT_BYTES)
            except BlockingIOError:
                return
            except OSError:
                self._failed(asker)
                return
            self._known[asker.server] = _Server()
            self._hear(asker.local, asker.server, False, answer)
            with contextlib.suppress(OSError):  # the program has closed its socket, or does not read
                asker.relay.sendmsg([self._limited(answer)], [asker.key[2]], 0, asker.key[1])

    # -- failures and ends ---------------------------------------------------------------------------------------------
    def _failed(self, asker: _Asker) -> None:
        self._forget(asker)
        self._withdraw(asker.server, asker.key[0])

    def _withdraw(self, server: Endpoint, port: int) -> None:
        if server not in self._withdrawn:
            known = self._known[server]
            for_s = min(WITHDRAWN_S * 2**known.withdrawals, WITHDRAWN_MOST_S)
            known.withdrawals = min(known.withdrawals + 1, 16)
            self._servers.withdraw(server)
            self._withdrawn[server] = self._loop.call_later(for_s, self._restore, server, port)

    def _restore(self, server: Endpoint, port: int) -> None:
        del self._withdrawn[server]
        self._known[server].unanswered = 0
        self._servers.restore(server, port)

    def _forget(self, asker: _Asker) -> None:
        del self._askers[asker.key]
        self._loop.remove_reader(asker.ours.fileno())
        asker.ours.close()

    def _sweep_later(self) -> None:
        if self._sweeping is None and self._askers:
            self._sweeping = self._loop.call_later(IDLE_S / 2, self._sweep)

    def _sweep(self) -> None:
        self._sweeping = None
        quiet_s = self._loop.time() - IDLE_S
        for asker in list(self._askers.values()):
            if asker.last_s > quiet_s:
                break
            self._forget(asker)
        self._sweep_later()

    def close(self) -> None:
        """Relay no more; the next gate finds all servers led. To be called once."""
        for relay in self._relays:
            self._loop.remove_reader(relay.fileno())
            relay.close()
        for asker in list(self._askers.values()):
            self._forget(asker)
        if self._sweeping is not None:
            self._sweeping.cancel()
        for timer in self._withdrawn.values():
            timer.cancel()
        self._servers.close()


def _from_there(told: _Ancillary) -> _Ancillary:
    """What makes an answer come from where the question was sent to, as the kernel told that."""
    level, kind, data = told
    if level == socket.IPPROTO_IPV6:
        return level, kind, _V6_INFO.pack(data[:16], 0)
    return level, kind, _V4_INFO.pack(0, data[8:12], bytes(4))


def _there(back: _Ancillary, port: int) -> Endpoint:
    """Where the question was sent to."""
    _, _, data = back
    return Endpoint.of(str(ip_address(data[4:8] if len(data) == _V4_INFO.size else data[:16])), port)


def _towards(server: Endpoint, asker: tuple[Any, ...]) -> socket.socket:
    """A socket that is connected to the server, from where the program would have asked it. Raises OSError.

    An address that has just gone, or that is a link's, is no reason to withdraw the server.
    """
    ours = socket.socket(socket.AF_INET6 if server.is_v6 else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        if not ip_address(asker[0]).is_loopback:  # the program has bound it
            with contextlib.suppress(OSError):
                ours.bind((asker[0], 0))
        ours.connect((server.address, server.port))
    except OSError:
        ours.close()
        raise
    return ours
