"""Faults are recorded by kind and place, never by what went through."""

from __future__ import annotations

import asyncio
import socket

from engine_world import Recorder
from mitmproxy.connection import Server

from mitmsec.audit.event import Outcome
from mitmsec.engine.leg import Leg
from mitmsec.engine.side import Side, faulty


def test_a_fault_names_the_error_and_its_place_but_not_its_words() -> None:
    async def main() -> None:
        recorder = Recorder()
        try:
            raise ValueError("a password")
        except ValueError as error:
            ended = faulty(error, "flow-1", recorder)
        assert (ended.outcome, ended.reset) == (Outcome.FAULT, True)
        (fault,) = recorder.faults
        assert fault.detail.startswith("ValueError at test_engine_side:")
        assert "password" not in fault.detail + ended.error

    asyncio.run(main())


def test_what_is_pending_leaves_at_once_and_in_order() -> None:
    async def main() -> None:
        near, far = socket.socketpair()
        with far:
            side = Side(Leg(near, asyncio.get_running_loop()), None, Server(address=("192.0.2.1", 1)))
            side.flush()
            side.pending += [b"one ", b"two"]
            side.flush()
            side.flush()
            assert far.recv(100) == b"one two"
            side.pending.append(b"last")
            side.say_goodbye()
            assert far.recv(100) == b"last"
            side.forget()
            side.leg.abort()

    asyncio.run(main())
