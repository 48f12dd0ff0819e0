"""The steps as code; what they note is seen in test_executable_paths, and what they walk in test_monitor too."""

from __future__ import annotations

import struct
from itertools import pairwise

from msgspec.structs import fields

from mitmsec_redirect import path_steps, process_steps, steps, udp_programs
from mitmsec_redirect.assembler import Assembler, Helper, Register
from mitmsec_redirect.path_records import PathMaps
from mitmsec_redirect.process_offsets import Offsets
from mitmsec_redirect.steering_records import LEG

OFFSETS = Offsets(*range(0, 8 * len(fields(Offsets)), 8))
MAPS = PathMaps(paths=3, blank=4)
CALL, MAP = 0x85, 0x18
SLOTS = [
    path_steps.DENTRY,
    path_steps.MOUNT,
    path_steps.ROOT,
    path_steps.OTHER,
    path_steps.NAME,
    path_steps.STEP,
    path_steps.LENGTH,
]


def instructions(code: bytes) -> list[tuple[int, int]]:
    """Operation and immediate."""
    return [(opcode, value) for opcode, _, _, value in struct.iter_unpack("=BBhi", code)]


def noted() -> list[tuple[int, int]]:
    asm = Assembler()
    path_steps.note(asm, OFFSETS, MAPS, base=Register.R10, key=-32)
    asm.exit(0)
    return instructions(asm.code())


def test_slots_lie_beneath_whatever_the_programs_keep_on_their_stacks() -> None:
    assert [above - below for above, below in pairwise([path_steps.STACK, *SLOTS])] == 7 * [8]
    assert min(steps.VERDICT, udp_programs.COUNTS, process_steps.NAME, -LEG.size) > path_steps.STACK
    assert path_steps.LENGTH >= -512, "the kernel's limit"


def test_an_executable_that_is_known_costs_one_look_up() -> None:
    code = noted()
    first = next(at for at, (opcode, _) in enumerate(code) if opcode == CALL)
    assert code[first] == (CALL, Helper.MAP_LOOKUP)
    assert (MAP, MAPS.paths) in code[:first]
    called = [value for opcode, value in code if opcode == CALL]
    assert called.count(Helper.MAP_LOOKUP) == 3
    assert called.count(Helper.MAP_UPDATE) == 1
    assert called.count(Helper.PROBE_READ_KERNEL_STR) == 1
