"""The steps that describe a caller beyond its pid: the process by its start, the program by its file.

    current task ─┬─ group_leader ─── start_boottime              which process of that pid
                  │        └───────── real_parent: tgid, start    whose child
                  └─ mm ── exe_file ─ device, inode, ctime        which program, whatever it executes next
                               └───── names up to the root ► map  where that lies, once for each program (`path_steps`)

All is read in the caller's own context, so nothing of it can change meanwhile. Memory of the kernel is read through its
own types, as in `process_steps`: offsets that are not the running kernel's are refused by the verifier, and a null
pointer reads as zero. Registers and stack as in `steps`.
"""

from __future__ import annotations

from mitmsec_redirect import path_steps, process_steps, records
from mitmsec_redirect.assembler import Assembler, Register, Size
from mitmsec_redirect.path_records import PathMaps
from mitmsec_redirect.process_offsets import Offsets
from mitmsec_redirect.steps import ATTEMPT, R0, R2, R3, R10


def caller(asm: Assembler, at: Offsets, paths: PathMaps | None) -> None:
    """Into the attempt on the stack, which `steps.describe` has cleared. Keeps R6 to R8, without `paths` R9 too."""
    path_steps.current_task(asm, at)
    who(asm, at, paths, record=R10, place=ATTEMPT + records.STARTED)


def who(asm: Assembler, at: Offsets, paths: PathMaps | None, *, record: Register, place: int) -> None:
    """The same of the current task in R0, `place` bytes from `record`, where what an attempt says of it is to stand."""
    place -= records.STARTED  # of an attempt's start, as the fields are counted
    asm.load(R2, R0, at.task_leader, Size.LONG)
    asm.load(R3, R2, at.task_start, Size.LONG)
    asm.store(record, place + records.STARTED, R3, Size.LONG)
    asm.load(R2, R2, at.task_parent, Size.LONG)
    asm.load(R3, R2, at.task_tgid)
    asm.store(record, place + records.PARENT, R3)
    asm.load(R2, R2, at.task_leader, Size.LONG)
    asm.load(R3, R2, at.task_start, Size.LONG)
    asm.store(record, place + records.PARENT_STARTED, R3, Size.LONG)
    process_steps.executable(asm, at, task=R0, record=record, place=place + records.EXECUTABLE)
    if paths is not None:
        path_steps.note(asm, at, paths, base=record, key=place + records.EXECUTABLE)
