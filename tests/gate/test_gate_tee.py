"""Copies for the recorder: whose they are, and what happens when it is slow or gone."""

from __future__ import annotations

import asyncio

import pytest
from gate_house import CURL, Recorder, on_loop

from mitmsec.audit.event import BytesSeen
from mitmsec.audit.producer import Producer
from mitmsec.channel import pair
from mitmsec.core.model import Endpoint, OnFailure
from mitmsec.gate.account import Account
from mitmsec.gate.tee import Taps

CLIENT, REMOTE = Endpoint(address="127.0.0.1", port=1), Endpoint(address="192.0.2.1", port=2)


def taps(on_failure: OnFailure = OnFailure.CLOSED, limit: int = 4096) -> tuple[Taps, Recorder, Producer]:
    mine, theirs = pair()
    loop = asyncio.get_running_loop()
    producer = Producer(mine, loop, limit=limit)
    return Taps(loop, producer, on_failure), Recorder(theirs), producer


def account() -> Account:
    about = Account("f")
    about.process, about.client, about.remote = CURL, CLIENT, REMOTE
    return about


@on_loop
async def test_the_first_piece_says_whose_flow_it_is() -> None:
    all_taps, recorder, producer = taps()
    tap = all_taps.tap(account())
    assert tap.take(True, b"one")
    assert tap.take(False, b"two")
    await producer.flushed()
    assert recorder.events == [
        BytesSeen(flow="f", sent=True, data=b"one", process=CURL, local=CLIENT, remote=REMOTE),
        BytesSeen(flow="f", sent=False, data=b"two"),
    ]
    producer.close()
    recorder.die()


@on_loop
async def test_flows_wait_while_the_recorder_is_behind_and_go_on_when_it_has_caught_up() -> None:
    all_taps, recorder, producer = taps(limit=4)
    recorder.answers = False
    tap, resumed = all_taps.tap(account()), asyncio.Event()
    assert not tap.wait(resumed.set)
    for _ in range(3):
        tap.take(True, b"x")
    assert tap.wait(resumed.set)
    assert tap.wait(resumed.set)
    await recorder.until(lambda events: len(events) == 3)
    assert not resumed.is_set()
    recorder.commit()
    await asyncio.wait_for(resumed.wait(), 20)
    assert not tap.wait(resumed.set)
    all_taps.close()
    producer.close()
    recorder.die()


@pytest.mark.parametrize(("on_failure", "passes"), [(OnFailure.OPEN, True), (OnFailure.CLOSED, False)])
def test_without_a_recorder_bytes_pass_as_on_failure_says(on_failure: OnFailure, passes: bool) -> None:
    async def scenario() -> None:
        all_taps, recorder, producer = taps(on_failure, limit=4)
        recorder.answers = False
        tap, resumed = all_taps.tap(account()), asyncio.Event()
        for _ in range(3):
            tap.take(True, b"x")
        assert tap.wait(resumed.set)
        recorder.die()
        await asyncio.wait_for(resumed.wait(), 20)
        assert not tap.wait(resumed.set)
        assert tap.take(True, b"y") is passes
        producer.close()

    asyncio.run(scenario())


@on_loop
async def test_closing_forgets_who_waits() -> None:
    all_taps, recorder, producer = taps(limit=2)
    recorder.answers = False
    tap, resumed = all_taps.tap(account()), asyncio.Event()
    tap.take(True, b"x")
    tap.take(True, b"x")
    assert tap.wait(resumed.set)
    all_taps.close()
    producer.close()
    await asyncio.sleep(0)
    assert not resumed.is_set()
    recorder.die()
