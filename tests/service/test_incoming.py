"""Connections that came in become events: one each, with who had it, as sure as that is."""

from __future__ import annotations

import errno
from concurrent.futures import Future

import pytest
from msgspec.structs import replace

from mitmsec.audit.event import ConnectionSeen, FaultSeen, Outcome, Seen
from mitmsec.core.model import Action, Caller, Confidence, Direction, Endpoint, Process
from mitmsec.core.policy import Policy
from mitmsec.core.rules import Application, Rule
from mitmsec.service import incoming
from mitmsec.service.incoming import LONG_LIVED_NS, Incoming
from mitmsec_redirect.inbound_records import Inbound, InboundKind
from mitmsec_redirect.owner import Owner

LISTENS, BEGAN, ACCEPTED, ENDED = InboundKind
LISTENER, WORKER = 7, 8


def news(kind: InboundKind, cookie: int = 1, pid: int = WORKER, at_ms: int = 0, **fields: int) -> Inbound:
    return Inbound(
        kind=kind,
        cookie=cookie,
        netns=1,
        local=Endpoint.of("192.0.2.1", 443),
        remote=Endpoint.of("198.51.100.7", 50_000),
        began_ns=0,
        at_ns=at_ms * 1_000_000,
        sent_bytes=fields.get("sent", 0),
        received_bytes=fields.get("received", 0),
        error=fields.get("error", 0),
        is_accepted=pid == WORKER,
        pid=pid,
        uid=0,
        comm="nginx",
        caller=Caller(start_ns=pid) if pid else None,
    )


class World:
    """Processes by pid, and who has been asked for."""

    def __init__(self, policy: Policy | None = None, selected: tuple[int, ...] = (LISTENER, WORKER, 0)) -> None:
        self.asked: list[int] = []
        self.listening: list[tuple[int, str | None]] = []
        self.hash: Future[str | None] | None = None
        self.incoming = Incoming(
            name="run-1",
            whose=self.whose,
            selects=lambda one: one.pid in selected,
            policy=policy or Policy(),
            listens=lambda one, process: self.listening.append((one.cookie, process.exe)),
        )

    def whose(self, one: Inbound) -> Owner:
        self.asked.append(one.pid)
        if not one.pid:
            return Owner(Process(pid=0))
        return Owner(Process(pid=one.pid, exe=f"/usr/sbin/{one.pid}", confidence=Confidence.KERNEL), self.hash)

    def told(self, *records: Inbound) -> list[Seen]:
        return list(self.incoming.take(records))

    def event(self, *records: Inbound) -> ConnectionSeen:
        (event,) = self.told(*records)
        assert isinstance(event, ConnectionSeen)
        return event


def test_a_connection_is_one_event_of_who_accepted_it() -> None:
    event = World().event(news(BEGAN, pid=LISTENER), news(ACCEPTED), news(ENDED, at_ms=1500, sent=20, received=3))
    assert (event.direction, event.action, event.rule, event.outcome, event.error) == (
        Direction.INBOUND, Action.BYPASS, "defaults", Outcome.COMPLETED, "",
    )  # fmt: skip
    assert event.policy == World().incoming.policy.fingerprint
    assert (event.process.pid, event.process.confidence) == (WORKER, Confidence.KERNEL)
    assert (str(event.local), str(event.remote)) == ("192.0.2.1:443", "198.51.100.7:50000")
    assert (event.bytes_sent, event.bytes_received, event.duration_ms) == (20, 3, 1500)
    assert (event.protocol, event.session) == ("tcp", "run-1")


def test_who_only_listens_may_not_have_served_it() -> None:
    event = World().event(news(BEGAN, pid=LISTENER), news(ENDED, pid=LISTENER))
    assert (event.process.pid, event.process.confidence) == (LISTENER, Confidence.INFERRED)


def test_of_a_listener_that_is_not_known_nothing_is_inferred() -> None:
    assert World().event(news(ENDED, pid=0)).process == Process(pid=0)


def test_who_listens_and_accepts_is_read_once() -> None:
    world = World()
    world.told(news(BEGAN), news(ACCEPTED), news(ENDED))
    assert world.asked == [WORKER]


def test_an_end_whose_beginning_was_lost_is_told_all_the_same() -> None:
    assert World().event(news(ENDED, cookie=5)).process.pid == WORKER


def test_a_hash_that_comes_while_it_lives_is_told() -> None:
    world = World()
    world.hash = Future()
    assert world.told(news(ACCEPTED)) == []
    world.hash.set_result("ab" * 32)
    assert world.event(news(ENDED)).process.sha256 == "ab" * 32


@pytest.mark.parametrize(
    ("error", "said"),
    [(errno.ECONNRESET, "reset by the peer"), (errno.ETIMEDOUT, "the peer did not answer any more"),
     (errno.EHOSTUNREACH, "EHOSTUNREACH"), (99999, "?")],
)  # fmt: skip
def test_an_end_that_was_not_orderly_says_how(error: int, said: str) -> None:
    assert World().event(news(ENDED, error=error)).error == said


def test_who_is_not_selected_is_nobodys_business() -> None:
    world = World(selected=(LISTENER,))
    assert world.told(news(BEGAN, pid=LISTENER), news(ACCEPTED), news(ENDED)) == []


def test_one_that_lives_long_is_on_record_once_while_it_lives() -> None:
    world = World()
    world.told(news(ACCEPTED), replace(news(ACCEPTED, cookie=2), began_ns=LONG_LIVED_NS))
    assert list(world.incoming.grown_old(LONG_LIVED_NS - 1)) == []
    (event,) = world.incoming.grown_old(LONG_LIVED_NS)
    assert isinstance(event, ConnectionSeen)
    assert (event.outcome, event.duration_ms) == (Outcome.OPEN, 10_000)
    assert list(world.incoming.grown_old(LONG_LIVED_NS)) == []
    assert world.event(news(ENDED)).flow == event.flow


def test_those_that_outlive_the_session_are_on_record_as_open() -> None:
    world = World()
    world.told(news(ACCEPTED), news(ACCEPTED, cookie=2), news(ENDED))
    (event,) = world.incoming.left(5_000_000)
    assert isinstance(event, ConnectionSeen)
    assert (event.outcome, event.duration_ms) == (Outcome.OPEN, 5)
    assert list(world.incoming.left(5_000_000)) == []


def test_however_many_live_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming, "LIVE_LIMIT", 10)
    world = World()
    world.told(*(news(ACCEPTED, cookie=cookie) for cookie in range(100)))
    assert len(list(world.incoming.left(0))) == 10
    assert world.event(news(ENDED, cookie=0)).process.pid == WORKER


def test_lost_news_are_one_fault() -> None:
    (fault,) = World().incoming.lost(12)
    assert isinstance(fault, FaultSeen)
    assert (fault.what, fault.count, fault.failed, fault.session) == ("inbound_lost", 12, "open", "run-1")
    assert list(World().incoming.lost(0)) == []


def test_the_policy_is_asked_about_incoming_connections() -> None:
    """The port is the service's, the address the peer's."""
    rule = Rule(
        name="partners", action=Action.BYPASS, direction=Direction.INBOUND, port=((443, 443),),
        address=("198.51.100.0/24",), reason="contract 7",
    )  # fmt: skip
    event = World(Policy(rules=(rule,))).event(news(ENDED))
    assert (event.rule, event.reason) == ("partners", "contract 7")


def test_a_rule_that_asks_for_what_is_not_known_decides_nothing() -> None:
    hashed = Application(name="signed", sha256=("ab" * 32,))
    rule = Rule(name="by hash", action=Action.BYPASS, direction=Direction.INBOUND, application=("signed",))
    event = World(Policy(applications=(hashed,), rules=(rule,))).event(news(ENDED))
    assert (event.action, event.rule) == (Action.BYPASS, "on_failure")


def test_what_should_have_been_blocked_and_came_in_is_told_as_what_happened() -> None:
    """Its gate hung, or had gone, and failures are open."""
    event = World(Policy(inbound=Action.BLOCK)).event(news(ENDED))
    assert (event.action, event.rule, event.reason) == (Action.BYPASS, "on_failure", incoming.PASSED_BY)


def test_who_listens_is_read_at_once_where_the_gate_will_ask_for_it() -> None:
    world = World()
    assert world.told(news(LISTENS, pid=LISTENER)) == []
    assert world.listening == [(1, f"/usr/sbin/{LISTENER}")]
    assert world.asked == [LISTENER]
    assert list(world.incoming.left(0)) == []
