"""Asking whose connections are."""

from __future__ import annotations

import asyncio

from gate_house import CURL, House, Server, houses, on_loop
from msgspec.structs import replace

from mitmsec.core.model import Action, Caller, Confidence, OnFailure
from mitmsec.core.policy import Policy
from mitmsec.gate.terms import Terms

CALLER = Caller(start_ns=10**9, parent=1, parent_start_ns=5, device=7, inode=8, ctime_ns=9)
KNOWN = replace(CURL, sha256="00" * 32, confidence=Confidence.KERNEL)


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.read(1))
    writer.close()


async def _exchange(house: House) -> bytes:
    reader, writer = await house.client()
    writer.write(b"x")
    answer = await reader.read(1)
    writer.close()
    return answer


@on_loop
async def test_the_supervisor_is_asked_once_for_a_program_that_calls_often_and_again_when_the_policy_changes() -> None:
    async with houses() as make, Server(_answer) as origin:
        house = make(Action.BYPASS)
        house.divert(origin.address)
        assert house.origin is not None
        house.origin, house.process = replace(house.origin, caller=CALLER), KNOWN
        assert [await _exchange(house) for _ in range(3)] == [b"x"] * 3
        assert house.asked == 1
        house.gate.govern(Policy(action=Action.BYPASS), Terms(on_failure=OnFailure.OPEN), ())
        assert await _exchange(house) == b"x"
        assert house.asked == 2
        seen = [await house.recorder.connection(number) for number in range(4)]
        assert {(one.process, one.action) for one in seen} == {(KNOWN, Action.BYPASS)}


@on_loop
async def test_without_the_kernels_word_on_who_calls_everybody_is_asked_for() -> None:
    async with houses() as make, Server(_answer) as origin:
        house = make(Action.BYPASS)
        house.divert(origin.address)
        house.process = KNOWN
        assert [await _exchange(house) for _ in range(3)] == [b"x"] * 3
        assert house.asked == 3
