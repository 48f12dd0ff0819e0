"""The programs that run in the kernel when a process starts, executes and ends, built as instructions.

    sched_process_fork ──► the child gets its parent's entry in `selected`, or none ───────────────┐
    sched_process_exec ──► the file's verdict, what is inherited ► entry; then the path's names ───┼─► record ► ring
    sched_process_exit ──► the entry goes ─────────────────────────────────────────────────────────┘

What an entry is, and what becomes of it, stands in `verdicts`; the bytes of a record in `process_records`.

*Processes, not threads.* A fork counts if the child leads a thread group. An exit counts when the group's last thread
is in it (signal->live is 0 by then), not when the leader is: a leader may end before the others, which go on under its
pid, and a thread that calls execve() takes the leader's place. Two threads that end at the same moment may both see 0,
so an end may be told twice; the pid is free only after both.

*A pid that is used again.* Each fork writes or deletes the child's entry before the child first runs, so whatever an
earlier process of that pid may have left is gone. The instructions of each step stand in `process_steps`.
"""

from __future__ import annotations

from mitmsec_redirect import process_records as records
from mitmsec_redirect import process_steps as steps
from mitmsec_redirect.assembler import Assembler, Condition, Helper
from mitmsec_redirect.process_offsets import Offsets
from mitmsec_redirect.process_records import Count, RecordKind
from mitmsec_redirect.process_steps import LONG, R0, R1, R2, R3, R6, R7, R8, R9, R10, Maps
from mitmsec_redirect.verdicts import VERDICT_MASK

__all__ = ["EXIT_CHANGED", "EXIT_NO_ENTRY", "Maps", "ended", "exchange", "executed", "started"]

EXIT_NO_ENTRY, EXIT_CHANGED = 1, 2  # answers of `exchange`; 0: done


def started(maps: Maps, at: Offsets) -> bytes:
    """sched_process_fork(parent, child): in the parent's context, before the child first runs."""
    asm = Assembler()
    asm.load(R9, R1, 0, LONG)
    asm.load(R6, R1, 8, LONG)
    steps.clear(asm)
    asm.point(R7, steps.HEAD)
    asm.load(R2, R6, at.task_tgid)
    asm.load(R3, R6, at.task_pid)
    asm.jump_if(R2, Condition.NOT_EQUAL, R3, "out")
    steps.describe(asm, at, RecordKind.STARTED)
    asm.load(R8, R9, at.task_tgid)
    asm.store(R7, records.OTHER, R8)
    steps.executable(asm, at)
    steps.find(asm, maps, R8)
    asm.store(R7, records.ENTRY, R0, LONG)
    asm.mask(R0, VERDICT_MASK)
    steps.write_entry(asm, maps, if_none=R0)
    steps.output(asm, maps, Count.LOST_STARTED, None)
    return _end(asm)


def executed(maps: Maps, at: Offsets) -> bytes:
    """sched_process_exec(task, old pid, binary): in its context, before the new program's first instruction."""
    asm = Assembler()
    asm.load(R6, R1, 0, LONG)
    asm.load(R8, R1, 8, LONG)
    asm.load(R9, R1, 16, LONG)
    asm.load(R9, R9, at.program_name, LONG)
    asm.store(R10, steps.KEY, 0)
    asm.map(R1, maps.scratch)
    asm.point(R2, steps.KEY)
    asm.call(Helper.MAP_LOOKUP)
    asm.jump_if(R0, Condition.EQUAL, 0, "out")  # never: an array has all its elements
    asm.move(R7, R0)
    steps.describe(asm, at, RecordKind.EXECUTED)
    asm.store(R7, records.OTHER, R8)
    asm.store(R10, steps.NAME, R9, LONG)
    steps.executable(asm, at)
    steps.judge(asm, maps)
    steps.walk_path(asm, at)
    steps.copy_name(asm)
    steps.output(asm, maps, Count.LOST_EXECUTED, records.TEXT)
    return _end(asm)


def ended(maps: Maps, at: Offsets) -> bytes:
    """sched_process_exit(task): in its context."""
    asm = Assembler()
    asm.load(R6, R1, 0, LONG)
    steps.clear(asm)
    asm.point(R7, steps.HEAD)
    asm.load(R2, R6, at.task_signal, LONG)
    asm.load(R2, R2, at.signal_live)
    asm.jump_if(R2, Condition.NOT_EQUAL, 0, "out")
    steps.describe(asm, at, RecordKind.ENDED)
    asm.move(R0, 0)
    steps.write_entry(asm, maps, if_none=R0)
    steps.output(asm, maps, Count.LOST_ENDED, None)
    return _end(asm)


def exchange(maps: Maps) -> bytes:
    """(pid, old entry, new entry), run on demand: the entry becomes the new one if it is the old one, at once."""
    asm = Assembler()
    asm.load(R2, R1, 0, LONG)
    asm.load(R7, R1, 8, LONG)
    asm.load(R8, R1, 16, LONG)
    asm.store(R10, steps.KEY, R2)
    asm.map(R1, maps.selected)
    asm.point(R2, steps.KEY)
    asm.call(Helper.MAP_LOOKUP)
    asm.jump_if(R0, Condition.EQUAL, 0, "none")
    asm.move(R1, R0)
    asm.move(R0, R7)
    asm.exchange_if_r0(R1, R8)
    asm.jump_if(R0, Condition.NOT_EQUAL, R7, "changed")
    asm.exit(0)
    asm.label("none")
    asm.exit(EXIT_NO_ENTRY)
    asm.label("changed")
    asm.exit(EXIT_CHANGED)
    return asm.code()


def _end(asm: Assembler) -> bytes:
    asm.label("out")
    asm.exit(0)
    return asm.code()
