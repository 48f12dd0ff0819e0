"""What a session says of a gate that does not end its flows in time; with real gates it is in tests/end_to_end."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from mitmsec.channel import Channel, pair
from mitmsec.core.messages import Drain
from mitmsec.service import gate_and_workers
from mitmsec.service.gate_and_workers import GateAndWorkers


@pytest.mark.parametrize("is_answered", [True, False])
def test_a_gate_that_does_not_end_its_flows_in_time_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, is_answered: bool
) -> None:
    """Their ends are then nowhere on record."""
    monkeypatch.setattr(gate_and_workers, "DRAINED_S", 0.2)
    faults: list[str] = []

    async def story() -> None:
        mine, theirs = pair()
        with mine, theirs:
            channel, heard = Channel(mine, [Drain]), Channel(theirs, [Drain])
            gate = SimpleNamespace(channel=channel, ended=asyncio.get_running_loop().create_future())
            ground = SimpleNamespace(fault=lambda what, detail="": faults.append(what))
            session: Any = SimpleNamespace(gate=gate, _pulse=object(), _ground=ground)
            draining = asyncio.ensure_future(GateAndWorkers.drain(session))
            await asyncio.sleep(0)
            received = heard.receive()
            assert received is not None
            assert isinstance(received[0], Drain)
            if is_answered:
                session._drained.set_result(None)
            await draining

    asyncio.run(story())
    assert faults == ([] if is_answered else ["gate_not_drained"])
