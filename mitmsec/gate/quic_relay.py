"""Relays QUIC of selected programs, where the kernel leads that to us, as `quic_flow` says; not one byte is changed.

program ── datagram ──► relay's socket ──► flow: held, refused, or let pass ──► the flow's own socket ──► origin
   ▲                                                                                     │
   └──────────── by the relay's socket; the kernel shows the origin as its sender ◄──────┘

What is to be decrypted a worker has, by two pairs (`quic_pairs`); its way to both sides is still through here.

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
from collections.abc import Sequence
from typing import Any, assert_never

import msgspec

from mitmsec.audit.event import Outcome
from mitmsec.core.messages import UpstreamAnswer
from mitmsec.core.model import Endpoint, OnFailure
from mitmsec.core.quic_answers import SealingCipher
from mitmsec.gate import signals as s
from mitmsec.gate.descriptors import flows_limit
from mitmsec.gate.ids import flow_id
from mitmsec.gate.quic_flow import LONG_HEADER, QuicFlow
from mitmsec.gate.quic_ground import Around, Led, Origins, end_of, towards
from mitmsec.gate.quic_pairs import Outlets, Pairs
from mitmsec.gate.quic_signals import Answer, Command, Deliver, Forward, Hand, LetGo, Record, Report, Staff, State

FLOWS_LIMIT = 1024  # the one that has been quiet for longest makes room
DECRYPTED_LIMIT = 256  # of them: each takes two more descriptors, and a worker's memory
DESCRIPTORS_SHARE = 8  # of what connections may have, where that is less
LEAVE_S = 2.0  # for a worker's last word on a flow whose program has gone
STEP_S = 0.02  # how often that is looked at, in the end
IDLE_S = 300.0  # also of one whose program keeps its socket
LOOK_S = 1.0  # how long until we look whether its program has closed it
SURE_S, ASKED_LIMIT_PER_S = 0.1, 1024  # what comes from its port meanwhile is its own; longer where flows are many
TURN_LIMIT = 64  # datagrams from one socket, then others have their turn
DATAGRAM_LIMIT_BYTES = 65535

type _Key = tuple[int, tuple[Any, ...]]


class _Leg(msgspec.Struct):
    """A flow on its sockets. What `mitmsec.gate.asking` and the crew tell, it acts upon."""

    key: _Key
    relay: socket.socket
    cookie: int
    flow: QuicFlow
    owner: QuicRelay
    asked_s: float
    """When its program had the socket still."""
    ours: socket.socket | None = None
    pairs: Pairs | None = None
    worker: int = -1
    is_left: bool = False
    """Its program has gone: nothing is said to whoever has its port now."""

    @property
    def id(self) -> str:
        return self.flow.id

    def tell(self, event: s.AnyEvent, /) -> None:
        self.owner.told(self, event)

    def dial_more(self, number: int) -> None:
        """A worker asks for another connection; over QUIC there is none."""
        self.owner.refuse_more(self, number)


class QuicRelay:
    """On the running loop; it owns its sockets and `origins`."""

    def __init__(
        self, relays: Sequence[socket.socket], origins: Origins, cipher: SealingCipher, around: Around
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._relays, self._origins, self._cipher, self._around = relays, origins, cipher, around
        self._legs: OrderedDict[_Key, _Leg] = OrderedDict()
        self._leaving: dict[str, _Leg] = {}
        self._paired: dict[str, _Leg] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.limit = min(FLOWS_LIMIT, flows_limit() // DESCRIPTORS_SHARE)
        """How many flows it may have."""
        self._decrypted_limit = min(DECRYPTED_LIMIT, self.limit // 4)
        for relay in relays:
            relay.setblocking(False)
        self.resume()

    def __len__(self) -> int:
        return len(self._legs) + len(self._leaving)

    @property
    def descriptors(self) -> int:
        """How many it may have."""
        return self.limit + 2 * self._decrypted_limit

    @property
    def decrypted(self) -> int:
        """Flows that a worker has."""
        return len(self._handed)

    @property
    def _handed(self) -> list[_Leg]:
        legs = (*self._legs.values(), *self._leaving.values())
        return [leg for leg in legs if leg.flow.state is State.HANDED]

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
            decrypting=self._around.decrypting if terms.decrypts_quic else None,
        )
        leg = self._legs[key] = _Leg(key, relay, led.cookie, flow, self, now_s)
        if len(self) > self.limit:
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
            return self._origins.find(client, end_of(relay))
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
                case Deliver(datagram=datagram):
                    if leg.pairs is not None:
                        leg.pairs.client_sent(datagram)
                case Staff():
                    self._staff(leg)
                case Hand():
                    self._hand(leg, command)
                case LetGo():
                    self._let_go(leg)
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
            ours = leg.ours = towards(leg.flow.origin)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._around.faults.saw("not_dialled", OnFailure.CLOSED, "no descriptor is left", leg.id)
            raise
        self._loop.add_reader(ours.fileno(), self._answered, leg)
        return ours

    def _answer(self, leg: _Leg, datagram: bytes) -> None:
        with contextlib.suppress(OSError):  # the program has closed its socket, or does not read
            if not leg.is_left:
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
            if leg.pairs is not None:
                leg.pairs.origin_sent(datagram)
            else:
                self._said(leg, datagram)

    def _said(self, leg: _Leg, datagram: bytes) -> None:
        leg.flow.origin_sent(len(datagram), self._loop.time())
        self._answer(leg, datagram)

    # -- workers -------------------------------------------------------------------------------------------------------
    def told(self, leg: _Leg, event: s.AnyEvent) -> None:
        """What happens to it beside datagrams."""
        now_s, flow = self._loop.time(), leg.flow
        match event:
            case s.OwnerKnown():
                self._act(leg, flow.owned(event))
            case s.Staffed(worker=worker):
                self._act(leg, flow.staffed(worker))
            case s.Unstaffed():
                self._around.crew.part(-1, leg.id)
                self._act(leg, flow.unstaffed("no worker is there"))
            case s.WorkerSaid(ended=ended):
                if leg.pairs is not None:
                    leg.pairs.read()  # which it sent before
                self._act(leg, flow.worker_said(ended, now_s))
            case s.WorkerDied():
                self._act(leg, flow.cut("worker_died", Outcome.FAULT, now_s))
            case s.WorkerUpgrades():  # no honest worker says so
                self._act(leg, flow.cut("foreign_upgrade", Outcome.FAULT, now_s))
            case _:
                pass  # of connections
        if leg.is_left and flow.state is not State.HANDED:
            self._leaving.pop(leg.id, None)

    def refuse_more(self, leg: _Leg, number: int) -> None:
        answer = UpstreamAnswer(flow=leg.id, number=number, error="there is one connection over QUIC")
        self._around.crew.answer(leg.worker, answer)

    def _staff(self, leg: _Leg) -> None:
        if len(self._paired) >= self._decrypted_limit:  # also those that say goodbye
            return self._act(leg, leg.flow.unstaffed("too many are decrypted"))
        self._around.crew.staff(leg)

    def _hand(self, leg: _Leg, hand: Hand) -> None:
        around = self._around
        outlets = Outlets(
            client=lambda datagram: self._said(leg, datagram),
            origin=lambda datagram: self._forward(leg, datagram),
            closed=lambda: self._unpaired(leg),
        )
        try:
            self._dialled(leg)
            leg.pairs, leg.worker = Pairs(self._loop, outlets), hand.worker
            self._paired[leg.id] = leg
            around.mint(leg.id, hand.order.name)
            try:
                around.crew.hand(hand.worker, leg, hand.order, *leg.pairs.theirs)
            finally:
                leg.pairs.handed()
        except OSError:
            self._act(leg, leg.flow.unstaffed("its origin cannot be reached, or no descriptor is left"))

    def _let_go(self, leg: _Leg) -> None:
        self._around.crew.part(leg.worker, leg.id)
        self._around.withdraw(leg.id)
        if leg.pairs is not None:
            leg.pairs.let_go()

    def _unpaired(self, leg: _Leg) -> None:
        leg.pairs = None
        del self._paired[leg.id]
        self._hang_up(leg)

    def switch_off(self) -> int:
        """Cut what is being decrypted; how many flows that were."""
        handed = self._handed
        for leg in handed:
            self._act(leg, leg.flow.cut("switched off", Outcome.CUT, self._loop.time()))
        return len(handed)

    async def drain(self, grace_s: float) -> None:
        """Give workers the time to end what they have."""
        until_s = self._loop.time() + grace_s
        while (handed := self._handed) and self._loop.time() < until_s:
            for leg in handed:
                if not leg.is_left and self._is_due(leg) and self._has_gone(leg):
                    self._end(leg)
            await asyncio.sleep(STEP_S)

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
        leg.is_left = True
        if leg.flow.state is State.HANDED and outcome is Outcome.COMPLETED and leg.pairs is not None:
            self._leaving[leg.id] = leg
            leg.pairs.let_go()
            self._loop.call_later(LEAVE_S, self._leave, leg, outcome)
        else:
            self._leave(leg, outcome)
        with contextlib.suppress(OSError):  # the kernel has no memory for that now: it makes room by itself
            self._origins.forget(Endpoint.of(*leg.key[1][:2]), end_of(leg.relay), leg.cookie)

    def _leave(self, leg: _Leg, outcome: Outcome) -> None:
        """Now, whatever a worker has still to say."""
        self._leaving.pop(leg.id, None)
        self._act(leg, leg.flow.ended(self._loop.time(), outcome))
        if leg.pairs is None:
            self._hang_up(leg)

    def _hang_up(self, leg: _Leg) -> None:
        ours, leg.ours = leg.ours, None
        if ours is not None:
            self._loop.remove_reader(ours.fileno())
            ours.close()

    def end_all(self) -> None:
        """All flows end now, and are on record."""
        for leg in list(self._legs.values()):
            self._end(leg, Outcome.COMPLETED if self._has_gone(leg) else Outcome.CUT)
        for leg in list(self._leaving.values()):
            self._leave(leg, Outcome.COMPLETED)

    def close(self) -> None:
        """Relay no more. To be called once."""
        self.hold()
        self.end_all()
        for leg in list(self._paired.values()):
            if leg.pairs is not None:
                leg.pairs.close()
        for relay in self._relays:
            relay.close()
        if self._timer is not None:
            self._timer.cancel()
        self._origins.close()
