"""Who is not selected, and what the kill switch does, as plays and on real sockets."""

from __future__ import annotations

import asyncio
import os

import pytest
from gate_house import WAIT_S, House, Server, houses, on_loop, wait_reset
from gate_stage import CLIENT, CURL, GATE, NEVER, ORIGIN, REMOTE, SSH, TLS, Stage, ended

from mitmsec.audit.event import ConnectionSeen, FlowHanded, Outcome
from mitmsec.channel import Channel, pair
from mitmsec.core.messages import FlowEnded, HandOver, TlsFacts, TlsServerFacts, UpstreamAnswer
from mitmsec.core.model import Action, Learning, OnFailure
from mitmsec.core.policy import Policy
from mitmsec.gate.learned import ASKED, Kind
from mitmsec.gate.signals import (
    Accepted,
    Ask,
    Close,
    Cut,
    Dial,
    DialFailed,
    DialFailure,
    Dialled,
    Ending,
    FirstBytes,
    LongLived,
    OwnerKnown,
    Relay,
    RelayEnded,
    Reset,
    ServerSpoke,
    SetDeadline,
    Staff,
)
from mitmsec.gate.terms import Terms


# --- not selected -----------------------------------------------------------------------------------------------------
def unselected(stage: Stage) -> None:
    """Up to the moment where it is known that its program is nobody's business."""
    stage.play >> Accepted(CLIENT, GATE, ORIGIN, 0.0) << SetDeadline(2.0) << Ask(ORIGIN)
    stage.play >> OwnerKnown(CURL, selected=False) << NEVER << Dial((REMOTE,))


@pytest.mark.parametrize("action", list(Action))
@pytest.mark.parametrize("on_failure", list(OnFailure))
def test_who_is_not_selected_is_joined_unread_and_unrecorded_whatever_the_policy_says(
    action: Action, on_failure: OnFailure
) -> None:
    stage = Stage(action, on_failure=on_failure)
    stage.health.recording = stage.health.signing = False
    unselected(stage)
    stage.play >> Dialled(REMOTE) << Relay(tee=False)
    assert stage.play >> LongLived(1, 2)  # not on record
    stage.play >> RelayEnded(Ending.ORDERLY, 3, 4) << NEVER << Close()
    assert stage.play


def test_its_origin_fails_as_it_would_have_failed_anyway() -> None:
    stage = Stage()
    unselected(stage)
    stage.play >> DialFailed(DialFailure.REFUSED) << NEVER << Reset()
    assert stage.play


def test_it_is_cut_like_everybody_and_still_not_recorded() -> None:
    stage = Stage()
    unselected(stage)
    stage.play >> Cut("the gate has ended") << NEVER << Reset()
    assert stage.play


def test_an_answer_that_comes_twice_changes_nothing() -> None:
    stage = Stage(Action.BYPASS)
    stage.dialling()
    assert stage.play >> OwnerKnown(CURL, selected=False)


# --- the kill switch --------------------------------------------------------------------------------------------------
def test_switched_off_what_would_be_decrypted_is_bypassed_and_the_record_says_why() -> None:
    stage = Stage(Action.DECRYPT)
    stage.connected()
    stage.health.off = True
    stage.play >> FirstBytes(TLS) << NEVER << Relay(tee=False)
    stage.play >> RelayEnded(Ending.ORDERLY, 1, 2)
    seen = ended(stage.play, Close(), Outcome.COMPLETED, action=Action.BYPASS, rule="defaults")
    assert seen.reason == "mitmsec is switched off; else decrypted: no rule matched; [defaults] decide"


def test_switched_off_block_and_capture_stay() -> None:
    stage = Stage(Action.CAPTURE)
    stage.health.off = True
    stage.relayed(tee=True)
    blocked = Stage(Action.BLOCK)
    blocked.health.off = True
    blocked.waiting() >> FirstBytes(TLS)
    ended(blocked.play, Reset(), Outcome.BLOCKED, action=Action.BLOCK)


def test_switched_off_what_no_worker_reads_is_not_kept_either() -> None:
    stage = Stage(Action.DECRYPT)
    stage.health.off = True
    stage.connected() >> ServerSpoke(SSH) << NEVER << Relay(tee=False)


def test_switched_on_again_flows_are_decrypted_again() -> None:
    stage = Stage(Action.DECRYPT)
    stage.health.off = True
    stage.connected()
    stage.health.off = False
    stage.play >> FirstBytes(TLS) << NEVER << Staff()
    assert stage.play


# --- on real sockets --------------------------------------------------------------------------------------------------
class Worker:
    """The far end of a worker's channel."""

    def __init__(self, house: House, number: int) -> None:
        mine, theirs = pair()
        house.gate.crew.up(number, mine.detach())
        self.channel = Channel(theirs, [HandOver, UpstreamAnswer])
        self.orders: asyncio.Queue[HandOver] = asyncio.Queue()
        self.ended = asyncio.Event()
        self.channel.attach(asyncio.get_running_loop(), self._hear, self.ended.set)

    def _hear(self, message: HandOver, fds: list[int]) -> None:
        for descriptor in fds:
            os.close(descriptor)
        self.orders.put_nowait(message)

    async def order(self) -> HandOver:
        return await asyncio.wait_for(self.orders.get(), WAIT_S)


async def idle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


@on_loop
async def test_the_switch_cuts_what_is_being_decrypted_and_leaves_what_is_relayed() -> None:
    async with houses() as make, Server(idle) as origin:
        house = make(Policy())
        house.divert(origin.address)
        worker = Worker(house, 0)
        decrypted = house.dial()
        decrypted.send(TLS)
        await worker.order()
        await house.recorder.until(lambda events: [one for one in events if isinstance(one, FlowHanded)])
        relayed = house.dial()
        relayed.send(b"\x80")  # not TLS: relayed
        while house.gate.live < 2 or origin.contacts < 2:
            await asyncio.sleep(0.01)
        assert house.gate.decrypted == 1
        assert house.gate.switch(off=True) == 1
        assert await asyncio.to_thread(wait_reset, decrypted)
        seen = await house.recorder.connection()
        assert (seen.outcome, seen.error, seen.action) == (Outcome.CUT, "switched off", Action.DECRYPT)
        assert house.gate.live == 1
        later = house.dial()
        later.send(TLS)
        while house.gate.live < 2 or origin.contacts < 3:
            await asyncio.sleep(0.01)
        assert house.gate.decrypted == 0
        assert house.gate.switch(off=False) == 0
        for sock in (decrypted, relayed, later):
            sock.close()


@on_loop
async def test_a_new_policy_holds_for_new_flows_and_a_worker_of_the_old_one_ends_with_its_last_flow() -> None:
    async with houses() as make, Server(idle) as origin:
        house = make(Policy())
        house.divert(origin.address)
        old = Worker(house, 0)
        first = house.dial()
        first.send(TLS)
        await old.order()
        new = Worker(house, 1)
        house.gate.govern(Policy(inspect=("keywords",)), Terms(on_failure=OnFailure.CLOSED), {1})
        second = house.dial()
        second.send(TLS)
        assert (await new.order()).decision.inspect == ("keywords",)
        assert not old.ended.is_set()
        assert house.gate.decrypted == 2
        first.close()  # the gate sees to the end of what the worker leaves
        house.gate.govern(Policy(action=Action.BLOCK), Terms(on_failure=OnFailure.CLOSED), {1})
        third = house.dial()
        third.send(TLS)
        assert await asyncio.to_thread(wait_reset, third)
        seen = await house.recorder.connection()
        assert isinstance(seen, ConnectionSeen)
        assert seen.outcome is Outcome.BLOCKED
        house.gate.switch(off=True)  # cuts both
        await asyncio.wait_for(old.ended.wait(), WAIT_S)
        assert not new.ended.is_set()
        for sock in (second, third):
            sock.close()


@on_loop
async def test_a_worker_without_flows_leaves_at_once_when_it_is_not_wanted_any_more() -> None:
    async with houses() as make:
        house = make(Policy())
        old, new = Worker(house, 0), Worker(house, 1)
        house.gate.govern(Policy(), Terms(on_failure=OnFailure.OPEN), {1})
        await asyncio.wait_for(old.ended.wait(), WAIT_S)
        assert len(house.gate.crew) == 1
        assert not new.ended.is_set()


@pytest.mark.checklist("C11")
@on_loop
async def test_another_policy_makes_the_gate_forget_what_it_has_learned() -> None:
    async with houses() as make:
        house = make(Policy())
        house.gate._learned.heard(
            Kind.of(CURL, "a.test", 443),
            FlowEnded(
                flow="f",
                bytes_sent=0,
                bytes_received=0,
                outcome="origin_refused",
                tls=TlsFacts(server=TlsServerFacts(asks_certificate=True)),
            ),
            Learning(on_request=True),
            asyncio.get_running_loop().time(),
        )
        assert [(told.host, told.why) for told in house.gate.learned] == [("a.test", ASKED)]
        house.gate.govern(Policy(), Terms(on_failure=OnFailure.OPEN), ())
        assert house.gate.learned == ()
