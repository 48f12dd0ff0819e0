"""The redirect backend over WinDivert: for Windows, and on Linux through pydivert 4, whose library does the same.

    SOCKET   sniffs who connects ──────────────► ┐
    SYN      takes each first packet ──► held ─► engine ─► decide (ours above) ─┬─► back, untouched
    QUIC     takes handshakes to UDP/443 ──────► ┘                              ├─► refused
                                                    filter grows, gate is told ─┴─► back, as if it came to the gate
    DATA     takes the diverted flows and the gate's answers ──► NAT ──► back

Each handle has a thread. The engine decides alone, under one lock; whoever has news tells it, and does what it orders.
What takes long is done by two more threads: exchanging the filter, and the keeper's rounds. The packets of diverted
flows pass by all that, see `divert_path`.

Held against loops: own connections to origins come from ports that no filter of ours takes.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from typing import assert_never

from mitmsec.core.model import Confidence, OnFailure, Quic, Transport
from mitmsec_redirect import divert_signals as s
from mitmsec_redirect import netns
from mitmsec_redirect.coverage import filter_of
from mitmsec_redirect.divert_asking import Asking
from mitmsec_redirect.divert_engine import HOLD_LIMIT_S, DivertEngine
from mitmsec_redirect.divert_held import FirstPackets, Taken, flow_of, nat_flow
from mitmsec_redirect.divert_keeper import Keeper, Known, Rounds
from mitmsec_redirect.divert_library import Batch, Handle, HandleFlag, HandleShut, HandleStats, open_handle
from mitmsec_redirect.divert_path import DataPath
from mitmsec_redirect.divert_records import Layer, parse_connects
from mitmsec_redirect.divert_seams import Call, Callbacks, Closes, SocketTold, Statistics, connected, expected
from mitmsec_redirect.divert_signals import AnyCommand, AnyEvent, Choice, Flow, Report, Terms, Which
from mitmsec_redirect.divert_system import DivertSystem, this_system
from mitmsec_redirect.filters import EVENTS_FILTER, QUIC_FILTER, Own, syn_filter
from mitmsec_redirect.nat import Added, NatTable
from mitmsec_redirect.packet import Ends
from mitmsec_redirect.socket_table import OpenSocket

SYN_PRIORITY, QUIC_PRIORITY, RING_BYTES, HELD_WAIT_S, IDLE_WAIT_S, EVENT_BATCHES = 2000, 1900, 1 << 24, 0.005, 0.2, 4


class Windivert:
    """All handles of one gate, open. Made by `open`; its methods may be called from any thread."""

    def __init__(
        self,
        system: DivertSystem,
        own: Own,
        on_failure: OnFailure,
        callbacks: Callbacks,
        terms: Terms,
        held: ExitStack,
    ) -> None:
        self._system, self._own, self._callbacks, self._stack = system, own, callbacks, held
        self._connects = partial(parse_connects, has_cookie=system.has_cookies, ticks_per_s=system.ticks_per_s)
        self._engine = DivertEngine(on_failure, terms)
        self._text = filter_of(terms, own, system.limits)
        self._lock, self._detaching, self._numbers = threading.Lock(), threading.Lock(), itertools.count(1)
        self._held: dict[int, tuple[FirstPackets, Taken, Ends, SocketTold]] = {}
        self._diverted: dict[Flow, Known] = {}
        self._table = NatTable(gate_port=own.gate_port)
        self._counts: Counter[str] = Counter()
        self._filters: queue.SimpleQueue[s.SetFilter | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._first: list[FirstPackets] = []
        self._event_batch = Batch(1 << 16)
        self._netns_fd: int | None = None
        self._is_detached = self._is_closed = False

    @classmethod
    def open(
        cls,
        own: Own,
        callbacks: Callbacks,
        *,
        on_failure: OnFailure,
        quic: Quic,
        netns_fd: int | None = None,
        bystanders: Callable[[int], Closes] | None = None,
        calls: Callable[[int], Call | None] | None = None,
        system: DivertSystem | None = None,
    ) -> Windivert:
        """Take the connections of this machine (Linux: of that network namespace, on the interfaces it has now).

        `bystanders` (Linux), called with the gate's port, lets all others' pass unseen; none then waits for a filter.
        `calls` (Linux) says of a socket's cookie who connected it (`CallNotes.call_of`), and stays the caller's.
        A gate has to listen on `own.gate_port` of all addresses, of both families. Raises HandleRefused, OSError, with
        nothing left behind.
        """

        def start() -> Windivert:
            with ExitStack() as held:
                terms = Terms(everything=bystanders is not None)
                made = cls(system or this_system(), own, on_failure, callbacks, terms, held)
                made._open(quic, calls)
                if bystanders is not None:
                    held.callback(bystanders(own.gate_port).close)
                made._stack = held.pop_all()
                return made

        made = netns.inside(netns_fd, start)
        made._netns_fd = None if netns_fd is None else os.dup(netns_fd)
        return made

    def _open(self, quic: Quic, calls: Callable[[int], Call | None] | None) -> None:
        """Who before what: from the first SYN on everything has to be known."""
        keep = self._stack
        self._system.prepare(keep)
        self._owners = self._system.owners()
        self._owners.calls = calls
        keep.callback(self._owners.close)
        self._asking = Asking(self._owners, self._callbacks)
        sockets = self._system.sockets()
        keep.callback(sockets.close)
        rounds = (self._tell_locked, self._stats, self._flows, self._choose, self._report, self._refresh)
        self._keeper = Keeper(sockets, self._own, Rounds(*rounds, self._held.__contains__))
        sniff = HandleFlag.SNIFF | HandleFlag.RECEIVE_ONLY
        self._events = open_handle(EVENTS_FILTER, Layer.SOCKET, flags=sniff, ring_bytes=RING_BYTES)
        keep.callback(self._events.close)
        self._data = DataPath(self._table, _network)
        keep.callback(self._data.close)
        self._data.exchange(self._text)
        self._take(syn_filter(self._own), SYN_PRIORITY)
        if quic.unled is Quic.REFUSE:
            self._take(QUIC_FILTER, QUIC_PRIORITY)
        self._begin("divert-filters", self._exchange_filters)
        self._begin("divert-keeper", self._keeper.run)
        if not self._system.has_cookies:
            self._begin("divert-events", self._listen)
        for first in self._first:
            self._begin("divert-first", partial(self._receive, first))

    def _take(self, text: str, priority: int) -> None:
        handle = _network(text + self._system.first_packets, priority)
        self._stack.callback(handle.close)
        self._first.append(FirstPackets(handle, self._table))

    def _begin(self, name: str, run: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                run()
            except Exception as error:  # a handle that nobody reads would swallow what it takes
                self._collapse(f"{name}: {error!r}")

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    # -- events in -----------------------------------------------------------------------------------------------------
    def _receive(self, first: FirstPackets) -> None:
        """First packets, one after the other. On Linux who sent them was told before, and is read now."""
        while True:
            try:
                taken = first.receive(HELD_WAIT_S if self._engine.held else IDLE_WAIT_S)
            except HandleShut:
                return
            with self._lock:
                events = self._drain()
                for one in taken:
                    if one.ends is None:
                        first.put_back(one)
                    else:
                        events += self._hold(first, one, one.ends)
                self._tell([*events, *self._asking.again(self._held, time.monotonic()), s.Tick()])

    def _hold(self, first: FirstPackets, taken: Taken, ends: Ends) -> list[AnyEvent]:
        """Whose does not concern us goes on at once: the shortest way that there is, for it is everybody's."""
        told = self._owners.socket_of(ends, taken.interface)
        if not (told.fault or self._callbacks.concerns(told)):
            self._counts["left"] += 1
            first.put_back(taken)
            return self._overtaken(ends)
        number, flow = next(self._numbers), flow_of(ends)
        self._held[number] = (first, taken, ends, told)
        syn = s.SynHeld(number=number, flow=flow, sequence=taken.sequence, cookie=told.cookie, fault=told.fault)
        return [*connected(told), syn]

    def _overtaken(self, ends: Ends) -> list[AnyEvent]:
        """A diverted flow that had the same addresses is over, or the other's packets would follow it to the gate."""
        known = self._diverted.get(flow_of(ends)) if self._table.has(ends) else None
        return [] if known is None else [s.FlowClosed(flow=flow_of(ends), sequence=known[0])]

    def _drain(self) -> list[AnyEvent]:
        """What has connected since the last time; nothing where `_listen` tells it."""
        events: list[AnyEvent] = []
        with contextlib.suppress(HandleShut):
            # of the whole machine: whoever floods must not keep others' SYNs waiting
            for _ in range(EVENT_BATCHES if self._system.has_cookies else 0):
                count, _ = self._events.receive(self._event_batch, 0)
                events += self._connects(self._event_batch.address_view, count)
                if count < self._event_batch.packets:
                    break
        return events

    def _listen(self) -> None:
        """Windows: events come when they come."""
        while True:
            try:
                count, _ = self._events.receive(self._event_batch, IDLE_WAIT_S)
            except HandleShut:
                return
            self._tell_locked(self._connects(self._event_batch.address_view, count))

    # -- commands out --------------------------------------------------------------------------------------------------
    def _tell(self, events: Iterable[AnyEvent]) -> None:
        """Tell the engine, do what it orders, tell it what came of that. With the lock held."""
        due = deque(events)
        while due:
            for command in self._engine.told(due.popleft(), time.monotonic()):
                answer = self._do(command)
                if answer is not None:
                    due.append(answer)
        for first in self._first:
            first.flush()

    def _do(self, command: AnyCommand) -> AnyEvent | None:
        match command:
            case s.AskOwner():
                return self._asking.ask(command, self._held[command.number][3], time.monotonic())
            case s.Expect():
                return s.Expected(number=command.number, fault=self._expect(command))
            case s.AskTable() | s.CutUnseen():
                self._keeper.put(command)
            case s.SetFilter():
                self._filters.put(command)
            case s.Forget(flow=flow):
                if (known := self._diverted.pop(flow, None)) is not None:
                    self._table.remove(known[1])
            case s.ReleaseSyn(number=number, diverted=diverted):
                first, taken, _, _ = self._held.pop(number)
                self._counts["diverted" if diverted else "left"] += 1
                if diverted:
                    first.divert(taken)
                else:
                    first.put_back(taken)
            case s.RefuseSyn(number=number):
                first, taken, _, _ = self._held.pop(number)
                self._counts["refused"] += 1
                first.refuse(taken)
            case s.DropSyn(number=number):
                del self._held[number]
            case s.Report():
                self._callbacks.report(command)
            case _:
                assert_never(command)
        return None

    def _expect(self, command: s.Expect) -> str:
        """What went wrong; empty: nothing."""
        _, taken, ends, told = self._held[command.number]
        flow, known = command.flow, nat_flow(taken, ends)
        added = self._table.add(known)
        if added is not Added.ADDED:
            return f"nat_{added}"
        self._diverted[flow] = (command.sequence, known)
        try:
            gate_port, process = self._own.gate_port, command.process
            announced = expected(flow, process, told, command.connected_ns, gate_port, known.loopback)
            self._callbacks.expect(announced, told)
        except Exception as error:
            return repr(error)
        return ""

    # -- what takes long -----------------------------------------------------------------------------------------------
    def _exchange_filters(self) -> None:
        while (command := self._filters.get()) is not None:
            text, fault = filter_of(command.terms, self._own, self._system.limits), ""
            try:
                if text != self._text:
                    self._data.exchange(text)
                    self._text = text
            except (OSError, ValueError) as error:
                fault = str(error)
            self._tell_locked([s.FilterReady(generation=command.generation, fault=fault)])

    def _tell_locked(self, events: Iterable[AnyEvent]) -> None:
        with self._lock:
            self._tell(events)

    def _report(self, fault: Report) -> None:
        with self._lock:
            self._callbacks.report(fault)

    def _choose(self, pid: int, one: OpenSocket) -> Choice:
        """For connections that slipped by, where failures close."""
        ask, told = self._callbacks, SocketTold(Transport.TCP, one.cookie, cgroup=one.cgroup)
        with self._lock, contextlib.suppress(Exception):
            if not ask.concerns(told) or not ask.selects(pid, told):
                return Choice.LEAVE
            owner = self._owners.owner(pid, 0, None, Confidence.TABLE)
            return ask.decide(owner.process, one.remote, told)
        return Choice.DENY

    def _refresh(self) -> None:
        with self._lock:
            self._owners.refresh()

    def _flows(self) -> dict[Flow, Known]:
        with self._lock:
            return dict(self._diverted)

    def _stats(self) -> dict[Which, HandleStats]:
        if self._data.failed:
            raise OSError(self._data.failed)
        return {
            Which.DATA: self._data.stats(),
            Which.EVENTS: self._events.stats(),
            Which.SYNS: sum((first.handle.stats() for first in self._first), HandleStats()),
        }

    def follow(self, on_failure: OnFailure) -> None:
        """From now on, which way failures go."""
        with self._lock:
            self._engine.on_failure = on_failure

    @property
    def diverted(self) -> int:
        """Connections so far. Waits for nobody."""
        return self._counts["diverted"]

    # -- its end -------------------------------------------------------------------------------------------------------
    def statistics(self) -> Statistics:
        """What was counted; not after `close`."""
        with self._lock:
            return Statistics(
                diverted=self._counts["diverted"],
                left=self._counts["left"],
                refused=self._counts["refused"],
                live=self._engine.live,
                held=self._engine.held,
                unsent=self._data.unsent + sum(first.unsent for first in self._first),
                strays=self._data.strays,
                syns=sum((first.handle.stats() for first in self._first), HandleStats()),
                data=self._data.stats(),
                events=self._events.stats(),
            )

    def detach(self) -> None:
        """Divert nothing new; diverted flows live on. Takes `HOLD_LIMIT_S` at most, for what is held. Idempotent."""
        with self._detaching:
            self._detach()

    def _detach(self) -> None:
        if self._is_detached:
            return
        self._is_detached = True
        for first in self._first:
            first.handle.shutdown()
        for thread in self._threads:
            if thread.name == "divert-first":
                thread.join()
        deadline_s = time.monotonic() + HOLD_LIMIT_S + 1
        while self._engine.held and time.monotonic() < deadline_s:
            with self._lock:
                self._tell([*self._drain(), *self._asking.again(self._held, time.monotonic()), s.Tick()])
            time.sleep(HELD_WAIT_S)

    def close(self) -> None:
        """Let go of everything. Diverted flows end: their packets reach origins that know nothing of them."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            self.detach()
        finally:
            self._events.shutdown()
            self._filters.put(None)
            self._keeper.put(None)
            for thread in self._threads:
                thread.join()
            netns.inside(self._netns_fd, self._stack.close)  # the library detaches where the caller is
            if self._netns_fd is not None:
                os.close(self._netns_fd)

    def _collapse(self, why: str) -> None:
        """Our own code has failed. Open: take nothing any more. Closed: what is taken stays taken."""
        self._report(Report(what="backend_failed", failed=self._engine.on_failure, detail=why))
        if self._engine.on_failure is OnFailure.OPEN:
            for first in self._first:
                with contextlib.suppress(OSError):
                    first.handle.shutdown()


def reap() -> int:
    """Remove what backends whose process died have left on this network namespace's interfaces. How many pieces."""
    return this_system().reap()


def _network(text: str, priority: int) -> Handle:
    return open_handle(text, Layer.NETWORK, priority=priority, ring_bytes=RING_BYTES)
