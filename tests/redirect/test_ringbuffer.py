"""Records through shared memory, for real: a program writes them, and we read."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator

import pytest

from mitmsec_redirect import bpf
from mitmsec_redirect.assembler import Assembler, Condition, Helper, Register, Size
from mitmsec_redirect.bpf import Map, MapKind
from mitmsec_redirect.ringbuffer import RingBuffer

pytestmark = pytest.mark.root
R0, R1, R2, R3, R4, R6, R10 = (Register(number) for number in (0, 1, 2, 3, 4, 6, 10))
RESERVE, SUBMIT, DISCARD = 131, 132, 133
RECORD_BYTES = 24


class Writer:
    """Programs that write one record each, and answer whether there was room."""

    def __init__(self) -> None:
        self.map = Map.create(MapKind.RINGBUF, 0, 0, 4096, "ms_test")
        self._output = bpf.load_runnable(self._code(None), "ms_output")
        self._discard = bpf.load_runnable(self._code(DISCARD), "ms_discard")

    def _code(self, ending: int | None) -> bytes:
        asm = Assembler()
        asm.load(R6, R1, 0, Size.LONG)
        for at in range(-RECORD_BYTES, 0, 8):
            asm.store(R10, at, R6, Size.LONG)
        asm.map(R1, self.map.fd)
        if ending is None:
            asm.point(R2, -RECORD_BYTES)
            asm.move(R3, RECORD_BYTES)
            asm.move(R4, 0)
            asm.call(Helper.RINGBUF_OUTPUT)
        else:
            asm.move(R2, RECORD_BYTES)
            asm.move(R3, 0)
            asm._emit(0x85, immediate=RESERVE)
            asm.jump_if(R0, Condition.EQUAL, 0, "full")
            asm.move(R1, R0)
            asm.move(R2, 0)
            asm._emit(0x85, immediate=ending)
            asm.label("full")
            asm.move(R0, 0)
        asm._emit(0x95)
        return asm.code()

    def write(self, number: int) -> bool:
        return bpf.run(self._output, number) == 0

    def discard(self) -> None:
        bpf.run(self._discard, 0)

    def close(self) -> None:
        for fd in (self._output, self._discard, self.map.fd):
            os.close(fd)


@pytest.fixture
def writer() -> Iterator[Writer]:
    made = Writer()
    yield made
    made.close()


@pytest.fixture
def ring(writer: Writer) -> Iterator[RingBuffer]:
    made = RingBuffer(writer.map.fd, 4096)
    yield made
    made.close()


def record(number: int) -> bytes:
    return number.to_bytes(8, "little") * 3


def test_records_come_whole_in_order_and_once_however_often_the_ring_wraps(writer: Writer, ring: RingBuffer) -> None:
    assert ring.drain() == []
    for first in range(0, 3000, 100):
        assert all(writer.write(number) for number in range(first, first + 100))
        assert ring.drain() == [record(number) for number in range(first, first + 100)]
    assert ring.drain() == []


def test_what_has_no_room_is_refused_and_what_is_there_stays(writer: Writer, ring: RingBuffer) -> None:
    written = [number for number in range(200) if writer.write(number)]
    assert 100 < len(written) < 200
    assert ring.drain() == [record(number) for number in written]
    assert writer.write(7)
    assert ring.drain() == [record(7)]


def test_what_was_taken_back_is_skipped(writer: Writer, ring: RingBuffer) -> None:
    writer.write(1)
    writer.discard()
    writer.write(2)
    assert ring.drain() == [record(1), record(2)]
    writer.discard()
    assert ring.drain() == []


def test_it_is_readable_as_long_as_something_is_there(writer: Writer, ring: RingBuffer) -> None:
    def is_readable() -> bool:
        return bool(select.select([ring], [], [], 0)[0])

    assert not is_readable()
    writer.write(1)
    assert is_readable()
    ring.drain()
    assert not is_readable()


def test_closing_leaves_the_map(writer: Writer) -> None:
    ring = RingBuffer(writer.map.fd, 4096)
    writer.write(1)
    ring.close()
    again = RingBuffer(writer.map.fd, 4096)
    assert again.drain() == [record(1)]
    again.close()
