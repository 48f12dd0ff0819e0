"""The steps as code; what they do is seen in test_process_programs and test_monitor."""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import pairwise

import pytest
from msgspec.structs import fields

from mitmsec_redirect import path_steps
from mitmsec_redirect import process_programs as programs
from mitmsec_redirect import process_records as records
from mitmsec_redirect import process_steps as steps
from mitmsec_redirect.assembler import Helper, Register
from mitmsec_redirect.process_offsets import Offsets
from mitmsec_redirect.process_steps import Maps

MAPS = Maps(selected=3, executables=4, ring=5, counts=6, scratch=7)
OFFSETS = Offsets(**{field.name: 8 * number for number, field in enumerate(fields(Offsets))})
BUILDERS = [programs.started, programs.executed, programs.ended]
CALL, EXIT = 0x85, 0x95
STORES = {opcode | size for opcode in (0x62, 0x63) for size in (0, 8, 16, 24)}


def instructions(code: bytes) -> list[tuple[int, int, int, int, int]]:
    """Operation, destination, source, offset, immediate."""
    found = (struct.unpack_from("=BBhi", code, at) for at in range(0, len(code), 8))
    return [(opcode, registers & 15, registers >> 4, offset, value) for opcode, registers, offset, value in found]


@pytest.mark.parametrize("build", BUILDERS)
def test_each_program_ends_and_keeps_to_its_stack(build: Callable[[Maps, Offsets], bytes]) -> None:
    code = instructions(build(MAPS, OFFSETS))
    assert code[-1][0] == EXIT
    assert len(code) < 4096
    written = {offset for opcode, base, _, offset, _ in code if opcode in STORES and base == Register.R10}
    assert all(steps.NAME <= offset < 0 or path_steps.LENGTH <= offset < path_steps.STACK for offset in written)


def test_names_on_the_stack_do_not_overlap() -> None:
    slots = [0, steps.HEAD, steps.KEY, steps.VALUE, steps.NAME]
    assert [above - below for above, below in pairwise(slots)] == [records.HEAD.size] + 3 * [8]


@pytest.mark.parametrize("build", BUILDERS)
def test_each_program_writes_one_record(build: Callable[[Maps, Offsets], bytes]) -> None:
    called = [value for opcode, *_, value in instructions(build(MAPS, OFFSETS)) if opcode == CALL]
    assert called.count(Helper.RINGBUF_OUTPUT) == 1


def test_only_a_program_that_begins_has_its_path_read() -> None:
    reads = {
        build.__name__: sum(value == Helper.PROBE_READ_KERNEL_STR for *_, value in instructions(build(MAPS, OFFSETS)))
        for build in BUILDERS
    }
    assert reads == {"started": 0, "executed": 2, "ended": 0}
