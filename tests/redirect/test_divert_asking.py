"""A connection waits for what its policy asks about its program, for nothing else, and not for long."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field

import pytest

from mitmsec.core.model import Action, Caller, Confidence, Endpoint, Fact, Process, Transport
from mitmsec.core.policy import Policy
from mitmsec.core.rules import Application, Rule
from mitmsec_redirect.divert_asking import FACTS_S, LOOK_S, Asking
from mitmsec_redirect.divert_engine import HOLD_LIMIT_S, OWNER_DEADLINE_S
from mitmsec_redirect.divert_owner import Owners
from mitmsec_redirect.divert_seams import Callbacks, SocketTold
from mitmsec_redirect.divert_signals import AskOwner, Choice, Flow, OwnerTold
from mitmsec_redirect.owner import Owner

FLOW = Flow(transport=Transport.TCP, local=Endpoint.of("192.0.2.1", 40000), remote=Endpoint.of("203.0.113.9", 443))
MOZILLA = "CN=Mozilla Corporation"


@dataclass
class Program:
    """Processes, all of them this one; its signature is known when the test says so."""

    signature: Future[str] = field(default_factory=Future)
    comes_while_read: bool = False
    reads: int = 0

    def refresh(self) -> None:
        """Nobody else begins."""

    def whose(
        self, pid: int, uid: int, comm: str, connected_ns: int | None = None, caller: Caller | None = None
    ) -> Owner:
        self.reads += 1
        signer = self.signature.result() if self.signature.done() else None
        unread = () if signer else (Fact.SIGNER,)
        process = Process(pid=pid, exe="C:\\x.exe", signer=signer, unread=unread, confidence=Confidence.KERNEL)
        if self.comes_while_read and not self.signature.done():
            self.signature.set_result(MOZILLA)
        return Owner(process, signature=self.signature)

    def close(self) -> None:
        """Nothing is held."""


def policy(**criteria: tuple[str, ...]) -> Policy:
    rule = Rule(name="r", application=("a",), action=Action.BYPASS)
    return Policy(applications=(Application(name="a", **criteria),), rules=(rule,))


class House:
    """Whoever has opened the backend: a policy, and the time of day."""

    def __init__(self, program: Program, by: Policy) -> None:
        self.program, self.policy, self.now_s = program, by, 100.0
        self.decided: list[Process] = []
        self.selected = True
        callbacks = Callbacks(
            decide=self.decide,
            expect=lambda flow, told: None,
            report=lambda fault: None,
            selects=lambda pid, told: self.selected,
            suffices=by.can_judge,
        )
        self.asking = Asking(Owners(program), callbacks)

    def decide(self, process: Process, remote: Endpoint, told: SocketTold) -> Choice:
        self.decided.append(process)
        if not self.policy.can_judge(process):
            raise ValueError("what the policy asks about its program could not be read")
        return Choice.DIVERT

    def ask(self, number: int = 1) -> OwnerTold | None:
        command = AskOwner(number=number, flow=FLOW, pid=8, connected_ns=5, confidence=Confidence.KERNEL)
        return self.asking.ask(command, SocketTold(Transport.TCP), self.now_s)

    def later(self, seconds: float, held: tuple[int, ...] = (1,)) -> list[OwnerTold]:
        self.now_s += seconds
        return self.asking.again(held, self.now_s)


@pytest.fixture
def program() -> Program:
    return Program()


@pytest.fixture
def house(program: Program) -> House:
    return House(program, policy(signer=("Mozilla Corporation",)))


def test_a_policy_that_does_not_ask_for_it_does_not_wait_for_a_signer(program: Program) -> None:
    house = House(program, policy(path=("C:\\x.exe",)))
    told = house.ask()
    assert told is not None
    assert (told.choice, told.fault, told.process.unread) == (Choice.DIVERT, "", (Fact.SIGNER,))
    assert program.reads == 1
    assert house.later(1) == []


def test_a_first_connection_is_not_decided_before_its_signer_is_known(house: House) -> None:
    assert house.ask() is None
    assert house.later(LOOK_S) == []
    assert house.decided == []
    house.program.signature.set_result(MOZILLA)
    (told,) = house.later(LOOK_S)
    assert (told.number, told.process.signer, told.choice, told.fault) == (1, MOZILLA, Choice.DIVERT, "")
    assert house.later(LOOK_S) == [], "it is told once"
    assert house.ask(2) is not None, "the next connection waits for nothing"


def test_when_the_time_is_over_it_is_decided_without(house: House) -> None:
    assert house.ask() is None
    assert house.later(FACTS_S - 0.01) == []
    (told,) = house.later(0.01)
    assert told.fault == "ValueError('what the policy asks about its program could not be read')"
    assert [process.signer for process in house.decided] == [None]


def test_no_connection_waits_longer_than_it_may_be_held() -> None:
    assert OWNER_DEADLINE_S + FACTS_S < HOLD_LIMIT_S


def test_what_comes_while_it_is_looked_at_is_not_missed(house: House) -> None:
    house.program.comes_while_read = True
    told = house.ask()
    assert told is not None
    assert told.process.signer == MOZILLA


def test_who_waits_is_not_read_again_before_there_is_something_new(house: House) -> None:
    """Thousands may wait, and others' connections with them."""
    house.ask()
    before = house.program.reads
    for _ in range(5):
        assert house.later(LOOK_S) == []
    assert house.program.reads == before
    house.program.signature.set_result(MOZILLA)
    assert house.later(LOOK_S / 2) == [], "it is looked for every few milliseconds"
    assert len(house.later(LOOK_S / 2)) == 1


def test_who_is_not_held_any_more_is_forgotten(house: House) -> None:
    house.ask()
    assert house.later(LOOK_S, held=()) == []
    house.program.signature.set_result(MOZILLA)
    assert house.later(LOOK_S) == []
    assert house.decided == []


def test_who_is_not_selected_is_not_read(house: House) -> None:
    house.selected = False
    told = house.ask()
    assert told == OwnerTold(number=1, process=Process(pid=8), choice=Choice.LEAVE)
    assert house.program.reads == 0
