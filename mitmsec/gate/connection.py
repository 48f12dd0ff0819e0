"""The acting half of a flow: executes what `flow` orders, on sockets and timers, and tells it what became of it."""

from __future__ import annotations

import functools
import logging
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import assert_never

from mitmsec.audit.event import Seen
from mitmsec.core.crl_place import CRL_PLACE
from mitmsec.core.messages import HandOver, UpstreamAnswer
from mitmsec.core.model import Action, Endpoint, OnFailure, Value
from mitmsec.gate import dns_ear
from mitmsec.gate import signals as s
from mitmsec.gate.crew import Crew
from mitmsec.gate.crl_origin import CrlOrigin
from mitmsec.gate.dial import Dial
from mitmsec.gate.faults import Faults
from mitmsec.gate.flow import Flow, State
from mitmsec.gate.hangups import Hangups, moved_bytes
from mitmsec.gate.inward import Way
from mitmsec.gate.lean_loop import Loop, Timer
from mitmsec.gate.learned import Learned
from mitmsec.gate.loans import Loans, hand_out, shut, take_in
from mitmsec.gate.names import Names
from mitmsec.gate.origin_probe import OriginProbe
from mitmsec.gate.peek import Peek
from mitmsec.gate.refuse import Farewell, page, reset
from mitmsec.gate.relay import Relay
from mitmsec.gate.signals import AnyCommand, AnyEvent, DialFailure, Ending, Origin
from mitmsec.gate.splice import Pipes
from mitmsec.gate.tee import Taps
from mitmsec.gate.terms import Decides, Health, Terms

UPSTREAMS_LIMIT = 8  # further connections that one flow's worker may have under way
GREETING_BYTES = 1024

log = logging.getLogger(__name__)

type HearsDns = Callable[[Endpoint, Endpoint, bool, bytes], None]
"""Told of each DNS message over TCP: the program's end, the name server's, whether the program sent it, the message."""


class Means(Value, frozen=True):
    """What all connections of a gate work with."""

    loop: Loop
    terms: Terms
    connect_deadline_s: float
    local_ports: range | None
    policy: Decides
    names: Names
    learned: Learned
    health: Health
    crew: Crew
    hangups: Hangups
    loans: Loans
    pipes: Pipes
    taps: Taps
    faults: Faults
    record: Callable[[Seen], None]
    ask: Callable[[Connection, Origin], None]
    mint: Callable[[str, str], None]
    withdraw: Callable[[str], None]
    spoke: Callable[[Connection], None]
    """The connection is not silent any more."""
    over: Callable[[Connection], None]
    """The connection is closed and on record."""
    crls: CrlOrigin  # whom connections to `CRL_PLACE` reach
    dns: HearsDns | None = None
    probe: OriginProbe | None = None


class Connection:
    """One accepted socket, and the origin's once there is one. Owns both."""

    __slots__ = (
        "__weakref__", "_acting", "_bound", "_client", "_deadline", "_dial", "_events", "_farewell", "_means",
        "_minted", "_more", "_origin", "_over", "_peek", "_relay", "_wanted_bytes", "_way", "flow",
    )  # fmt: skip

    def __init__(self, means: Means, flow: str, client: socket.socket) -> None:
        self.flow = Flow(flow, means.terms, means.policy, means.names, means.health, means.learned)
        self._means, self._client = means, client
        self._origin: socket.socket | None = None
        self._bound: str | None = None
        self._events: deque[AnyEvent] = deque()
        self._acting = self._minted = self._over = False
        self._deadline: Timer | None = None
        self._peek: Peek | None = None
        self._dial: Dial | None = None
        self._relay: Relay | None = None
        self._farewell: Farewell | None = None
        self._more: set[Dial] | None = None
        self._way: Way | None = None
        self._wanted_bytes = 1

    @property
    def id(self) -> str:
        return self.flow.about.flow

    def accepted(self, client: Endpoint, gate: Endpoint, origin: Origin | None, way: Way | None = None) -> None:
        """Begin. `way`: it came in, and this is how to reach whom it was meant for."""
        self._way = way
        self._bound = origin.bound if origin is not None else None
        self.tell(s.Accepted(client, gate, origin, time.time()))

    def long_lived(self) -> None:
        sent, received = (self._relay.sent_bytes, self._relay.received_bytes) if self._relay else (0, 0)
        self.tell(s.LongLived(sent, received))

    def cut(self, event: s.Cut) -> None:
        """End now, whatever is going on."""
        self.tell(event)
        if self._farewell is not None:
            self._farewell.end()

    def tell(self, event: AnyEvent) -> None:
        """Tell the flow, and do what it orders; events that this leads to come after it."""
        self._events.append(event)
        if self._acting:
            return
        self._acting = True
        try:
            while self._events:
                self._act(self._events.popleft())
        finally:
            self._acting = False
        if self.flow.state is State.ENDED and self._farewell is None:
            self._is_over()

    def _act(self, event: AnyEvent) -> None:
        """One bad flow must not spoil the others: its failure is its own end, or `on_failure`'s."""
        left: deque[AnyCommand] = deque()
        try:
            left.extend(self.flow.told(event, self._means.loop.time()))
            while left:
                self._execute(left[0])
                left.popleft()
        except Exception as error:
            log.exception("gate_failed flow=%s", self.id)
            self._events.clear()
            if isinstance(event, s.Faulted) or self.flow.state is State.ENDED:
                return self._give_up(left, type(error).__name__)
            self._events.append(s.Faulted(type(error).__name__))

    def _give_up(self, left: Sequence[AnyCommand], detail: str) -> None:
        """The flow's end itself has failed: what has to be is done without it, the reset before all else."""
        self.flow.state = State.ENDED
        seen = self.flow.about.given_up(detail, self._means.loop.time())
        ends = [command.seen for command in left if isinstance(command, s.Record)] or [seen]
        tasks: tuple[Callable[[], None], ...] = (
            self._farewell.end if self._farewell is not None else lambda: None,
            self._release,
            lambda: reset(self._client),
            lambda: self._means.faults.saw("gate_failed", OnFailure.CLOSED, detail, self.id),
            *(functools.partial(self._means.record, end) for end in ends),
        )
        for task in tasks:
            try:
                task()
            except Exception:
                log.exception("gate_failed flow=%s", self.id)

    def _execute(self, command: AnyCommand) -> None:
        means = self._means
        match command:  # the frequent ones first: each case before costs
            case s.SetDeadline(after_s=after_s):
                self._set_deadline(after_s)
            case s.Ask(origin=origin):
                means.ask(self, origin)
            case s.Peek(at_least_bytes=at_least_bytes):
                self._peek = self._peek or Peek(means.loop, self._client, self._peeked, self._client_gone)
                self._peek.wait(at_least_bytes)
            case s.Dial(endpoints=endpoints):
                self._dial = self._dial or self._new_dial(self._dialled, self._dial_failed)
                self._dial.add(endpoints)
            case s.Undial():
                self._leave_origin()
            case s.Record(seen=seen):
                means.record(seen)
            case s.Relay(tee=tee):
                self._begin_relay(tee)
            case s.Close():
                self._release(in_order=True)
                if self.flow.worker >= 0:
                    shut(self._client)  # a worker may still hold it: it is over for it, too
                self._client.close()
            case s.Staff(preferred=preferred):
                means.crew.staff(self, preferred)
            case s.Mint(name=name):
                self._minted = True
                means.mint(self.id, name)
            case s.Hand(worker=worker, order=order):
                self._hand(worker, order)
            case s.WatchClient():
                means.hangups.watch(self._client, self._client_left, half=True)
            case s.Prove(name=name, remote=remote):
                assert means.probe is not None
                means.probe.ask(name, remote, self._bound, lambda holds: self.tell(s.Proved(holds)))
            case s.WatchServer(at_least_bytes=at_least_bytes):
                self._watch_server(at_least_bytes)
            case s.TakeBack():
                self._take_back()
            case s.Page(rule=rule, reason=reason):
                self._release()
                self._farewell = Farewell(means.loop, self._client, page(rule, reason, self.id), self._farewell_over)
            case s.Reset():
                self._release()
                reset(self._client)
            case s.Report(what=what, failed=failed, detail=detail):
                means.faults.saw(what, failed, detail, self.id)
            case _:
                assert_never(command)

    # -- the client ----------------------------------------------------------------------------------------------------
    def _peeked(self, data: bytes, more: bool) -> None:
        if data:
            self._means.spoke(self)
        self.tell(s.FirstBytes(data, eof=not more))

    def _client_gone(self) -> None:
        self.tell(s.ClientGone())

    def _set_deadline(self, after_s: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self._means.loop.call_later(after_s, self._time_is_up) if after_s is not None else None

    def _time_is_up(self) -> None:
        self._deadline = None
        self.tell(s.Deadline())

    # -- the origin ----------------------------------------------------------------------------------------------------
    def _new_dial(
        self, connected: Callable[[socket.socket, Endpoint], None], failed: Callable[[DialFailure], None]
    ) -> Dial:
        means = self._means
        ours = means.crls.connect if self.flow.about.remote == CRL_PLACE else None
        begin = ours if self._way is None else self._way.connect
        return Dial(
            means.loop,
            connected,
            failed,
            deadline_s=means.connect_deadline_s,
            bound=self._bound,
            local_ports=means.local_ports,
            begin=begin,
        )

    def _dialled(self, sock: socket.socket, endpoint: Endpoint) -> None:
        self._origin = sock
        self.tell(s.Dialled(endpoint))

    def _dial_failed(self, failure: DialFailure) -> None:
        self.tell(s.DialFailed(failure))

    def _watch_server(self, at_least_bytes: int) -> None:
        if self._origin is not None:  # else it was taken back too late, which is told
            self._want_of_server(at_least_bytes)
            self._means.loop.add_reader(self._origin, self._server_readable)

    def _want_of_server(self, at_least_bytes: int) -> None:
        if self._origin is not None and self._wanted_bytes != at_least_bytes:
            self._wanted_bytes = at_least_bytes
            self._origin.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, at_least_bytes)

    def _server_readable(self) -> None:
        assert self._origin is not None
        try:
            event: AnyEvent = s.ServerSpoke(self._origin.recv(GREETING_BYTES, socket.MSG_PEEK))
        except BlockingIOError:
            return
        except OSError:
            event = s.ServerGone()
        self._means.loop.remove_reader(self._origin)
        self._means.spoke(self)
        self.tell(event)

    # -- carrying ------------------------------------------------------------------------------------------------------
    def _stop_watching(self) -> None:
        if self._peek is not None:
            self._peek.stop()
            self._peek = None
        if self._origin is not None:
            self._means.loop.remove_reader(self._origin)
            self._want_of_server(1)

    def _begin_relay(self, tee: bool) -> None:
        self._stop_watching()
        assert self._origin is not None
        means = self._means
        means.crew.part(self.flow.worker, self.id)
        tap = means.taps.tap(self.flow.about) if tee else None
        relay = self._relay = Relay(means.loop, self._client, self._origin, means.pipes, tap, self._relay_ended)
        if means.dns is not None and dns_ear.speaks_dns(self.flow.about):
            hear = functools.partial(means.dns, self.flow.about.client, self.flow.about.remote)
            dns_ear.listen(relay, hear, tap, dns_ear.answers(self.flow.about, means.terms.offers))
        relay.start()

    def _relay_ended(self, ending: Ending) -> None:
        assert self._relay is not None
        self.tell(s.RelayEnded(ending, self._relay.sent_bytes, self._relay.received_bytes))

    def _hand(self, worker: int, order: HandOver) -> None:
        """The worker has the sockets now; duplicates are kept, to end both legs whatever the worker does."""
        self._stop_watching()
        hand_out(self._client)
        if order.decision.action is Action.BLOCK:
            return self._means.crew.hand(worker, self, order, self._client.fileno())
        assert self._origin is not None
        origin, self._origin = self._origin, None
        self._means.loans.lend(self.id, origin)
        self._means.crew.hand(worker, self, order, self._client.fileno(), origin.fileno())

    def _take_back(self) -> None:
        for dial in self._more or ():  # whoever has let go gets no more
            dial.cancel()
        self._more = None
        self._means.hangups.forget(self._client)
        take_in(self._client)
        self._origin = self._means.loans.take_back(self.id)
        if self._origin is None:
            self.tell(s.ServerGone())

    def _client_left(self) -> None:
        self.tell(s.ClientLeft(moved_bytes(self._client)))

    def dial_more(self, number: int) -> None:
        """For the worker that has this flow: another connection to the decided origin, and to nothing else."""
        about = self.flow.about
        if about.is_blocked or about.through is not None:  # a proxy has to be asked by the program
            return self._answer(number, "it is blocked" if about.is_blocked else "it led through a proxy")
        if self._more is None:
            self._more = set()
        if len(self._more) >= UPSTREAMS_LIMIT:
            return self._answer(number, "too many at once")

        def connected(sock: socket.socket, _: Endpoint) -> None:
            under_way.discard(dial)
            if self._means.loans.lend(self.id, sock):
                self._answer(number, "", sock.fileno())
            else:
                self._answer(number, "too many at once")

        def failed(failure: DialFailure) -> None:
            under_way.discard(dial)
            self._answer(number, failure.value)

        under_way, dial = self._more, self._new_dial(connected, failed)
        under_way.add(dial)
        dial.add((self.flow.about.remote,))

    def _answer(self, number: int, error: str, *fds: int) -> None:
        answer = UpstreamAnswer(flow=self.id, number=number, error=error)
        try:
            self._means.crew.answer(self.flow.worker, answer, *fds)
        except OSError:  # it would have to wait, and there is no descriptor left to wait with
            self._answer(number, DialFailure.FAULT.value)

    # -- the end -------------------------------------------------------------------------------------------------------
    def _release(self, *, in_order: bool = False) -> None:
        """Let go of everything but the client's socket."""
        self._set_deadline(None)
        if self._relay is not None and not self._relay.ended:
            self._relay.stop()
        for dial in self._more or ():
            dial.cancel()
        self._means.hangups.forget(self._client)
        self._means.crew.part(self.flow.worker, self.id)
        self._means.loans.recall(self.id, in_order=in_order)
        self._leave_origin(in_order=in_order)

    def _leave_origin(self, *, in_order: bool = False) -> None:
        self._stop_watching()
        if self._dial is not None:
            self._dial.cancel()
        if self._origin is not None:
            self._origin.close() if in_order else reset(self._origin)
            self._origin = None

    def _farewell_over(self) -> None:
        self._farewell = None
        self._is_over()

    def _is_over(self) -> None:
        if not self._over:
            self._over = True
            self._dial, relay, self._relay = None, self._relay, None  # without circles nothing is left to be collected
            if relay is not None:
                relay.dissolve()
            if self._way is not None:
                self._way.close()
            if self._minted:
                self._means.withdraw(self.id)
            self._means.over(self)
