"""However many attempts the hook saw, what is recorded of them is little and adds up."""

from __future__ import annotations

from msgspec.structs import replace

from mitmsec.audit.event import ConnectionSeen, FaultSeen
from mitmsec.core.model import Caller, Endpoint, Process, Transport
from mitmsec.service.missed import EVENTS_LIMIT, Misses, events
from mitmsec_redirect.records import Missed, Reason


def missed(reason: Reason, pid: int = 7, port: int = 443, *, denied: bool = False) -> Missed:
    remote = Endpoint.of("192.0.2.7", port)
    return Missed(reason, Transport.UDP, remote, pid, 0, "curl", at_ns=1, netns=1, denied=denied)


def whose(one: Missed) -> Process:
    return Process(pid=one.pid, exe="/usr/bin/curl")


def test_the_same_attempt_is_one_event_with_its_count() -> None:
    asked: list[int] = []

    def who(one: Missed) -> Process:
        asked.append(one.pid)
        return whose(one)

    found = events(
        [missed(Reason.LINK_LOCAL)] * 1000 + [missed(Reason.LINK_LOCAL, pid=8)],
        who,
        "run-1",
    )
    assert [(event.count, event.pid) for event in found if isinstance(event, FaultSeen)] == [(1000, 7), (1, 8)]
    assert asked == [7, 8]


def test_of_two_users_unknown_processes_each_is_told_with_its_own() -> None:
    """Rules of nftables know the user of a packet where its process has gone."""
    unknown = [replace(missed(Reason.QUIC_REFUSED, pid=0), uid=uid) for uid in (1000, 1001, 1000)]
    misses = Misses(lambda one: Process(pid=0, user=str(one.uid)), "run-1")
    misses.policy = "ab"
    misses.take(unknown)
    told = [(event.process.user, event.policy) for event in misses.told() if isinstance(event, ConnectionSeen)]
    assert told == [("1000", "ab"), ("1001", "ab")]


def test_an_attempt_of_an_unknown_program_names_no_pid() -> None:
    one = replace(missed(Reason.GATE_STALLED, pid=0), comm="")
    (event,) = events([one], lambda _: Process(pid=0), "run-1")
    assert isinstance(event, FaultSeen)
    assert (event.pid, event.detail) == (None, "a program to 192.0.2.7:443")


def test_two_processes_that_had_one_pid_are_two() -> None:
    one = missed(Reason.LINK_LOCAL)
    asked: list[Missed] = []

    def who(missed: Missed) -> Process:
        asked.append(missed)
        return whose(missed)

    later = replace(one, remote=Endpoint.of("192.0.2.8", 443), caller=Caller(2))
    events([replace(one, caller=Caller(1)), later], who, "run-1")
    assert [each.caller for each in asked] == [Caller(1), Caller(2)]


def test_many_places_are_few_events_and_one_that_counts_the_rest() -> None:
    flood = [missed(Reason.GATE_STALLED, port=port, denied=True) for port in range(1, 1001)]
    found = [event for event in events(flood, whose, "run-1") if isinstance(event, FaultSeen)]
    assert len(found) == EVENTS_LIMIT + 1
    assert sum(event.count for event in found) == 1000
    assert {(event.what, event.failed, event.session) for event in found} == {("gate_stalled", "closed", "run-1")}


def test_what_the_policy_refuses_is_no_fault_however_many_places_were_tried() -> None:
    asked: list[int] = []

    def who(one: Missed) -> Process:
        asked.append(one.pid)
        return whose(one)

    found = events([missed(Reason.QUIC_REFUSED, port=port, denied=True) for port in range(1, 31)], who, "run-1")
    connections = [event for event in found if isinstance(event, ConnectionSeen)]
    assert len(connections) == len(found) == EVENTS_LIMIT + 1
    assert "14 attempts, to this and other places" in connections[-1].reason
    assert {event.session for event in connections} == {"run-1"}
    assert asked == [7]


def test_refused_quic_is_a_blocked_connection_that_says_how_often() -> None:
    (event,) = events([missed(Reason.QUIC_REFUSED)] * 3, whose, "run-1")
    assert isinstance(event, ConnectionSeen)
    assert (event.protocol, event.outcome, event.process.exe) == ("quic", "blocked", "/usr/bin/curl")
    assert "(3 attempts)" in event.reason
    (once,) = events([missed(Reason.QUIC_REFUSED)], whose, "run-1")
    assert isinstance(once, ConnectionSeen)
    assert "attempts" not in once.reason


def test_who_ends_soon_is_asked_for_at_once_and_told_of_later() -> None:
    """One look after the other; what is told is one event all the same, and the next time begins anew."""
    living = {7, 8}
    misses = Misses(lambda one: whose(one) if one.pid in living else Process(pid=one.pid), "run-1")
    misses.take([missed(Reason.QUIC_REFUSED), missed(Reason.QUIC_REFUSED)])
    living.remove(7)
    misses.take([missed(Reason.QUIC_REFUSED), missed(Reason.QUIC_REFUSED, pid=8)])
    first, second = misses.told()
    assert isinstance(first, ConnectionSeen)
    assert isinstance(second, ConnectionSeen)
    assert (first.process.pid, first.process.exe, "(3 attempts)" in first.reason) == (7, "/usr/bin/curl", True)
    assert (second.process.pid, second.process.exe) == (8, "/usr/bin/curl")
    misses.take([missed(Reason.QUIC_REFUSED)])
    (third,) = misses.told()
    assert isinstance(third, ConnectionSeen)
    assert third.process.exe is None
    assert misses.told() == []
