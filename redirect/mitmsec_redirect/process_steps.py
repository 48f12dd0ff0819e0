"""The steps that the process programs are made of; in which order, and what for, stands in `process_programs`.

Registers: R6 the task, R7 what a record is written to, R8 and R9 as each step says; R0–R5 are lost at each call.

    stack, from the frame pointer:   0 ── HEAD ── -112 ── KEY ── -120 ── VALUE ── -128 ── NAME ── -136

Memory of the kernel is read through the types that the kernel itself declares (BTF): the verifier refuses a program
whose offsets are not those of the running kernel, and a null pointer reads as zero. Only the path is read otherwise
(`path_steps`).
"""

from __future__ import annotations

from mitmsec.core.model import Value
from mitmsec_redirect import path_steps
from mitmsec_redirect import process_records as records
from mitmsec_redirect.assembler import Assembler, Condition, Helper, Register, Size
from mitmsec_redirect.process_offsets import Offsets
from mitmsec_redirect.process_records import Count, RecordFlag, RecordKind
from mitmsec_redirect.verdicts import PASSED_ON, STAMP_MASK, VERDICT_MASK, Verdict

R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10 = Register
LONG = Size.LONG
HEAD = -records.HEAD.size
KEY = HEAD - 8
VALUE = KEY - 8
NAME = VALUE - 8
STEPS_LIMIT = 64  # names and mounts of one path
CTIME_BITS = 0x7FFFFFFF  # the topmost says whether anybody has asked (Linux 6.13)


class Maps(Value, frozen=True):
    """Descriptors of the maps that the programs use."""

    selected: int  # hash: pid → entry
    executables: int  # hash: Executable → verdict
    ring: int
    counts: int  # array by Count
    scratch: int  # one element for each processor


# --- what is so -------------------------------------------------------------------------------------------------------
def clear(asm: Assembler) -> None:
    for offset in range(HEAD, 0, 8):
        asm.store(R10, offset, 0, LONG)


def describe(asm: Assembler, at: Offsets, kind: RecordKind) -> None:
    """The head, without entry and executable. Keeps R8, R9."""
    asm.store(R7, 0, kind)
    asm.store(R7, records.FLAGS, 0)
    asm.load(R2, R6, at.task_tgid)
    asm.store(R7, records.PID, R2)
    asm.store(R10, KEY, R2)
    asm.load(R2, R6, at.task_parent, LONG)
    asm.load(R3, R2, at.task_tgid)
    asm.store(R7, records.PARENT, R3)
    asm.load(R2, R2, at.task_leader, LONG)
    asm.load(R2, R2, at.task_start, LONG)
    asm.store(R7, records.PARENT_STARTED, R2, LONG)
    asm.load(R2, R6, at.task_leader, LONG)
    asm.load(R2, R2, at.task_start, LONG)
    asm.store(R7, records.STARTED, R2, LONG)
    asm.load(R2, R6, at.task_cred, LONG)
    asm.load(R2, R2, at.cred_uid)
    asm.store(R7, records.UID, R2)
    asm.load(R2, R6, at.task_css_set, LONG)
    asm.load(R2, R2, at.css_set_cgroup, LONG)
    asm.load(R2, R2, at.cgroup_node, LONG)
    asm.load(R2, R2, at.node_id, LONG)
    asm.store(R7, records.CGROUP, R2, LONG)
    for half in (0, 8):
        asm.load(R2, R6, at.task_comm + half, LONG)
        asm.store(R7, records.COMM + half, R2, LONG)
    asm.call(Helper.KTIME_NS)
    asm.store(R7, records.TIME, R0, LONG)


def executable(
    asm: Assembler, at: Offsets, *, task: Register = R6, record: Register = R7, place: int = records.EXECUTABLE_AT
) -> None:
    """Write the key of the file that the task runs to `place`, zeros where there is none. Loses R2, R3, R4."""
    for offset in range(0, records.EXECUTABLE.size, 8):
        asm.store(record, place + offset, 0, LONG)
    asm.load(R3, task, at.task_mm, LONG)
    asm.jump_if(R3, Condition.EQUAL, 0, "no_file")
    asm.load(R3, R3, at.mm_file, LONG)
    asm.jump_if(R3, Condition.EQUAL, 0, "no_file")
    asm.load(R2, R3, at.file_inode, LONG)
    place -= records.EXECUTABLE_AT  # of a record's start, as the fields are counted
    for field, offset in ((records.INODE, at.inode_number), (records.CTIME_S, at.inode_ctime_s)):
        asm.load(R4, R2, offset, LONG)
        asm.store(record, place + field, R4, LONG)
    asm.load(R4, R2, at.inode_ctime_ns)
    asm.mask(R4, CTIME_BITS)
    asm.store(record, place + records.CTIME_NS, R4)
    asm.load(R2, R2, at.inode_super, LONG)
    asm.load(R4, R2, at.super_device)
    asm.store(record, place + records.DEVICE, R4, LONG)
    asm.label("no_file")


# --- what becomes of the entry ----------------------------------------------------------------------------------------
def find(asm: Assembler, maps: Maps, pid: Register) -> None:
    """R0: the entry of `pid`, 0 if there is none. KEY stays the record's own pid."""
    asm.store(R10, VALUE, pid)
    asm.map(R1, maps.selected)
    asm.point(R2, VALUE)
    asm.call(Helper.MAP_LOOKUP)
    asm.jump_if(R0, Condition.EQUAL, 0, "not_found")
    asm.load(R0, R0, 0, LONG)
    asm.label("not_found")


def judge(asm: Assembler, maps: Maps) -> None:
    """verdicts.at_exec. R8 the new verdict, R9 what was there before."""
    asm.load(R2, R10, KEY)
    find(asm, maps, R2)
    asm.move(R9, R0)
    asm.map(R1, maps.executables)
    asm.move(R2, R7)
    asm.add(R2, records.EXECUTABLE_AT)
    asm.call(Helper.MAP_LOOKUP)
    asm.move(R8, Verdict.UNDECIDED)
    asm.jump_if(R0, Condition.EQUAL, 0, "unknown")
    asm.load(R8, R0, 0)
    asm.label("unknown")
    asm.move(R1, R9)
    asm.mask(R1, Verdict.INHERITS)
    asm.jump_if(R1, Condition.NOT_EQUAL, 0, "inherits")
    asm.mask(R9, Verdict.UNDECIDED)
    asm.merge(R8, R9)
    asm.jump("judged")
    asm.label("inherits")
    asm.mask(R8, VERDICT_MASK & ~Verdict.UNDECIDED)
    asm.mask(R9, PASSED_ON)
    asm.merge(R8, R9)
    asm.move(R1, Verdict.INHERITED)
    asm.merge(R8, R1)
    asm.label("judged")
    asm.load(R2, R7, records.TIME, LONG)
    asm.move(R1, STAMP_MASK - (1 << 64))
    asm.intersect(R2, R1)
    asm.merge(R2, R8)
    asm.store(R7, records.ENTRY, R2, LONG)
    write_entry(asm, maps, if_none=R8)


def write_entry(asm: Assembler, maps: Maps, *, if_none: Register) -> None:
    """Make the record's entry that of KEY, or delete it where the register `if_none` is 0."""
    asm.jump_if(if_none, Condition.EQUAL, 0, "no_entry")
    asm.load(R2, R7, records.ENTRY, LONG)
    asm.store(R10, VALUE, R2, LONG)
    asm.map(R1, maps.selected)
    asm.point(R2, KEY)
    asm.point(R3, VALUE)
    asm.move(R4, 0)
    asm.call(Helper.MAP_UPDATE)
    asm.jump_if(R0, Condition.EQUAL, 0, "entry_done")
    asm.store(R7, records.FLAGS, RecordFlag.NO_ROOM)
    count(asm, maps, Count.NO_ROOM)
    asm.jump("entry_done")
    asm.label("no_entry")
    asm.store(R7, records.ENTRY, 0, LONG)
    asm.map(R1, maps.selected)
    asm.point(R2, KEY)
    asm.call(Helper.MAP_DELETE)
    asm.label("entry_done")


# --- the path ---------------------------------------------------------------------------------------------------------
def walk_path(asm: Assembler, at: Offsets) -> None:
    """The names of the executable's path, leaf first, and the mount namespace in which that is meant."""
    for offset in (records.MOUNT_NAMESPACE, records.NAME_BYTES):
        asm.store(R7, offset, 0, LONG)
    path_steps.begin(asm, at, R6)
    path_steps.read_at(asm, path_steps.OTHER, path_steps.MOUNT, at.mount_namespace)
    asm.load(R3, R10, path_steps.OTHER, LONG)
    asm.add(R3, at.namespace_number)
    asm.move(R1, R7)
    asm.add(R1, records.MOUNT_NAMESPACE)
    asm.move(R2, 4)
    asm.call(Helper.PROBE_READ_KERNEL)
    path_steps.walk(asm, at, into=R7, text=records.TEXT, limit=records.PATH_LIMIT, steps_limit=STEPS_LIMIT)
    asm.store(R7, records.PATH_BYTES, R2)
    asm.load(R2, R7, records.FLAGS)
    asm.merge(R2, R1)
    asm.store(R7, records.FLAGS, R2)


def copy_name(asm: Assembler) -> None:
    """What execve() was given, behind the path."""
    asm.load(R9, R7, records.PATH_BYTES)
    asm.jump_if(R9, Condition.ABOVE, records.PATH_LIMIT, "named")  # never, but the verifier cannot know
    asm.move(R1, R7)
    asm.add(R1, records.TEXT)
    asm.add(R1, R9)
    path_steps.read_text(asm, NAME)
    asm.jump_if(R0, Condition.ABOVE, records.NAME_LIMIT, "named")
    asm.store(R7, records.NAME_BYTES, R0)
    asm.label("named")


# --- out --------------------------------------------------------------------------------------------------------------
def output(asm: Assembler, maps: Maps, lost: Count, text: int | None) -> None:
    """Copy the record to the ring: its head, or with `text` all of it."""
    if text is None:
        asm.move(R3, records.HEAD.size)
    else:
        asm.load(R3, R7, records.PATH_BYTES)
        asm.jump_if(R3, Condition.ABOVE, records.PATH_LIMIT, "out")
        asm.load(R2, R7, records.NAME_BYTES)
        asm.jump_if(R2, Condition.ABOVE, records.NAME_LIMIT, "out")
        asm.add(R3, R2)
        asm.add(R3, text)
    asm.map(R1, maps.ring)
    asm.move(R2, R7)
    asm.move(R4, 0)
    asm.call(Helper.RINGBUF_OUTPUT)
    asm.jump_if(R0, Condition.EQUAL, 0, "out")
    count(asm, maps, lost)


def count(asm: Assembler, maps: Maps, what: Count) -> None:
    asm.store(R10, VALUE, what)
    asm.map(R1, maps.counts)
    asm.point(R2, VALUE)
    asm.call(Helper.MAP_LOOKUP)
    asm.jump_if(R0, Condition.EQUAL, 0, f"counted_{what.name}")
    asm.move(R1, 1)
    asm.add_atomically(R0, R1)
    asm.label(f"counted_{what.name}")
