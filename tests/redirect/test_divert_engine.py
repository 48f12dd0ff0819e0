"""Whose a SYN is and where it goes, told as plays: `>>` what happens, `<<` what must follow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from playbook import Playbook

from mitmsec.core.model import Confidence, Endpoint, OnFailure, Process, Transport
from mitmsec_redirect import coverage, divert_engine
from mitmsec_redirect.coverage import IN_DEMAND
from mitmsec_redirect.divert_engine import HOLD_LIMIT_S, OWNER_DEADLINE_S, DivertEngine
from mitmsec_redirect.divert_signals import (
    AskOwner,
    AskTable,
    Choice,
    CutUnseen,
    DropSyn,
    Expect,
    Expected,
    FilterReady,
    Flow,
    FlowClosed,
    Forget,
    Overflowed,
    OwnerTold,
    RefuseSyn,
    ReleaseSyn,
    Report,
    SetFilter,
    SocketConnected,
    SynHeld,
    TableTold,
    Terms,
    Tick,
    Which,
)

CURL = Process(pid=8, exe="/usr/bin/curl", source="windivert", confidence=Confidence.KERNEL)
REMOTE = Endpoint.of("203.0.113.9", 443)
MORE = 10 * coverage.WINDOW_S


def flow(port: int = 40000, remote: Endpoint = REMOTE, transport: Transport = Transport.TCP) -> Flow:
    local = Endpoint.of("2001:db8::1" if remote.is_v6 else "192.0.2.1", port)
    return Flow(transport=transport, local=local, remote=remote)


FLOW = flow()
QUIC = flow(transport=Transport.UDP)


@pytest.fixture(autouse=True)
def plays_end() -> Iterator[None]:
    yield
    Playbook.all_done()


def play(on_failure: OnFailure = OnFailure.OPEN) -> Playbook:
    return Playbook(DivertEngine(on_failure).told)


def connected(cookie: int | None = 77, local: Endpoint | None = None, pid: int = 8, of: Flow = FLOW) -> SocketConnected:
    return SocketConnected(
        transport=of.transport, pid=pid, remote=of.remote, connected_ns=5, cookie=cookie, local=local
    )


def syn(number: int, of: Flow = FLOW, sequence: int = 1, cookie: int | None = 77, fault: str = "") -> SynHeld:
    return SynHeld(number=number, flow=of, sequence=sequence, cookie=cookie, fault=fault)


def ask(
    number: int,
    of: Flow = FLOW,
    pid: int = 8,
    connected_ns: int | None = 5,
    confidence: Confidence = Confidence.KERNEL,
) -> AskOwner:
    return AskOwner(number=number, flow=of, pid=pid, connected_ns=connected_ns, confidence=confidence)


def owner(number: int, choice: Choice) -> OwnerTold:
    return OwnerTold(number=number, process=CURL, choice=choice)


def expect(number: int, of: Flow = FLOW, sequence: int = 1, connected_ns: int | None = 5) -> Expect:
    return Expect(number=number, flow=of, sequence=sequence, process=CURL, connected_ns=connected_ns)


def release(number: int, *, diverted: bool) -> ReleaseSyn:
    return ReleaseSyn(number=number, diverted=diverted)


def asked(told: Playbook, number: int = 1, of: Flow = FLOW, cookie: int = 77) -> Playbook:
    """Up to the question whose the SYN is."""
    return told >> connected(cookie, of=of) >> syn(number, of, cookie=cookie) << ask(number, of)


def waits_for_filter(told: Playbook, number: int = 1, of: Flow = FLOW, cookie: int = 77) -> Playbook:
    return asked(told, number, of, cookie) >> owner(number, Choice.DIVERT) << SetFilter


def diverted(told: Playbook, number: int = 1, of: Flow = FLOW, cookie: int = 77) -> Playbook:
    waits_for_filter(told, number, of, cookie)
    told >> FilterReady(generation=told.last.generation) << expect(number, of)
    return told >> Expected(number=number) << release(number, diverted=True)


def failed(told: Playbook, what: str, on_failure: OnFailure, number: int = 1, detail: str = "") -> Playbook:
    """A fault is told of, and the SYN goes the way that the policy wants."""
    told << Report(what=what, failed=on_failure, detail=f"192.0.2.1:40000 to 203.0.113.9:443{detail}")
    return told << (release(number, diverted=False) if on_failure is OnFailure.OPEN else RefuseSyn(number=number))


# --- who --------------------------------------------------------------------------------------------------------------
def test_a_selected_programs_syn_waits_for_owner_filter_and_gate_and_then_goes_to_the_gate() -> None:
    told = play()
    asked(told) >> owner(1, Choice.DIVERT) << SetFilter(generation=1, terms=Terms(flows=frozenset([FLOW])))
    told >> FilterReady(generation=1) << expect(1)
    assert told >> Expected(number=1) << release(1, diverted=True)


def test_where_everything_is_taken_no_flow_waits_for_a_filter_and_none_is_ever_asked_for() -> None:
    told = Playbook(DivertEngine(OnFailure.OPEN, Terms(everything=True)).told)
    asked(told) >> owner(1, Choice.DIVERT) << expect(1)
    told >> Expected(number=1) << release(1, diverted=True)
    told.later(60) >> FlowClosed(flow=FLOW, sequence=1) << Forget(flow=FLOW)
    assert told.later(60) >> Tick()


def test_the_event_may_come_after_its_syn() -> None:
    told = play() >> syn(1)
    assert told.later(0.01) >> connected() << ask(1)


def test_an_unselected_programs_syn_goes_its_way() -> None:
    assert asked(play()) >> owner(1, Choice.LEAVE) << release(1, diverted=False)


def test_a_denied_connection_is_refused_at_once() -> None:
    assert asked(play()) >> owner(1, Choice.DENY) << RefuseSyn(number=1)


NOT_ASKED = "no room for the answer"


@pytest.mark.parametrize("on_failure", OnFailure)
def test_a_syn_whose_socket_cannot_be_asked_for_passes_or_is_lost_and_is_never_refused(on_failure: OnFailure) -> None:
    told = play(on_failure) >> connected() >> syn(1, cookie=None, fault=NOT_ASKED)
    detail = f"192.0.2.1:40000 to 203.0.113.9:443: {NOT_ASKED}"
    told << Report(what="socket_not_found", failed=on_failure, detail=detail)
    told << (release(1, diverted=False) if on_failure is OnFailure.OPEN else DropSyn(number=1))
    assert told >> syn(2) << ask(2), "sent again, it is asked about"


def test_a_syn_of_a_known_flow_is_answered_as_ever_though_its_socket_cannot_be_asked_for() -> None:
    told = asked(play())
    assert told >> syn(2, cookie=None, fault=NOT_ASKED) << DropSyn(number=2)
    told = diverted(play())
    assert told >> syn(2, cookie=None, fault=NOT_ASKED) << release(2, diverted=True)
    told >> syn(3, sequence=2, cookie=None, fault=NOT_ASKED) << Forget(flow=FLOW)
    assert told << Report << release(3, diverted=False)


def test_other_sockets_events_lead_to_nothing() -> None:
    told = play() >> syn(1) >> connected(78) >> connected(None)
    assert told >> connected(77) << ask(1)


@pytest.mark.parametrize("late", [False, True])
def test_without_cookies_the_addresses_join_event_and_syn(late: bool) -> None:
    told = play()
    event, packet = connected(None, FLOW.local), syn(1, cookie=None)
    assert told >> (packet if late else event) >> (event if late else packet) << ask(1)


def test_an_event_without_a_cookie_names_the_owner_of_one_syn_only() -> None:
    """The next one from the same addresses may be anybody's, and its own event may be late."""
    told = play() >> connected(None, FLOW.local) >> syn(1, cookie=None) << ask(1)
    told >> owner(1, Choice.LEAVE) << release(1, diverted=False)
    told >> syn(2, sequence=2, cookie=None)
    assert told >> connected(None, FLOW.local, pid=9) << ask(2, pid=9)


def test_an_old_event_without_a_cookie_names_nobody() -> None:
    told = play() >> connected(None, FLOW.local)
    assert told.later(divert_engine.ADDRESSES_FRESH_S + 0.1) >> syn(1, cookie=None)


def test_a_cookie_is_good_for_ever_and_never_mistaken_for_addresses() -> None:
    told = play() >> connected(77) >> connected(None, FLOW.local, pid=9)
    assert told.later(3600) >> syn(1) << ask(1, pid=8)


def test_two_programs_share_addresses_but_not_a_cookie() -> None:
    """A local port is used anew while the first one's SYN is still held: that one has given up."""
    told = asked(play()) >> syn(2, sequence=2, cookie=78) << DropSyn(number=1)
    told >> owner(1, Choice.DIVERT)  # too late to matter
    told >> connected(78, pid=9) << ask(2, pid=9)
    assert told >> owner(2, Choice.LEAVE) << release(2, diverted=False)


def test_a_syn_overtaken_while_the_gate_was_told_is_not_translated_any_more() -> None:
    told = waits_for_filter(play()) >> FilterReady(generation=1) << expect(1)
    told >> syn(2, sequence=2, cookie=78) << Forget(flow=FLOW) << DropSyn(number=1)
    told >> Expected(number=1)
    assert told >> connected(78) << ask(2)


# --- nobody says whose it is ------------------------------------------------------------------------------------------
def test_when_no_event_comes_the_table_is_asked_once() -> None:
    told = play() >> syn(1)
    told.later(OWNER_DEADLINE_S - 0.01) >> Tick()
    told.later(0.02) >> Tick() << AskTable(number=1, flow=FLOW)
    told.later(0.02) >> Tick()
    told >> TableTold(number=1, pid=8) << ask(1, connected_ns=None, confidence=Confidence.TABLE)
    assert told >> owner(1, Choice.LEAVE) << release(1, diverted=False)


def test_the_table_says_how_far_its_word_holds() -> None:
    told = play() >> syn(1)
    told.later(OWNER_DEADLINE_S) >> Tick() << AskTable
    told >> TableTold(number=1, pid=8, confidence=Confidence.INFERRED, connected_ns=3)
    assert told << ask(1, connected_ns=3, confidence=Confidence.INFERRED)


def test_an_event_that_comes_while_the_table_is_read_is_better_than_the_table() -> None:
    told = play() >> syn(1)
    told.later(OWNER_DEADLINE_S) >> Tick() << AskTable
    told >> connected() << ask(1)
    told >> TableTold(number=1, pid=9)
    assert told >> owner(1, Choice.LEAVE) << release(1, diverted=False)


@pytest.mark.parametrize("on_failure", OnFailure)
def test_an_owner_whom_nobody_knows_follows_on_failure(on_failure: OnFailure) -> None:
    told = play(on_failure) >> syn(1)
    told.later(OWNER_DEADLINE_S) >> Tick() << AskTable
    assert failed(told >> TableTold(number=1, pid=None), "owner_unknown", on_failure)


def test_why_the_table_could_not_be_read_is_told() -> None:
    told = play() >> syn(1)
    told.later(OWNER_DEADLINE_S) >> Tick() << AskTable
    told >> TableTold(number=1, pid=None, fault="error 8")
    detail = f"{FLOW.local} to {FLOW.remote}: error 8"
    assert told << Report(what="owner_unknown", failed=OnFailure.OPEN, detail=detail) << release(1, diverted=False)


@pytest.mark.parametrize("on_failure", OnFailure)
def test_when_nobody_can_choose_that_follows_on_failure_too(on_failure: OnFailure) -> None:
    told = asked(play(on_failure)) >> OwnerTold(number=1, process=CURL, choice=Choice.LEAVE, fault="no policy")
    assert failed(told, "not_decided", on_failure, detail=": no policy")


@pytest.mark.parametrize("on_failure", OnFailure)
def test_nothing_is_held_for_long(on_failure: OnFailure) -> None:
    told = asked(play(on_failure))
    told.later(HOLD_LIMIT_S) >> Tick()
    failed(told, "held_too_long", on_failure, detail=": asked")
    assert told >> owner(1, Choice.DIVERT)  # too late to matter


def test_a_gate_that_does_not_answer_holds_nothing_up_either() -> None:
    told = waits_for_filter(play()) >> FilterReady(generation=1) << expect(1)
    told.later(HOLD_LIMIT_S) >> Tick() << Forget(flow=FLOW)
    failed(told, "held_too_long", OnFailure.OPEN, detail=": gate")
    assert told >> Expected(number=1)


@pytest.mark.parametrize("on_failure", OnFailure)
def test_so_many_are_held_and_no_more(on_failure: OnFailure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divert_engine, "HELD_LIMIT", 1)
    told = play(on_failure) >> syn(9, flow(41000), cookie=1)
    assert failed(told >> syn(1), "held_full", on_failure)


@pytest.mark.parametrize("on_failure", OnFailure)
def test_whoever_floods_with_quic_leaves_room_for_others(
    on_failure: OnFailure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a socket that never called connect() no event tells, so each handshake is held until the table was asked."""
    monkeypatch.setattr(divert_engine, "QUIC_HELD_LIMIT", 1)
    first = flow(41000, transport=Transport.UDP)
    told = play(on_failure) >> syn(9, first, sequence=0, cookie=1)
    failed(told >> syn(8, QUIC, sequence=0, cookie=2), "held_full", on_failure, 8)
    asked(told) >> owner(1, Choice.LEAVE) << release(1, diverted=False)
    told >> connected(1) << ask(9, first) >> owner(9, Choice.LEAVE) << release(9, diverted=False)
    assert told >> syn(7, QUIC, sequence=0, cookie=3) >> connected(3) << ask(7, QUIC)


@pytest.mark.parametrize("on_failure", OnFailure)
def test_so_many_are_diverted_and_no_more(on_failure: OnFailure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divert_engine, "FLOWS_LIMIT", 1)
    told = diverted(play(on_failure), 9, flow(41000), 1)
    assert failed(asked(told) >> owner(1, Choice.DIVERT), "flows_full", on_failure)


def test_flows_that_wait_for_their_filter_have_a_place_already(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divert_engine, "FLOWS_LIMIT", 1)
    told = waits_for_filter(play(OnFailure.CLOSED))
    asked(told, 2, flow(41000), 78) >> owner(2, Choice.DIVERT) << Report
    assert told << RefuseSyn(number=2) >> FilterReady(generation=1) << expect(1)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divert_engine, "CONNECTS_LIMIT", 2)
    monkeypatch.setattr(divert_engine, "ANSWERS_LIMIT", 1)
    told = play() >> connected(1) >> connected(2) >> connected(3)
    told >> syn(1, cookie=1)  # forgotten
    for number, port in ((2, 41000), (3, 42000)):
        told >> syn(number, flow(port), cookie=number) << ask(number, flow(port))
        told >> owner(number, Choice.LEAVE) << release(number, diverted=False)
    told >> syn(4, flow(42000), cookie=3) << release(4, diverted=False)
    assert told >> syn(5, flow(41000), cookie=2) << ask(5, flow(41000))


# --- sent again -------------------------------------------------------------------------------------------------------
def test_a_syn_sent_again_while_the_first_is_held_is_not_needed() -> None:
    told = asked(play())
    assert told.later(1) >> syn(2) << DropSyn(number=2)


@pytest.mark.parametrize("choice", [Choice.LEAVE, Choice.DENY])
def test_a_syn_sent_again_is_answered_as_the_first(choice: Choice) -> None:
    told = asked(play()) >> owner(1, choice) << (ReleaseSyn if choice is Choice.LEAVE else RefuseSyn)
    told.later(1) >> syn(2) << (release(2, diverted=False) if choice is Choice.LEAVE else RefuseSyn(number=2))
    assert told.later(MORE) >> Tick() >> syn(3, sequence=2) << ask(3)


def test_what_was_chosen_holds_for_the_same_socket_only() -> None:
    told = asked(play()) >> owner(1, Choice.LEAVE) << ReleaseSyn
    assert told >> syn(2, cookie=78)


def test_what_was_chosen_is_not_remembered_for_ever() -> None:
    told = asked(play()) >> owner(1, Choice.LEAVE) << ReleaseSyn
    assert told.later(121) >> syn(2) << ask(2)


def test_a_diverted_syn_sent_again_is_diverted_again_and_the_gate_not_told_twice() -> None:
    assert diverted(play()).later(1) >> syn(2) << release(2, diverted=True)


def test_a_new_connection_from_a_diverted_flows_addresses_is_asked_about_anew() -> None:
    told = diverted(play()) >> syn(2, sequence=2, cookie=78) << Forget(flow=FLOW)
    told >> FlowClosed(flow=FLOW, sequence=1)  # of the old one: too late to matter
    told >> connected(78, pid=9) << ask(2, pid=9)
    assert told >> owner(2, Choice.LEAVE) << release(2, diverted=False)


# --- the filter -------------------------------------------------------------------------------------------------------
def test_flows_that_come_while_a_filter_is_made_go_into_the_next_one_together() -> None:
    told, second, third = waits_for_filter(play()), flow(40001), flow(40002)
    for number, one in ((2, second), (3, third)):
        asked(told, number, one, number) >> owner(number, Choice.DIVERT)
    told >> FilterReady(generation=1) << expect(1)
    told << SetFilter(generation=2, terms=Terms(flows=frozenset([FLOW, second, third])))
    told >> Expected(number=1) << release(1, diverted=True)
    assert told >> FilterReady(generation=2) << expect(2, second) << expect(3, third)


def test_a_remote_in_demand_needs_no_new_filter_for_the_next_flow() -> None:
    told = play()
    for number in range(1, IN_DEMAND + 1):
        diverted(told, number, flow(40000 + number), number)
    assert IN_DEMAND > 1
    asked(told, 99, flow(50000), 99) >> owner(99, Choice.DIVERT) << expect(99, flow(50000))
    assert told >> Expected(number=99) << release(99, diverted=True)


@pytest.mark.parametrize("on_failure", OnFailure)
def test_a_filter_that_cannot_be_had_is_a_failure_of_those_that_wait_for_it(on_failure: OnFailure) -> None:
    told = waits_for_filter(play(on_failure)) >> FilterReady(generation=1, fault="no memory")
    failed(told, "filter_refused", on_failure, detail=": no memory")
    told >> FilterReady(generation=0)
    assert waits_for_filter(told, 2, flow(41000), 2)  # the next one is tried again


def test_when_flows_have_ended_the_filter_is_narrowed_but_not_for_a_few() -> None:
    told = play()
    for number in range(1, IN_DEMAND + 1):
        diverted(told, number, flow(40000 + number), number)
    told.later(MORE) >> Tick() << SetFilter  # the remote is in demand no longer
    told >> FilterReady(generation=told.last.generation)
    for number in range(1, IN_DEMAND + 1):
        told >> FlowClosed(flow=flow(40000 + number), sequence=1) << Forget(flow=flow(40000 + number))
    assert told.later(MORE) >> Tick() >> Tick()


def narrows(told: Playbook) -> int:
    """One remote was in demand, and its term is given up; a flow comes meanwhile. The narrower filter's number."""
    for number in range(1, IN_DEMAND + 1):
        diverted(told, number, flow(40000 + number), number)
    told.later(MORE) >> Tick() << SetFilter
    narrower: int = told.last.generation
    asked(told, 99, flow(50000), 99) >> owner(99, Choice.DIVERT)
    return narrower


def test_a_flow_that_comes_while_the_filter_is_narrowed_waits_for_one_that_goes_on_to_take_it() -> None:
    told = play()
    told >> FilterReady(generation=narrows(told)) << SetFilter
    assert told >> FilterReady(generation=told.last.generation) << expect(99, flow(50000))


def test_when_the_filter_cannot_be_narrowed_the_one_in_force_takes_that_flow() -> None:
    told = play()
    assert told >> FilterReady(generation=narrows(told), fault="no memory") << expect(99, flow(50000))


def test_while_a_filter_is_made_none_is_narrowed() -> None:
    told = diverted(play()) >> FlowClosed(flow=FLOW, sequence=1) << Forget(flow=FLOW)
    waits_for_filter(told, 2, flow(41000), 2)
    assert told.later(1) >> Tick()


@pytest.mark.parametrize("on_failure", OnFailure)
def test_a_gate_that_cannot_be_told_gets_nothing(on_failure: OnFailure) -> None:
    told = waits_for_filter(play(on_failure)) >> FilterReady(generation=1) << expect(1)
    told >> Expected(number=1, fault="no channel") << Forget(flow=FLOW)
    assert failed(told, "gate_unreachable", on_failure, detail=": no channel")


# --- QUIC -------------------------------------------------------------------------------------------------------------
def test_quic_of_a_selected_program_is_refused_and_of_others_passes() -> None:
    told = asked(play(), 1, QUIC) >> owner(1, Choice.DIVERT) << RefuseSyn(number=1)
    told >> syn(2, QUIC) << RefuseSyn(number=2)
    told.later(6) >> syn(3, QUIC) << ask(3, QUIC)
    assert told >> owner(3, Choice.LEAVE) << release(3, diverted=False)


# --- what was lost ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("on_failure", OnFailure)
@pytest.mark.parametrize("which", Which)
@pytest.mark.parametrize("passed", [False, True])
def test_no_queue_overflows_in_silence(on_failure: OnFailure, which: Which, passed: bool) -> None:
    told = play(on_failure) >> Overflowed(which=which, count=3, passed=passed)
    way, went = (OnFailure.OPEN, "passed by") if passed else (OnFailure.CLOSED, "were lost")
    told << Report(what="queue_overflow", failed=way, detail=f"{which}: 3 {went}")
    if passed and which is Which.SYNS and on_failure is OnFailure.CLOSED:
        told << CutUnseen(connected={})
    assert told


def test_where_failures_close_connections_whose_syn_passed_by_are_looked_for_and_no_others() -> None:
    told = (
        asked(diverted(play(OnFailure.CLOSED), 4, flow(43000), 82))
        >> connected(79, pid=9)
        >> connected(None, FLOW.local)
        >> syn(2, flow(41000), cookie=80)
    )
    asked(told, 3, flow(42000), 81) >> owner(3, Choice.LEAVE) << release(3, diverted=False)
    told >> Overflowed(which=Which.SYNS, count=1, passed=True) << Report
    assert told << CutUnseen(connected={79: 9})


# --- whatever happens -------------------------------------------------------------------------------------------------
def answers(command: Any, choice: Choice, fault: str) -> list[Any]:
    match command:
        case AskOwner():
            return [OwnerTold(number=command.number, process=CURL, choice=choice)]
        case AskTable():
            return [TableTold(number=command.number, pid=8 if not fault else None)]
        case SetFilter():
            return [FilterReady(generation=command.generation, fault=fault)]
        case Expect():
            return [Expected(number=command.number, fault=fault)]
    return []


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3), st.integers(0, 2), st.sampled_from(Choice), st.booleans(), st.sampled_from(["", "no"])
        ),
        max_size=40,
    ),
    st.sampled_from(OnFailure),
)
def test_each_syn_is_let_go_exactly_once_and_diverted_only_after_the_gate_was_told(
    steps: list[tuple[int, int, Choice, bool, str]], on_failure: OnFailure
) -> None:
    engine, now_s, expected = DivertEngine(on_failure), 0.0, set()
    gone: list[int] = []
    for number, (port, sequence, choice, with_event, fault) in enumerate(steps):
        now_s += 0.07
        due: list[Any] = [syn(number, flow(40000 + port), sequence, cookie=port * 10 + sequence), Tick()]
        if with_event:
            due.insert(number % 2, connected(port * 10 + sequence))
        if fault and choice is Choice.LEAVE:
            due.append(FlowClosed(flow=flow(40000 + port), sequence=sequence))
        while due:
            for command in engine.told(due.pop(0), now_s):
                due += answers(command, choice, fault)
                if isinstance(command, Expect):
                    expected.add(command.flow)
                if isinstance(command, ReleaseSyn | RefuseSyn | DropSyn):
                    gone.append(command.number)
                if isinstance(command, ReleaseSyn) and command.diverted:
                    assert flow(40000 + steps[command.number][0]) in expected
    last = engine.told(Tick(), now_s + HOLD_LIMIT_S + 0.1)
    gone += [command.number for command in last if isinstance(command, ReleaseSyn | RefuseSyn)]
    assert sorted(gone) == list(range(len(steps)))
    assert engine.held == 0
    assert engine.live <= 12
