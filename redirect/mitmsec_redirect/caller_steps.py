"""The steps that describe who calls connect() beyond its pid: the process by its start, the program by its file.

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
from mitmsec_redirect.assembler import Assembler, Helper, Size
from mitmsec_redirect.path_records import PathMaps
from mitmsec_redirect.process_offsets import Offsets
from mitmsec_redirect.steps import ATTEMPT, R0, R2, R3, R10


def caller(asm: Assembler, at: Offsets, paths: PathMaps | None) -> None:
    """Into the attempt on the stack, which `steps.describe` has cleared. Keeps R6 to R8, without `paths` R9 too."""
    asm.call(Helper.CURRENT_TASK)
    asm.load(R2, R0, at.task_leader, Size.LONG)
    asm.load(R3, R2, at.task_start, Size.LONG)
    asm.store(R10, ATTEMPT + records.STARTED, R3, Size.LONG)
    asm.load(R2, R2, at.task_parent, Size.LONG)
    asm.load(R3, R2, at.task_tgid)
    asm.store(R10, ATTEMPT + records.PARENT, R3)
    asm.load(R2, R2, at.task_leader, Size.LONG)
    asm.load(R3, R2, at.task_start, Size.LONG)
    asm.store(R10, ATTEMPT + records.PARENT_STARTED, R3, Size.LONG)
    process_steps.executable(asm, at, task=R0, record=R10, place=ATTEMPT + records.EXECUTABLE)
    if paths is not None:
        path_steps.note(asm, at, paths, base=R10, key=ATTEMPT + records.EXECUTABLE)
