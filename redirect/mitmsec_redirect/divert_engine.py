"""The mind of the `windivert` backend: events in, commands out, time as an argument. No handle, no clock of its own.

    SOCKET events (who) ─────────┐
    SYN handle (each new one) ─► OWNER ─ AskOwner ─► ASKED ─┬ leave ─────────────────────────► ReleaseSyn(untouched)
                                 │ 200 ms                   ├ deny, QUIC ────────────────────► RefuseSyn
                                 ▼                          └ divert ─► FILTER ─► GATE ──────► ReleaseSyn(diverted)
                                 TABLE ─ pid ─► ASKED                   SetFilter  Expect
                                   └ nobody ─► on_failure

A SYN is kept until its owner is known; its program waits in connect() and can be read. The event that names the owner
and the SYN come in any order. On Linux both carry the cookie of the socket, which is never used again. Windows has
only addresses, which are: there an event serves one SYN, and only if it is fresh. When no event comes, the system's
table of sockets is asked, and when that says nothing, `on_failure` decides.

A diverted SYN waits for two more things: the data handle must take the flow's packets before there are any, and the
gate must know the flow before it can come. Whatever is held longer than `HOLD_LIMIT_S` follows `on_failure`.

The sequence number of a SYN tells a retransmission, which is answered as the first one was, from a new connection on
the same addresses, which is asked about anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import assert_never

import msgspec

from mitmsec.core.model import Confidence, Endpoint, OnFailure, Process, Transport, Value
from mitmsec_redirect import divert_signals as s
from mitmsec_redirect.coverage import NOTHING, WINDOW_S, Coverage
from mitmsec_redirect.divert_signals import AnyCommand, AnyEvent, Choice, Flow, Terms

OWNER_DEADLINE_S = 0.2  # for the event; the slowest of 36,000 on a busy machine took 13 ms
HOLD_LIMIT_S = 2.0
ADDRESSES_FRESH_S = 2.0  # how long before its SYN an event without a cookie may have come
ANSWER_KEPT_S = {Transport.TCP: 120.0, Transport.UDP: 5.0}  # SYNs are sent again for two minutes; QUIC has no number
HELD_LIMIT = 2048
QUIC_HELD_LIMIT = 512  # of these: anybody can send handshakes that no event tells of, and keep each for two seconds
FLOWS_LIMIT = 65536  # as many as the NAT's table holds
CONNECTS_LIMIT = 16384
ANSWERS_LIMIT = 4096

type Commands = list[AnyCommand]
type Key = int | tuple[Transport, int, Endpoint]  # a cookie; or transport, local port and remote


class State(Enum):
    """What a held SYN waits for."""

    OWNER = auto()
    TABLE = auto()
    ASKED = auto()
    FILTER = auto()
    GATE = auto()


class _Held(msgspec.Struct):
    number: int
    flow: Flow
    sequence: int
    key: Key
    since_s: float
    state: State = State.OWNER
    process: Process | None = None
    connected_ns: int | None = None


class _Connect(Value, frozen=True):
    pid: int
    connected_ns: int
    at_s: float


class _Live(Value, frozen=True):
    key: Key
    sequence: int


class _Answer(Value, frozen=True):
    key: Key
    sequence: int
    choice: Choice
    at_s: float


class DivertEngine:
    """All SYNs held and all flows diverted. Times are monotonic seconds."""

    def __init__(self, on_failure: OnFailure, in_force: Terms = NOTHING) -> None:
        """`in_force`: whose packets the data handle takes at the beginning."""
        self.on_failure = on_failure
        self._connects: dict[Key, _Connect] = {}  # oldest first, as all of these
        self._held: dict[int, _Held] = {}
        self._held_quic = 0
        self._by_flow: dict[Flow, _Held] = {}
        self._by_key: dict[Key, _Held] = {}
        self._live: dict[Flow, _Live] = {}
        self._answers: dict[Flow, _Answer] = {}
        self._coverage = Coverage(in_force)
        self._generation = 0
        self._narrow_at_s = 0.0
        self._now_s = 0.0

    @property
    def held(self) -> int:
        """How many SYNs wait."""
        return len(self._held)

    @property
    def live(self) -> int:
        """How many flows are diverted."""
        return len(self._live)

    def told(self, event: AnyEvent, now_s: float) -> Sequence[AnyCommand]:
        """What `event` leads to, in order. Answers to questions that no longer matter lead to nothing."""
        self._now_s = now_s
        match event:
            case s.SocketConnected():
                return self._connected(event)
            case s.SynHeld():
                return self._syn(event)
            case s.TableTold(number=number):
                return self._table_told(self._waiting(number, State.TABLE), event)
            case s.OwnerTold(number=number):
                return self._owner_told(self._waiting(number, State.ASKED), event)
            case s.FilterReady(generation=generation, fault=fault):
                return self._filter_ready(fault) if generation == self._generation else []
            case s.Expected(number=number, fault=fault):
                return self._expected(self._waiting(number, State.GATE), fault)
            case s.FlowClosed(flow=flow, sequence=sequence):
                live = self._live.get(flow)
                return self._closed(flow) if live is not None and live.sequence == sequence else []
            case s.Overflowed():
                return self._overflowed(event)
            case s.Tick():
                return self._tick()
            case _:
                assert_never(event)

    def _waiting(self, number: int, state: State) -> _Held | None:
        held = self._held.get(number)
        return held if held is not None and held.state is state else None

    # -- who -----------------------------------------------------------------------------------------------------------
    def _connected(self, event: s.SocketConnected) -> Commands:
        key = _key_of_event(event)
        if key is None:
            return []
        connect = _Connect(event.pid, event.connected_ns, self._now_s)
        held = self._by_key.get(key)
        if held is not None and held.state in (State.OWNER, State.TABLE):
            if isinstance(key, int):  # of the same socket more may come: a retransmission, later
                self._keep(key, connect)
            return self._ask_owner(held, connect.pid, connect.connected_ns)
        self._keep(key, connect)
        return []

    def _keep(self, key: Key, connect: _Connect) -> None:
        self._connects.pop(key, None)
        self._connects[key] = connect
        if len(self._connects) > CONNECTS_LIMIT:
            del self._connects[next(iter(self._connects))]

    def _known(self, key: Key) -> _Connect | None:
        if isinstance(key, int):
            return self._connects.get(key)
        connect = self._connects.pop(key, None)
        return connect if connect is not None and self._now_s - connect.at_s <= ADDRESSES_FRESH_S else None

    # -- a SYN ---------------------------------------------------------------------------------------------------------
    def _syn(self, event: s.SynHeld) -> Commands:
        commands: Commands = []
        earlier = self._by_flow.get(event.flow)
        if earlier is not None:
            if earlier.sequence == event.sequence:
                return [s.DropSyn(number=event.number)]
            commands += self._overtaken(earlier)
        key = _key_of_syn(event)
        live = self._live.get(event.flow)
        if live is not None:
            if live.sequence == event.sequence:
                return [*commands, s.ReleaseSyn(number=event.number, diverted=True)]
            commands += self._closed(event.flow)
        if event.fault:
            return [*commands, *self._not_asked(event)]
        if live is None and (choice := self._answered(event, key)) is not None:
            return [*commands, _answer(event.number, choice)]
        held = _Held(event.number, event.flow, event.sequence, key, self._now_s)
        is_quic = held.flow.transport is Transport.UDP
        if len(self._held) >= HELD_LIMIT or (is_quic and self._held_quic >= QUIC_HELD_LIMIT):
            return [*commands, *self._fail(held, "held_full")]
        self._held_quic += is_quic
        self._held[held.number] = self._by_flow[held.flow] = self._by_key[key] = held
        connect = self._known(key)
        return commands if connect is None else [*commands, *self._ask_owner(held, connect.pid, connect.connected_ns)]

    def _not_asked(self, event: s.SynHeld) -> Commands:
        """It may be anybody's, so it is not refused: if failures close it is lost, and its program sends it again."""
        is_open = self.on_failure is OnFailure.OPEN
        detail = f"{event.flow.local} to {event.flow.remote}: {event.fault}"
        return [
            s.Report(what="socket_not_found", failed=self.on_failure, detail=detail),
            s.ReleaseSyn(number=event.number, diverted=False) if is_open else s.DropSyn(number=event.number),
        ]

    def _overtaken(self, held: _Held) -> Commands:
        """Its program has given up, and another socket has the same addresses."""
        self._let_go(held)
        self._coverage.remove(held.flow)
        drop = s.DropSyn(number=held.number)
        return [s.Forget(flow=held.flow), drop] if held.state is State.GATE else [drop]

    def _answered(self, event: s.SynHeld, key: Key) -> Choice | None:
        """What was chosen when this same SYN came before."""
        answer = self._answers.get(event.flow)
        if answer is None or answer.sequence != event.sequence or answer.key != key:
            return None
        if self._now_s - answer.at_s > ANSWER_KEPT_S[event.flow.transport]:
            return None
        return answer.choice

    def _ask_owner(
        self, held: _Held, pid: int, connected_ns: int | None, confidence: Confidence = Confidence.KERNEL
    ) -> Commands:
        held.state, held.connected_ns = State.ASKED, connected_ns
        number, flow = held.number, held.flow
        return [s.AskOwner(number=number, flow=flow, pid=pid, connected_ns=connected_ns, confidence=confidence)]

    def _table_told(self, held: _Held | None, event: s.TableTold) -> Commands:
        if held is None:
            return []
        if event.pid is None:
            return self._fail(held, "owner_unknown", event.fault)
        return self._ask_owner(held, event.pid, event.connected_ns, event.confidence)

    def _owner_told(self, held: _Held | None, event: s.OwnerTold) -> Commands:
        if held is None:
            return []
        if event.fault:
            return self._fail(held, "not_decided", event.fault)
        held.process = event.process
        choice = event.choice
        if choice is Choice.DIVERT and held.flow.transport is Transport.UDP:
            choice = Choice.DENY
        if choice is not Choice.DIVERT:
            self._let_go(held)
            self._remember(held, choice)
            return [_answer(held.number, choice)]
        if len(self._coverage) >= FLOWS_LIMIT:  # those that are about to be diverted count as well
            return self._fail(held, "flows_full")
        held.state = State.FILTER
        self._coverage.add(held.flow, self._now_s)
        return self._to_gate(held) if self._coverage.covers(held.flow) else self._set_filter()

    def _remember(self, held: _Held, choice: Choice) -> None:
        self._answers.pop(held.flow, None)
        self._answers[held.flow] = _Answer(held.key, held.sequence, choice, self._now_s)
        if len(self._answers) > ANSWERS_LIMIT:
            del self._answers[next(iter(self._answers))]

    def _let_go(self, held: _Held) -> None:
        if self._held.pop(held.number, None) is not None:
            self._held_quic -= held.flow.transport is Transport.UDP
        if self._by_flow.get(held.flow) is held:
            del self._by_flow[held.flow]
        if self._by_key.get(held.key) is held:
            del self._by_key[held.key]

    # -- the filter and the gate ---------------------------------------------------------------------------------------
    def _set_filter(self) -> Commands:
        if self._coverage.is_changing:
            return []  # with the next one
        terms: Terms = self._coverage.ask(self._now_s)
        self._generation += 1
        return [s.SetFilter(generation=self._generation, terms=terms)]

    def _filter_ready(self, fault: str) -> Commands:
        self._coverage.settle(in_force=not fault)
        waiting = [held for held in self._held.values() if held.state is State.FILTER]
        commands: Commands = []
        uncovered = [held for held in waiting if not self._coverage.covers(held.flow)]
        for held in waiting:
            if held not in uncovered:
                commands += self._to_gate(held)
        if fault:
            return [*commands, *(one for held in uncovered for one in self._fail(held, "filter_refused", fault))]
        return [*commands, *self._set_filter()] if uncovered else commands

    def _to_gate(self, held: _Held) -> Commands:
        assert held.process is not None
        held.state = State.GATE
        return [
            s.Expect(
                number=held.number,
                flow=held.flow,
                sequence=held.sequence,
                process=held.process,
                connected_ns=held.connected_ns,
            )
        ]

    def _expected(self, held: _Held | None, fault: str) -> Commands:
        if held is None:
            return []
        if fault:
            return [s.Forget(flow=held.flow), *self._fail(held, "gate_unreachable", fault)]
        self._let_go(held)
        self._live[held.flow] = _Live(held.key, held.sequence)
        return [s.ReleaseSyn(number=held.number, diverted=True)]

    def _closed(self, flow: Flow) -> Commands:
        del self._live[flow]
        self._coverage.remove(flow)
        return [s.Forget(flow=flow)]

    # -- failures and time ---------------------------------------------------------------------------------------------
    def _fail(self, held: _Held, what: str, why: str = "") -> Commands:
        """We cannot decide or act."""
        self._let_go(held)
        self._coverage.remove(held.flow)
        is_open = self.on_failure is OnFailure.OPEN
        detail = f"{held.flow.local} to {held.flow.remote}" + (f": {why}" if why else "")
        return [
            s.Report(what=what, failed=self.on_failure, detail=detail),
            s.ReleaseSyn(number=held.number, diverted=False) if is_open else s.RefuseSyn(number=held.number),
        ]

    def _overflowed(self, event: s.Overflowed) -> Commands:
        went = "passed by" if event.passed else "were lost"
        failed = OnFailure.OPEN if event.passed else OnFailure.CLOSED
        commands: Commands = [
            s.Report(what="queue_overflow", failed=failed, detail=f"{event.which}: {event.count} {went}")
        ]
        if event.passed and event.which is s.Which.SYNS and self.on_failure is OnFailure.CLOSED:
            commands.append(s.CutUnseen(connected=self._unseen()))
        return commands

    def _unseen(self) -> dict[int, int]:
        """Sockets that connected and sent no SYN that we saw; cookies only."""
        seen = {one.key for kept in (self._held, self._live, self._answers) for one in kept.values()}
        return {key: connect.pid for key, connect in self._connects.items() if isinstance(key, int) and key not in seen}

    def _tick(self) -> Commands:
        commands: Commands = []
        for held in list(self._held.values()):
            if self._now_s - held.since_s >= HOLD_LIMIT_S:
                if held.state is State.GATE:
                    commands.append(s.Forget(flow=held.flow))
                commands += self._fail(held, "held_too_long", held.state.name.lower())
            elif held.state is State.OWNER and self._now_s - held.since_s >= OWNER_DEADLINE_S:
                held.state = State.TABLE
                commands.append(s.AskTable(number=held.number, flow=held.flow))
        return commands + self._narrow()

    def _narrow(self) -> Commands:
        """Once in a while, stop taking what concerns no diverted flow any more."""
        if self._now_s < self._narrow_at_s or self._coverage.is_changing:
            return []
        self._narrow_at_s = self._now_s + WINDOW_S
        return self._set_filter() if self._coverage.is_wasteful(self._now_s) else []


def _answer(number: int, choice: Choice) -> AnyCommand:
    return s.RefuseSyn(number=number) if choice is Choice.DENY else s.ReleaseSyn(number=number, diverted=False)


def _key_of_event(event: s.SocketConnected) -> Key | None:
    """None: an event that names no socket."""
    if event.cookie is not None:
        return event.cookie
    if event.local is None or event.remote is None:
        return None
    return event.transport, event.local.port, event.remote


def _key_of_syn(event: s.SynHeld) -> Key:
    if event.cookie is not None:
        return event.cookie
    return event.flow.transport, event.flow.local.port, event.flow.remote
