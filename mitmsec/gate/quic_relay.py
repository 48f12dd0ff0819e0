"""Relays QUIC of selected programs, where the kernel leads that to us, as `quic_flow` says; not one byte is changed.

program ── datagram ──► relay's socket ──► flow: held, refused, or let pass ──► the flow's own socket ──► origin
   ▲                                                                                     │
   └──────────── by the relay's socket; the kernel shows the origin as its sender ◄──────┘

A flow is a program's socket, by its cookie: whoever was not led here has no origin, and hears nothing. When the program
has closed it, the flow has ended; another program may have its port then, so that is asked again and again. All of this
is bounded: flows, what they hold, what one turn takes, and questions to the kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Protocol, assert_never

import msgspec

from mitmsec.audit.event import Outcome, Seen
from mitmsec.core.model import Endpoint, OnFailure, Value
from mitmsec.core.quic_answers import SealingCipher
from mitmsec.gate.asking import Asks
from mitmsec.gate.descriptors import flows_limit
from mitmsec.gate.faults import Faults
from mitmsec.gate.ids import flow_id
from mitmsec.gate.quic_flow import LONG_HEADER, Answer, Command, Forward, QuicFlow, Record, Report
from mitmsec.gate.signals import Origin, OwnerKnown
from mitmsec.gate.terms import Decides, Terms

FLOWS_LIMIT = 1024  # the one that has been quiet for longest makes room
DESCRIPTORS_SHARE = 8  # of what connections may have, where that is less
IDLE_S = 300.0  # also of one whose program keeps its socket
LOOK_S = 1.0  # how long until we look whether its program has closed it
SURE_S, ASKED_LIMIT_PER_S = 0.1, 1024  # what comes from its port meanwhile is its own; longer where flows are many
TURN_LIMIT = 64  # datagrams from one socket, then others have their turn
DATAGRAM_LIMIT_BYTES = 65535
ROOM_BYTES = 1 << 20

type _Key = tuple[int, tuple[Any, ...]]


class Led(Value, frozen=True):
    """A program's socket, and where it was meant for; None: it was not led here, or that is told no more."""

    cookie: int
    origin: Origin | None


class Origins(Protocol):
    """Who is led here: mitmsec.service.gate_origins.QuicOrigins."""

    def find(self, client: Endpoint, relay: Endpoint) -> Led | None: ...
    def forget(self, client: Endpoint, relay: Endpoint, cookie: int) -> None: ...
    def close(self) -> None: ...


class Around(Value, frozen=True):
    """Of the gate; `governing` tells what holds for a flow that begins now."""

    governing: Callable[[], tuple[Decides, Terms]]
    record: Callable[[Seen], None]
    is_recording: Callable[[], bool]
    faults: Faults
    ask: Callable[[Asks, Origin], None]
    give_up: Callable[[Asks], None]
    names_of: Callable[[str], tuple[str, ...] | None]


class _Leg(msgspec.Struct):
    """A flow on its sockets. What `mitmsec.gate.asking` tells of its owner, it acts upon."""

    key: _Key
    relay: socket.socket
    cookie: int
    flow: QuicFlow
    act: Callable[[_Leg, Sequence[Command]], None]
    asked_s: float
    """When its program had the socket still."""
    ours: socket.socket | None = None

    @property
    def id(self) -> str:
        return self.flow.id

    def tell(self, owner: OwnerKnown, /) -> None:
        self.act(self, self.flow.owned(owner))


class QuicRelay:
    """On the running loop; it owns its sockets and `origins`."""

    def __init__(
        self, relays: Sequence[socket.socket], origins: Origins, cipher: SealingCipher, around: Around
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._relays, self._origins, self._cipher, self._around = relays, origins, cipher, around
        self._legs: OrderedDict[_Key, _Leg] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None
        self.limit = min(FLOWS_LIMIT, flows_limit() // DESCRIPTORS_SHARE)
        """How many flows, and descriptors, it may have."""
        for relay in relays:
            relay.setblocking(False)
        self.resume()

    def __len__(self) -> int:
        return len(self._legs)

    def hold(self) -> None:
        """Hear nobody for a while: datagrams wait in the kernel."""
        for relay in self._relays:
            self._loop.remove_reader(relay.fileno())

    def resume(self) -> None:
        """The end of `hold`."""
        for relay in self._relays:
            self._loop.add_reader(relay.fileno(), self._heard, relay)

    # -- from programs -------------------------------------------------------------------------------------------------
    def _heard(self, relay: socket.socket) -> None:
        for _ in range(TURN_LIMIT):
            try:
                datagram, address = relay.recvfrom(DATAGRAM_LIMIT_BYTES)
            except OSError:  # there is no more
                return
            leg = self._leg(relay, address, datagram)
            if leg is not None:
                self._legs.move_to_end(leg.key)
                self._act(leg, leg.flow.client_sent(datagram, self._loop.time()))

    def _leg(self, relay: socket.socket, address: tuple[Any, ...], datagram: bytes) -> _Leg | None:
        """The socket may be another one by now, or connected elsewhere: what begins anew there is another flow."""
        key = (relay.fileno(), address)
        leg = self._legs.get(key)
        if leg is not None and (datagram[:1] >= LONG_HEADER or self._is_due(leg)) and self._has_gone(leg):
            self._end(leg)
            leg = None
        return leg if leg is not None else self._new_leg(key, relay, address)

    def _new_leg(self, key: _Key, relay: socket.socket, address: tuple[Any, ...]) -> _Leg | None:
        client = Endpoint.of(*address[:2])
        led = self._led(client, relay)
        if led is None or led.origin is None:
            return None
        policy, terms = self._around.governing()
        now_s = self._loop.time()
        flow = QuicFlow(
            flow_id(),
            led.origin,
            client,
            policy,
            terms,
            self._cipher,
            now_s=now_s,
            at_s=time.time(),
            resolved=self._around.names_of(led.origin.remote.address),
        )
        leg = self._legs[key] = _Leg(key, relay, led.cookie, flow, self._act, now_s)
        if len(self._legs) > self.limit:
            self._end(next(iter(self._legs.values())), Outcome.CUT)
            self._around.faults.saw("quic_flow_limit", OnFailure.CLOSED, f"{self.limit} flows; the quietest made room")
        self._look_later()
        if not self._around.is_recording() and terms.on_failure is OnFailure.CLOSED:
            self._act(leg, flow.unrecorded())
        else:
            self._around.ask(leg, led.origin)
        return leg

    def _led(self, client: Endpoint, relay: socket.socket) -> Led | None:
        try:
            return self._origins.find(client, _end_of(relay))
        except OSError:  # the kernel has no memory for that now
            return None

    # -- what a flow orders --------------------------------------------------------------------------------------------
    def _act(self, leg: _Leg, commands: Sequence[Command]) -> None:
        for command in commands:
            match command:
                case Forward(datagram=datagram):
                    self._forward(leg, datagram)
                case Answer(datagram=datagram):
                    self._answer(leg, datagram)
                case Record(seen=seen):
                    self._around.record(seen)
                case Report(what=what, failed=failed, detail=detail):
                    self._around.faults.saw(what, failed, detail, leg.id)
                case _:
                    assert_never(command)

    def _forward(self, leg: _Leg, datagram: bytes) -> None:
        """What cannot be sent is lost, as it may be on any way: the program sends it again, or gives up."""
        with contextlib.suppress(OSError):
            ours = leg.ours or self._dialled(leg)
            ours.send(datagram)

    def _dialled(self, leg: _Leg) -> socket.socket:
        """Raises OSError."""
        try:
            ours = leg.ours = _towards(leg.flow.origin)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._around.faults.saw("not_dialled", OnFailure.CLOSED, "no descriptor is left", leg.id)
            raise
        self._loop.add_reader(ours.fileno(), self._answered, leg)
        return ours

    def _answer(self, leg: _Leg, datagram: bytes) -> None:
        with contextlib.suppress(OSError):  # the program has closed its socket, or does not read
            leg.relay.sendto(datagram, leg.key[1])

    def _answered(self, leg: _Leg) -> None:
        assert leg.ours is not None
        for _ in range(TURN_LIMIT):
            try:
                datagram = leg.ours.recv(DATAGRAM_LIMIT_BYTES)
            except BlockingIOError:
                return
            except OSError:  # nobody listens there, or it cannot be reached: the program finds out by itself
                return
            leg.flow.origin_sent(len(datagram), self._loop.time())
            self._answer(leg, datagram)

    # -- time and ends -------------------------------------------------------------------------------------------------
    def _look_later(self) -> None:
        if self._timer is None and self._legs:
            self._timer = self._loop.call_later(LOOK_S, self._look)

    def _look(self) -> None:
        self._timer = None
        now_s = self._loop.time()
        for leg in list(self._legs.values()):
            self._act(leg, leg.flow.waited(now_s))
            if now_s - leg.flow.last_s > IDLE_S or (self._is_due(leg) and self._has_gone(leg)):
                self._end(leg)
        self._look_later()

    def _is_due(self, leg: _Leg) -> bool:
        return self._loop.time() - leg.asked_s > max(SURE_S, len(self._legs) / ASKED_LIMIT_PER_S)

    def _has_gone(self, leg: _Leg) -> bool:
        leg.asked_s = self._loop.time()
        led = self._led(Endpoint.of(*leg.key[1][:2]), leg.relay)
        if led is None or led.cookie != leg.cookie:
            return True
        return led.origin is not None and led.origin.remote != leg.flow.origin.remote

    def _end(self, leg: _Leg, outcome: Outcome = Outcome.COMPLETED) -> None:
        del self._legs[leg.key]
        self._around.give_up(leg)
        self._act(leg, leg.flow.ended(self._loop.time(), outcome))
        if leg.ours is not None:
            self._loop.remove_reader(leg.ours.fileno())
            leg.ours.close()
        with contextlib.suppress(OSError):  # the kernel has no memory for that now: it makes room by itself
            self._origins.forget(Endpoint.of(*leg.key[1][:2]), _end_of(leg.relay), leg.cookie)

    def end_all(self) -> None:
        """All flows end now, and are on record."""
        for leg in list(self._legs.values()):
            self._end(leg, Outcome.COMPLETED if self._has_gone(leg) else Outcome.CUT)

    def close(self) -> None:
        """Relay no more. To be called once."""
        self.hold()
        self.end_all()
        for relay in self._relays:
            relay.close()
        if self._timer is not None:
            self._timer.cancel()
        self._origins.close()


def _end_of(relay: socket.socket) -> Endpoint:
    return Endpoint.of(*relay.getsockname()[:2])


def _towards(origin: Origin) -> socket.socket:
    """A socket that is connected to the origin, from where the program would have sent. Raises OSError."""
    remote = origin.remote
    ours = socket.socket(socket.AF_INET6 if remote.is_v6 else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ROOM_BYTES)
        if origin.bound is not None:
            with contextlib.suppress(OSError):  # it has just gone
                ours.bind((origin.bound, 0))
        ours.connect((remote.address, remote.port))
    except OSError:
        ours.close()
        raise
    return ours
