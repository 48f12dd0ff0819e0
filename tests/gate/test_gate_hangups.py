"""Ends of connections that somebody else reads."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from descriptors import descriptors
from gate_house import WAIT_S, on_loop, pair_over_loopback

from mitmsec.gate.hangups import Hangups, moved_bytes
from mitmsec.gate.refuse import reset


@asynccontextmanager
async def watched(*, half: bool) -> AsyncIterator[tuple[Hangups, socket.socket, socket.socket, asyncio.Event]]:
    """Hangups that watch one end of a connection, that end, the other end, and what is set when it is told."""
    hangups, told = Hangups(asyncio.get_running_loop()), asyncio.Event()
    ours, theirs = await pair_over_loopback()
    with ours, theirs:
        hangups.watch(ours, told.set, half=half)
        yield hangups, ours, theirs, told
        hangups.forget(ours)
        assert not len(hangups)
    hangups.close()
    hangups.close()


async def rounds(number: int = 20) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


@on_loop
async def test_data_wakes_nobody_and_a_half_close_is_told_once_until_it_is_asked_for_again() -> None:
    async with watched(half=True) as (hangups, ours, theirs, told):
        theirs.send(b"data")
        await rounds()
        assert not told.is_set()
        theirs.shutdown(socket.SHUT_WR)
        await asyncio.wait_for(told.wait(), WAIT_S)
        told.clear()
        await rounds()
        assert not told.is_set()
        hangups.watch(ours, told.set, half=True)
        await asyncio.wait_for(told.wait(), WAIT_S)
        assert ours.recv(10) == b"data"


@pytest.mark.parametrize("half", [True, False])
def test_a_reset_is_told_in_any_case(half: bool) -> None:
    async def scenario() -> None:
        async with watched(half=half) as (_, _ours, theirs, told):
            reset(theirs)
            await asyncio.wait_for(told.wait(), WAIT_S)

    asyncio.run(scenario())


@on_loop
async def test_only_the_end_of_both_directions_is_told_where_a_half_close_does_not_count() -> None:
    async with watched(half=False) as (_, ours, theirs, told):
        theirs.shutdown(socket.SHUT_WR)
        await rounds()
        assert not told.is_set()
        with ours.dup() as workers:  # as whoever else has it ends it
            workers.shutdown(socket.SHUT_WR)
        await asyncio.wait_for(told.wait(), WAIT_S)


@on_loop
async def test_what_is_forgotten_is_told_no_more_although_a_duplicate_lives() -> None:
    async with watched(half=True) as (hangups, ours, theirs, told):
        with ours.dup():
            hangups.forget(ours)
            hangups.forget(ours)
            theirs.close()
            await rounds()
            assert not told.is_set()


@on_loop
async def test_of_two_that_end_together_one_may_have_the_other_forgotten() -> None:
    hangups = Hangups(asyncio.get_running_loop())
    pairs = [await pair_over_loopback() for _ in range(2)]
    heard: list[int] = []

    def first_of(number: int) -> Callable[[], None]:
        def told() -> None:
            heard.append(number)
            for ours, _ in pairs:
                hangups.forget(ours)

        return told

    for number, (ours, theirs) in enumerate(pairs):
        hangups.watch(ours, first_of(number), half=True)
        theirs.close()
    await rounds()
    assert len(heard) == 1
    for ours, _ in pairs:
        ours.close()
    before = len(descriptors())
    hangups.close()
    assert len(descriptors()) == before - 1


@on_loop
async def test_bytes_that_pass_either_way_are_seen_from_outside() -> None:
    ours, theirs = await pair_over_loopback()
    with ours, theirs:
        before = moved_bytes(ours)
        ours.send(bytes(100))
        theirs.send(bytes(20))
        async with asyncio.timeout(WAIT_S):
            while moved_bytes(ours) < before + 120:
                await asyncio.sleep(0.001)
        assert moved_bytes(ours) == before + 120
