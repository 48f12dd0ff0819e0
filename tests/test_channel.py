"""A channel carries messages with descriptors, never blocks, and refuses what it does not carry."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import Any

import pytest

from mitmsec import channel
from mitmsec.channel import Channel, ChannelBroken, ChannelFull, pair
from mitmsec.core.messages import Drain, Drained, Fault, Ready, WorkerUp, encode


def both(accepts: list[type]) -> tuple[Channel, Channel]:
    ours, theirs = pair()
    return Channel(ours, accepts), Channel(theirs, accepts)


def test_a_message_arrives_with_its_descriptors() -> None:
    left, right = both([WorkerUp])
    reading, writing = os.pipe()
    left.send(WorkerUp(worker=3), writing)
    os.close(writing)
    message, fds = right.receive() or (None, [])
    os.write(fds[0], b"through")
    assert (message, os.read(reading, 7)) == (WorkerUp(worker=3), b"through")
    assert not os.get_inheritable(fds[0])
    channel.close_all([reading, *fds])


def test_what_a_channel_does_not_carry_breaks_it_and_closes_the_descriptors() -> None:
    left, right = both([Ready])
    reading, writing = os.pipe()
    left.send(Drain(grace_s=1), writing)
    os.close(writing)
    with pytest.raises(ChannelBroken):
        right.receive()
    assert os.read(reading, 1) == b""  # nobody holds the writing end any more
    os.close(reading)


@pytest.mark.parametrize("packet", [b"\x00", b"\xc1", b"not msgpack", encode(Drained(cut=1))[:-1]])
def test_bytes_that_are_no_message_break_it(packet: bytes) -> None:
    ours, theirs = pair()
    right = Channel(theirs, [Drained])
    ours.send(packet)
    with pytest.raises(ChannelBroken):
        right.receive()


def test_the_end_is_none_and_an_empty_socket_would_block() -> None:
    left, right = both([Ready])
    with pytest.raises(BlockingIOError):
        right.receive()
    left.close()
    left.close()
    assert right.receive() is None


def test_a_message_too_large_for_a_packet_is_a_fault_of_the_caller() -> None:
    left, _ = both([Fault])
    with pytest.raises(ValueError, match="does not fit"):
        left.send(Fault(what="x", detail="y" * channel.PACKET_LIMIT_BYTES))


def test_sending_never_blocks_and_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "QUEUE_LIMIT", 3)
    left, _right = both([Fault])
    message = Fault(what="full", detail="x" * 10_000)
    while left.queued < 3:
        left.send(message)
    with pytest.raises(ChannelFull):
        left.send(message)
    assert left.queued == 3
    left.close()
    assert left.queued == 0


@pytest.mark.parametrize("number", sorted(channel.NO_ROOM))
def test_a_kernel_without_room_is_tried_again_and_no_message_is_lost(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOBUFS and the like are no sign that the other side has gone, and the socket may be writable all the while."""
    attempts: list[float] = []

    async def story() -> list[int]:
        loop = asyncio.get_running_loop()
        send_fds = socket.send_fds

        def without_room(*order: Any) -> int:
            attempts.append(loop.time())
            if len(attempts) <= 5:
                raise OSError(number, os.strerror(number))
            return send_fds(*order)

        monkeypatch.setattr(socket, "send_fds", without_room)
        left, right = both([WorkerUp])
        heard: list[int] = []
        done = loop.create_future()

        def on_message(message: WorkerUp, fds: list[int]) -> None:
            heard.append(message.worker)
            channel.close_all(fds)
            if len(heard) == 3:
                done.set_result(None)

        left.send(WorkerUp(worker=0), 0)  # before there is a loop to try again with
        left.attach(loop, lambda message, fds: None, lambda: None)
        right.attach(loop, on_message, lambda: None)
        for worker in (1, 2):
            left.send(WorkerUp(worker=worker), 0)
        await asyncio.wait_for(done, 10)
        left.close()
        right.close()
        return heard

    assert asyncio.run(story()) == [0, 1, 2]
    assert len(attempts) == 5 + 3
    assert attempts[4] - attempts[2] >= channel.RETRY_S  # it waits


def test_a_channel_that_closes_while_it_waits_for_room_tries_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_room(*order: Any) -> int:
        raise OSError(errno.ENOBUFS, "")

    async def story() -> None:
        left, right = both([WorkerUp])
        left.attach(asyncio.get_running_loop(), lambda message, fds: None, lambda: None)
        monkeypatch.setattr(socket, "send_fds", without_room)
        left.send(WorkerUp(worker=1), 0)
        left.close()
        monkeypatch.undo()
        await asyncio.sleep(2 * channel.RETRY_S)
        assert right.receive() is None

    asyncio.run(story())


def test_without_descriptors_a_message_that_has_to_wait_is_refused_and_leaves_none_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left, right = both([Fault])
    while not left.queued:
        left.send(Fault(what="full", detail="x" * 10_000))
    made: list[int] = []
    dup = os.dup

    def second_fails(fd: int) -> int:
        if made:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        made.append(dup(fd))
        return made[0]

    monkeypatch.setattr(os, "dup", second_fails)
    with pytest.raises(OSError, match="open files"):
        left.send(Fault(what="with descriptors"), 0, 0)
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(made[0])
    assert left.queued == 1
    left.close()
    right.close()


def test_what_was_queued_leaves_in_order_with_its_own_descriptors() -> None:
    async def story() -> list[int]:
        left, right = both([WorkerUp])
        heard: list[int] = []
        done = asyncio.get_running_loop().create_future()
        left.attach(asyncio.get_running_loop(), lambda message, fds: None, lambda: None)
        with socket.socket() as borrowed:
            for number in range(1_000):  # far more than the kernel takes at once
                left.send(WorkerUp(worker=number), borrowed.fileno())
        assert left.queued > 0

        def on_message(message: WorkerUp, fds: list[int]) -> None:
            heard.append(message.worker)
            assert len(fds) == 1
            channel.close_all(fds)
            if len(heard) == 1_000:
                done.set_result(None)

        right.attach(asyncio.get_running_loop(), on_message, lambda: None)
        await asyncio.wait_for(done, 10)
        right.close()
        left.close()
        return heard

    assert asyncio.run(story()) == list(range(1_000))


def test_the_end_is_told_once_after_the_last_message() -> None:
    async def story() -> list[object]:
        left, right = both([Ready])
        heard: list[object] = []
        ended = asyncio.get_running_loop().create_future()

        def on_end() -> None:
            heard.append("end")
            ended.set_result(None)

        right.attach(asyncio.get_running_loop(), lambda message, fds: heard.append(message), on_end)
        left.send(Ready())
        left.close()
        left.send(Ready())  # after its end: nothing happens
        await asyncio.wait_for(ended, 5)
        return heard

    assert asyncio.run(story()) == [Ready(), "end"]


def test_an_exchange_waits_for_the_answer_or_for_its_time_to_run_out() -> None:
    left, right = both([Ready, Drain])
    right.send(Ready())
    assert left.exchange(Drain(grace_s=1.0), timeout_s=1) == (Ready(), [])
    assert right.receive() == (Drain(grace_s=1.0), [])
    with pytest.raises(TimeoutError):
        left.exchange(None, timeout_s=0.01)
