"""What a session says of a gate that does not end its flows in time; with real gates it is in tests/end_to_end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from mitmsec.channel import Channel, pair
from mitmsec.core.messages import Drain, Drained, Draining, Message
from mitmsec.service import gate_end
from mitmsec.service.gate_and_workers import GateAndWorkers


@pytest.mark.parametrize("is_answered", [True, False])
def test_a_gate_that_does_not_end_its_flows_in_time_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, is_answered: bool
) -> None:
    """Their ends are then nowhere on record."""
    monkeypatch.setattr(gate_end, "QUIET_S", 0.2)

    async def answers(said: Callable[[Message], None]) -> None:
        if is_answered:
            said(Drained(cut=0))

    assert drained(answers) == ([] if is_answered else ["gate_not_drained"])


def test_a_gate_that_gets_on_with_it_is_given_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_end, "QUIET_S", 0.5)

    async def goes_on(said: Callable[[Message], None]) -> None:
        for word in (Draining(), Draining(), Draining(), Drained(cut=0)):
            await asyncio.sleep(0.3)
            said(word)

    assert drained(goes_on) == []


def test_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_end, "LIMIT_S", 0.3)

    async def goes_on(said: Callable[[Message], None]) -> None:
        for _ in range(5):
            await asyncio.sleep(0.1)
            said(Draining())

    assert drained(goes_on) == ["gate_not_drained"]


def drained(gate_does: Callable[[Callable[[Message], None]], Coroutine[Any, Any, None]]) -> list[str]:
    """The faults of an end in which the gate says these words, once it has been told to end its flows."""
    faults: list[str] = []

    async def story() -> None:
        mine, theirs = pair()
        with mine, theirs:
            channel, heard = Channel(mine, [Drain]), Channel(theirs, [Drain])
            gate = SimpleNamespace(channel=channel, ended=asyncio.get_running_loop().create_future())
            ground = SimpleNamespace(fault=lambda what, detail="": faults.append(what))
            session: Any = SimpleNamespace(gate=gate, _pulse=object(), _ground=ground, cut=0)
            draining = asyncio.ensure_future(GateAndWorkers.drain(session))
            await asyncio.sleep(0)
            received = heard.receive()
            assert received is not None
            assert isinstance(received[0], Drain)
            saying = asyncio.ensure_future(gate_does(lambda word: GateAndWorkers._gate_said(session, gate, word, [])))
            await draining
            await saying

    asyncio.run(story())
    return faults
