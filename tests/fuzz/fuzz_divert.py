"""Fuzzed: the divert engine, in a world that answers its questions late, wrongly, twice or never.

    bytes ──► what happens next ──► engine ──► commands ──► World: is that allowed now? ──► questions

The world keeps its own account of what is held, translated and taken by the filter, and ends with everything settled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import assert_never

from fuzz_choices import Choices

from mitmsec.core.model import Confidence, Endpoint, OnFailure, Process, Transport
from mitmsec_redirect import coverage, divert_engine
from mitmsec_redirect import divert_signals as s
from mitmsec_redirect.divert_engine import HOLD_LIMIT_S, DivertEngine
from mitmsec_redirect.divert_signals import AnyCommand, AnyEvent, Choice, Flow, Terms

SMALL: list[tuple[ModuleType, str, int]] = [  # so that a few hundred bytes reach the limits
    (divert_engine, "HELD_LIMIT", 6),
    (divert_engine, "QUIC_HELD_LIMIT", 2),
    (divert_engine, "FLOWS_LIMIT", 4),
    (divert_engine, "CONNECTS_LIMIT", 5),
    (divert_engine, "ANSWERS_LIMIT", 3),
    (coverage, "RULES_LIMIT", 3),
    (coverage, "IN_DEMAND", 2),
    (coverage, "SLACK", 1),
]
CURL = Process(pid=8, exe="/usr/bin/curl", source="windivert", confidence=Confidence.KERNEL)
REMOTES = (Endpoint.of("203.0.113.9", 443), Endpoint.of("203.0.113.9", 80), Endpoint.of("2001:db8::9", 443))
COOKIES = (None, 1, 2, 3, 4, 5)
STEPS_MOST = 400


def attempt(data: bytes) -> None:
    """The first byte says which way failures go; each step after it takes a few bytes."""
    choices = Choices(data[: STEPS_MOST * 5])
    with _small_limits():
        world = World(choices.one_of(list(OnFailure)))
        while choices:
            world.now_s += choices.one_of((0.0, 0.0, 0.01, 0.25, 3.0, 11.0))
            for event in _next(choices, world):
                world.tell(event)
        world.end()


@contextmanager
def _small_limits() -> Iterator[None]:
    usual = [getattr(module, name) for module, name, _ in SMALL]
    for module, name, value in SMALL:
        setattr(module, name, value)
    try:
        yield
    finally:
        for (module, name, _), value in zip(SMALL, usual, strict=True):
            setattr(module, name, value)


def _next(choices: Choices, world: World) -> list[AnyEvent]:
    match choices.below(9):
        case 0 | 1:
            return [_syn(choices, world)]
        case 2:
            return [_connected(choices)]
        case 3 | 4 if world.questions:
            question = world.questions.pop(choices.below(min(len(world.questions), 256)))
            return _answers(question, choices)
        case 5:
            return [s.FlowClosed(flow=_flow(choices), sequence=choices.below(3))]
        case 6:
            which = choices.one_of(list(s.Which))
            return [s.Overflowed(which=which, count=1 + choices.below(9), passed=choices.flag())]
        case 7:
            return _answers(s.SetFilter(generation=choices.below(20), terms=Terms()), choices)  # nobody asked
        case _:
            return [s.Tick()]


def _flow(choices: Choices) -> Flow:
    remote = choices.one_of(REMOTES)
    local = Endpoint.of("2001:db8::1" if remote.is_v6 else "192.0.2.1", 40000 + choices.below(4))
    transport = Transport.UDP if choices.below(8) == 7 else Transport.TCP
    return Flow(transport=transport, local=local, remote=remote)


def _syn(choices: Choices, world: World) -> s.SynHeld:
    world.numbers += 1
    return s.SynHeld(
        number=world.numbers, flow=_flow(choices), sequence=choices.below(3), cookie=choices.one_of(COOKIES)
    )


def _connected(choices: Choices) -> s.SocketConnected:
    flow, cookie = _flow(choices), choices.one_of(COOKIES)
    local = flow.local if cookie is None and choices.below(4) else None
    return s.SocketConnected(
        transport=flow.transport, pid=8, remote=flow.remote, connected_ns=5, cookie=cookie, local=local
    )


def _answers(question: AnyCommand, choices: Choices) -> list[AnyEvent]:
    """Usually one answer, at times the same one twice."""
    fault = "no" if choices.below(5) == 4 else ""
    answer: AnyEvent
    match question:
        case s.AskOwner(number=number):
            choice = choices.one_of((Choice.DIVERT, Choice.DIVERT, Choice.LEAVE, Choice.DENY))
            answer = s.OwnerTold(number=number, process=CURL, choice=choice, fault=fault)
        case s.AskTable(number=number):
            answer = s.TableTold(number=number, pid=None if fault else 8)
        case s.SetFilter(generation=generation):
            answer = s.FilterReady(generation=generation, fault=fault)
        case s.Expect(number=number):
            answer = s.Expected(number=number, fault=fault)
        case _:
            raise AssertionError("not a question")
    return [answer] * (2 if choices.below(6) == 5 else 1)


class World:
    """Everything that commands act on, and what must be so when they do."""

    def __init__(self, on_failure: OnFailure) -> None:
        self.now_s, self.numbers = 0.0, 0
        self.questions: list[AnyCommand] = []
        self._engine = DivertEngine(on_failure)
        self._on_failure = on_failure
        self._held: dict[int, Flow] = {}
        self._translated: dict[Flow, int] = {}  # by the NAT, and the number of whose SYN
        self._known: set[int] = set()  # to the gate, by number
        self._left: set[Flow] = set()  # by choice
        self._pending: s.SetFilter | None = None
        self._terms = Terms()

    def tell(self, event: AnyEvent) -> None:
        self._before(event)
        commands = self._engine.told(event, self.now_s)
        for command in commands:
            self._carry_out(command, commands)
        self._holds_together()

    def end(self) -> None:
        """Time passes, and nobody answers any more."""
        for _ in range(2):
            self.now_s += HOLD_LIMIT_S
            self.tell(s.Tick())
        assert not self._held, "held for ever"
        assert not self._engine.held
        assert not self._engine._by_flow
        assert not self._engine._by_key
        assert self._translated.keys() == self._engine._live.keys(), "translated, but nobody's"
        assert self._engine._coverage._flows.keys() == self._engine._live.keys()

    def _before(self, event: AnyEvent) -> None:
        match event:
            case s.SynHeld(number=number, flow=flow):
                self._held[number] = flow
            case s.OwnerTold(number=number, choice=Choice.LEAVE, fault="") if number in self._held:
                self._left.add(self._held[number])
            case s.Expected(number=number, fault=""):
                self._known.add(number)
            case s.FilterReady(generation=generation, fault=fault):
                if self._pending is not None and self._pending.generation == generation:
                    self._terms = self._terms if fault else self._pending.terms
                    self._pending = None

    def _carry_out(self, command: AnyCommand, together: Sequence[AnyCommand]) -> None:
        match command:
            case s.AskOwner(number=number) | s.AskTable(number=number):
                assert number in self._held
                self.questions.append(command)
            case s.SetFilter():
                assert self._pending is None, "one filter at a time"
                self._pending = command
                self.questions.append(command)
            case s.Expect(number=number, flow=flow):
                assert self._held[number] == flow
                assert flow.transport is Transport.TCP
                assert flow not in self._translated
                self._translated[flow] = number
                self.questions.append(command)
            case s.Forget(flow=flow):
                del self._translated[flow]
            case s.ReleaseSyn(number=number, diverted=diverted):
                self._released(self._held.pop(number), diverted, together)
            case s.RefuseSyn(number=number):
                assert self._held.pop(number) not in self._translated
            case s.DropSyn(number=number):
                del self._held[number]
            case s.CutUnseen(connected=connected):
                assert self._on_failure is OnFailure.CLOSED
                assert None not in connected
            case s.Report(failed=failed):
                assert failed is self._on_failure or command.what == "queue_overflow"
            case _:
                assert_never(command)

    def _released(self, flow: Flow, diverted: bool, together: Sequence[AnyCommand]) -> None:
        if diverted:
            assert self._translated[flow] in self._known, "the gate does not know it"
            assert self._terms.cover(flow), "its packets are not taken"
            return
        assert flow not in self._translated, "its packets are translated all the same"
        failed_open = self._on_failure is OnFailure.OPEN and any(isinstance(one, s.Report) for one in together)
        assert failed_open or flow in self._left, "nobody chose that"

    def _holds_together(self) -> None:
        assert self._held.keys() == self._engine._held.keys()
        assert len(self._held) <= divert_engine.HELD_LIMIT
        held_quic = sum(flow.transport is Transport.UDP for flow in self._held.values())
        assert self._engine._held_quic == held_quic <= divert_engine.QUIC_HELD_LIMIT
        assert self._engine.live <= divert_engine.FLOWS_LIMIT
        assert len(self._engine._connects) <= divert_engine.CONNECTS_LIMIT
        assert len(self._engine._answers) <= divert_engine.ANSWERS_LIMIT
        assert all(self._terms.cover(flow) for flow in self._translated), "a translated flow's packets are not taken"
        assert self._terms == self._engine._coverage.in_force
