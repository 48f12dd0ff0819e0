"""What the backend looks after beside its packets: tables that take long, what queues lost, flows that are over.

One thread. It tells the engine what it finds, and touches nothing of the others' but through the calls it was given.
A table that cannot be read is a fault; the next round reads it again, and nothing else waits for that. Only to find who
slipped by it is read again at once: all else waits a second at most.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable, Mapping
from typing import assert_never

from mitmsec.core.model import OnFailure, Value
from mitmsec_redirect import divert_signals as s
from mitmsec_redirect.divert_library import HandleStats
from mitmsec_redirect.divert_signals import AnyEvent, Choice, Flow, Report, Which
from mitmsec_redirect.filters import Own
from mitmsec_redirect.nat import Flow as NatFlow
from mitmsec_redirect.socket_table import DiagTable, OpenSocket, Pair, SocketTable, pair_of, turned

LOOK_S, SWEEP_S = 0.25, 2.0
CUT_TRIES = 4  # LOOK_S apart

type Known = tuple[int, NatFlow]  # sequence of its SYN; as the NAT table knows it


class Rounds(Value, frozen=True):
    """What the keeper may call. All of it takes care of locks itself."""

    tell: Callable[[Iterable[AnyEvent]], None]
    stats: Callable[[], Mapping[Which, HandleStats]]
    flows: Callable[[], Mapping[Flow, Known]]
    choose: Callable[[int, OpenSocket], Choice]  # for a pid and the socket with which it has connected
    report: Callable[[Report], None]
    refresh: Callable[[], None]  # of processes
    is_held: Callable[[int], bool]  # a first packet of this number


class Keeper:
    """`run` is the thread; `put` gives it work."""

    def __init__(self, sockets: SocketTable, own: Own, rounds: Rounds) -> None:
        self._sockets, self._own, self._rounds = sockets, own, rounds
        self._work: queue.SimpleQueue[s.AskTable | s.CutUnseen | None] = queue.SimpleQueue()
        self._before: dict[Which, HandleStats] = {which: HandleStats() for which in Which}

    def put(self, command: s.AskTable | s.CutUnseen | None) -> None:
        """None ends the thread."""
        self._work.put(command)

    def run(self) -> None:
        look_s = sweep_s = time.monotonic()
        while True:
            try:
                command = self._work.get(timeout=LOOK_S)
                if command is None:
                    return self.count_losses()
                self._answer(command)
            except queue.Empty:
                pass
            if time.monotonic() >= look_s:
                look_s = time.monotonic() + LOOK_S
                self.count_losses()
                self._rounds.refresh()
            if time.monotonic() >= sweep_s:
                sweep_s = time.monotonic() + SWEEP_S
                self.sweep()

    def _answer(self, command: s.AskTable | s.CutUnseen) -> None:
        match command:
            case s.AskTable(number=number, flow=flow):
                if self._rounds.is_held(number):  # else the answer would come too late, and keep others waiting
                    self._rounds.tell([self._told(number, flow)])
            case s.CutUnseen(connected=connected):
                self._cut_surely(connected)
            case _:
                assert_never(command)

    def _told(self, number: int, flow: Flow) -> s.TableTold:
        """A table that cannot be read now is a failure of this one flow."""
        try:
            named = self._sockets.named(flow)
        except OSError as error:
            return s.TableTold(number=number, pid=None, fault=str(error))
        if named is None:
            return s.TableTold(number=number, pid=None)
        return s.TableTold(number=number, pid=named.pid, confidence=named.confidence, connected_ns=named.made_ns)

    def _cut_surely(self, connected: Mapping[int, int]) -> None:
        """As often as may help; what cannot be cut stays undiverted."""
        for _ in range(CUT_TRIES):
            try:
                return self._cut(connected)
            except OSError as error:
                fault = str(error)
            time.sleep(LOOK_S)
        self._rounds.report(Report(what="not_cut", failed=OnFailure.OPEN, detail=fault))

    def _cut(self, connected: Mapping[int, int]) -> None:
        """End those of the sockets that would have been diverted or denied: not own ones, none within this machine."""
        if not isinstance(self._sockets, DiagTable):
            return  # there nothing passes by: a full queue loses packets
        there = self._sockets.open_sockets()
        pairs = {one.pair for one in there}
        for one in there:
            pid = connected.get(one.cookie)
            if pid is None or one.local_port in self._own.upstream or turned(one.pair) in pairs:
                continue
            if self._rounds.choose(pid, one) is Choice.LEAVE:
                continue
            if self._sockets.destroy(one):
                self._rounds.report(Report(what="cut_unseen", failed=OnFailure.CLOSED, detail=f"to {one.remote}"))

    def count_losses(self) -> None:
        """Tell of what was lost since the last time."""
        events: list[AnyEvent] = []
        for which, stats in self._rounds.stats().items():
            before, self._before[which] = self._before[which], stats
            for count, passed in ((stats.lost - before.lost, False), (stats.passed - before.passed, True)):
                if count > 0:
                    events.append(s.Overflowed(which=which, count=count, passed=passed))
        self._rounds.tell(events)

    def sweep(self) -> None:
        """Flows whose sockets are gone, the program's and the gate's, are over; where nobody can tell, later."""
        flows = self._rounds.flows()
        if not flows:
            return
        try:
            pairs = self._sockets.pairs()
        except OSError as error:  # until then ended flows keep their places, of which there are `FLOWS_LIMIT`
            return self._rounds.report(Report(what="flows_not_swept", failed=OnFailure.OPEN, detail=str(error)))
        self._rounds.tell(
            s.FlowClosed(flow=flow, sequence=sequence)
            for flow, (sequence, known) in flows.items()
            if not any(pair in pairs for pair in self._pairs(known))
        )

    def _pairs(self, known: NatFlow) -> tuple[Pair, Pair]:
        """The program's socket and the gate's."""
        here, there = (known.origin, known.client) if known.loopback else (known.client, known.origin)
        return (
            pair_of(known.client, known.client_port, known.origin, known.origin_port),
            pair_of(here, self._own.gate_port, there, known.client_port),
        )
