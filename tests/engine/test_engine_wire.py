"""What goes to a capture file, and when a flow waits for it."""

from __future__ import annotations

import asyncio

import pytest
from engine_world import Recorder

from mitmsec.audit.event import BytesSeen
from mitmsec.engine.wire import PIECE_BYTES, Wire


def test_much_at_once_is_recorded_in_pieces() -> None:
    async def main() -> None:
        recorder = Recorder()
        wire = Wire("f", recorder, asyncio.get_running_loop(), lambda held: True)
        wire.passed(True, b"x" * (PIECE_BYTES + 1))
        assert [(seen.sent, len(seen.data)) for seen in recorder.of(BytesSeen)] == [(False, PIECE_BYTES), (False, 1)]

    asyncio.run(main())


@pytest.mark.parametrize("can_hold", [True, False])
def test_a_flow_is_held_once_until_the_recorder_has_room(can_hold: bool) -> None:
    async def main() -> None:
        recorder, held = Recorder(), []

        def hold(is_held: bool) -> bool:
            held.append(is_held)
            return can_hold

        wire = Wire("f", recorder, asyncio.get_running_loop(), hold)
        recorder.congested = True
        for _ in range(2):
            wire.passed(False, b"x")
        recorder.relief.set()
        await asyncio.sleep(0.01)
        assert held == ([True, False] if can_hold else [True, True])
        wire.stop()

    asyncio.run(main())


def test_a_wire_that_is_stopped_waits_for_nobody() -> None:
    async def main() -> None:
        recorder, held = Recorder(), []
        recorder.congested = True
        wire = Wire("f", recorder, asyncio.get_running_loop(), lambda is_held: held.append(is_held) or True)
        wire.passed(False, b"x")
        wire.stop()
        recorder.relief.set()
        await asyncio.sleep(0.01)
        assert held == [True]

    asyncio.run(main())
