"""The steps that follow an executable from its own name up to the root, and those that note where it leads.

    file ── dentry ─ name, parent ─ name, parent ─ … ─ a mount's root? ── mount ─ mountpoint, parent ─ … ─ topmost mount
                      (names, leaf first)                                  (in the mount namespace of the caller)

Mounts and names lie behind arithmetic, so they are read with bpf_probe_read_kernel: what is not there reads as zero,
and a path that comes of that is no path of the file. A rename during the walk can mix an old and a new name, but only
of folders that whoever renames them may write to. Nobody takes a path from here on trust (`callers`).

R0 to R5 are lost. Used of the stack are the slots below, which lie beneath all that our programs keep there.
"""

from __future__ import annotations

from typing import Final

from mitmsec_redirect import path_records, process_records
from mitmsec_redirect.assembler import Assembler, Condition, Helper, Register, Size
from mitmsec_redirect.path_records import PathMaps, PathState
from mitmsec_redirect.process_offsets import Offsets
from mitmsec_redirect.process_records import NAME_LIMIT, RecordFlag

R0, R1, R2, R3, R4, R9, R10 = (Register(number) for number in (0, 1, 2, 3, 4, 9, 10))
LONG = Size.LONG
STEPS_LIMIT = 24  # names and mounts of one path; the verifier follows each, which takes its time when a run starts
STACK: Final = -240
DENTRY, MOUNT, ROOT, OTHER, NAME, STEP, LENGTH = (STACK - 8 * number for number in range(1, 8))
NEW_ONLY = 1  # BPF_NOEXIST


def note(asm: Assembler, at: Offsets, maps: PathMaps, *, base: Register, key: int) -> None:
    """If the executable that stands `key` bytes from `base` is new, note where it lies. Loses R9.

    Once for each executable, so its cost is that of one look-up in most connections. Programs can be interrupted, and
    two tasks fill the same element: they write the same names to the same places, each keeps for itself how far it has
    come, and `state` comes last. If they had come by different ways (bind mounts), or the element had to make room for
    another meanwhile, the names are those of no file, and it is filled anew once somebody has found that out.
    """
    asm.load(R2, base, key + process_records.INODE - process_records.DEVICE, LONG)
    asm.jump_if(R2, Condition.EQUAL, 0, "path_noted")  # a thread of the kernel
    _look_up(asm, maps, base, key)
    asm.jump_if(R0, Condition.NOT_EQUAL, 0, "path_met")
    _make(asm, maps, base, key)
    _look_up(asm, maps, base, key)
    asm.jump_if(R0, Condition.EQUAL, 0, "path_noted")
    asm.label("path_met")
    asm.move(R9, R0)
    asm.load(R2, R9, path_records.STATE)
    asm.jump_if(R2, Condition.NOT_EQUAL, 0, "path_noted")
    current_task(asm, at)
    begin(asm, at, R0)
    walk(asm, at, into=R9, text=path_records.TEXT, limit=path_records.TEXT_LIMIT, steps_limit=STEPS_LIMIT)
    asm.store(R9, path_records.BYTES, R2)
    asm.mask(R1, PathState.ROOTED)
    asm.move(R2, PathState.DONE)
    asm.merge(R1, R2)
    asm.store(R9, path_records.STATE, R1)
    asm.label("path_noted")


def current_task(asm: Assembler, at: Offsets) -> None:
    """The current task in R0, to be read by its type.

    Whatever a task's pointers lead to may be known to live, so the verifier looks for that at each of them, by name in
    all of the kernel's types: half of the time that a run's programs take to load. We need no such word: what is read
    by way of a cast pointer reads as zero where it is not there.
    """
    asm.call(Helper.CURRENT_TASK)
    if at.cast:
        asm.move(R1, R0)
        asm.move(R2, at.task_type)
        asm.call_kernel(at.cast)


def _look_up(asm: Assembler, maps: PathMaps, base: Register, key: int) -> None:
    asm.map(R1, maps.paths)
    asm.move(R2, base)
    asm.add(R2, key)
    asm.call(Helper.MAP_LOOKUP)


def _make(asm: Assembler, maps: PathMaps, base: Register, key: int) -> None:
    """A blank element, unless somebody else was quicker. Whether there is room is seen when it is looked up."""
    asm.store(R10, OTHER, 0, LONG)
    asm.map(R1, maps.blank)
    asm.point(R2, OTHER)
    asm.call(Helper.MAP_LOOKUP)
    asm.jump_if(R0, Condition.EQUAL, 0, "path_noted")  # never: an array has all its elements
    asm.move(R3, R0)
    asm.map(R1, maps.paths)
    asm.move(R2, base)
    asm.add(R2, key)
    asm.move(R4, NEW_ONLY)
    asm.call(Helper.MAP_UPDATE)


def begin(asm: Assembler, at: Offsets, task: Register) -> None:
    """The file that `task` runs, and the mount that it lies on; straight to the end of `walk` where there is none."""
    asm.move(R1, 0)
    asm.store(R10, LENGTH, R1, LONG)
    asm.store(R10, STEP, R1, LONG)
    asm.load(R3, task, at.task_mm, LONG)
    asm.jump_if(R3, Condition.EQUAL, 0, "walked")
    asm.load(R3, R3, at.mm_file, LONG)
    asm.jump_if(R3, Condition.EQUAL, 0, "walked")
    asm.store(R10, NAME, R3, LONG)
    read_at(asm, OTHER, NAME, at.file_dentry)
    asm.load(R2, R10, OTHER, LONG)
    asm.store(R10, DENTRY, R2, LONG)
    read_at(asm, OTHER, NAME, at.file_mount)
    asm.load(R2, R10, OTHER, LONG)
    asm.add(R2, -at.mount_inner)
    _enter(asm, at)


def _enter(asm: Assembler, at: Offsets) -> None:
    """The mount in R2 is the one that the next names lie on."""
    asm.store(R10, MOUNT, R2, LONG)
    read_at(asm, OTHER, MOUNT, at.mount_root)
    asm.load(R2, R10, OTHER, LONG)
    asm.store(R10, ROOT, R2, LONG)


def walk(asm: Assembler, at: Offsets, *, into: Register, text: int, limit: int, steps_limit: int) -> None:
    """The names of the path to `into` + `text`, where `limit` bytes are; `into` is one of R6 to R9.

    R1: RecordFlag.ROOTED, CUT, or 0 where the path ends below no root (memfd); R2 their bytes.
    """
    asm.label("walk")
    asm.load(R2, R10, STEP, LONG)
    asm.jump_if(R2, Condition.EQUAL, steps_limit, "path_cut")
    asm.add(R2, 1)
    asm.store(R10, STEP, R2, LONG)
    asm.load(R2, R10, ROOT, LONG)
    asm.load(R3, R10, DENTRY, LONG)
    asm.jump_if(R2, Condition.EQUAL, R3, "mount_root")
    _component(asm, at, into, text, limit)
    asm.jump("walk")
    asm.label("mount_root")
    read_at(asm, OTHER, MOUNT, at.mount_parent)
    asm.load(R2, R10, OTHER, LONG)
    asm.load(R3, R10, MOUNT, LONG)
    asm.jump_if(R2, Condition.EQUAL, R3, "path_rooted")
    read_at(asm, NAME, MOUNT, at.mount_point)
    asm.load(R2, R10, NAME, LONG)
    asm.store(R10, DENTRY, R2, LONG)
    asm.load(R2, R10, OTHER, LONG)
    _enter(asm, at)
    asm.jump("walk")
    asm.label("path_cut")
    asm.move(R1, RecordFlag.CUT)
    asm.jump("walked")
    asm.label("path_rooted")
    asm.move(R1, RecordFlag.ROOTED)
    asm.jump("walked")
    asm.label("nowhere")
    asm.move(R1, 0)
    asm.label("walked")
    asm.load(R2, R10, LENGTH, LONG)


def _component(asm: Assembler, at: Offsets, into: Register, text: int, limit: int) -> None:
    """One name more, and up; "nowhere" where nothing is above (memfd), "path_cut" where there is no room.

    The verifier follows this first, and so knows all that can become of the length when it comes to "mount_root".
    """
    read_at(asm, OTHER, DENTRY, at.dentry_parent)
    asm.load(R2, R10, OTHER, LONG)
    asm.load(R3, R10, DENTRY, LONG)
    asm.jump_if(R2, Condition.EQUAL, R3, "nowhere")
    read_at(asm, NAME, DENTRY, at.dentry_name)
    asm.load(R2, R10, LENGTH, LONG)
    asm.jump_if(R2, Condition.ABOVE, limit - NAME_LIMIT, "path_cut")
    asm.move(R1, into)
    asm.add(R1, text)
    asm.add(R1, R2)
    read_text(asm, NAME)
    asm.jump_if(R0, Condition.ABOVE, NAME_LIMIT, "path_cut")  # below zero: could not be read
    asm.load(R2, R10, LENGTH, LONG)
    asm.add(R2, R0)
    asm.store(R10, LENGTH, R2, LONG)
    asm.load(R2, R10, OTHER, LONG)
    asm.store(R10, DENTRY, R2, LONG)


def read_at(asm: Assembler, into: int, base: int, offset: int) -> None:
    """Eight bytes of the kernel's memory to our stack, from an address that stands there."""
    asm.load(R3, R10, base, LONG)
    asm.add(R3, offset)
    asm.point(R1, into)
    asm.move(R2, 8)
    asm.call(Helper.PROBE_READ_KERNEL)


def read_text(asm: Assembler, at: int) -> None:
    """A string, whose address stands on our stack, to where R1 points; R0 its length with the zero."""
    asm.move(R2, NAME_LIMIT)
    asm.load(R3, R10, at, LONG)
    asm.call(Helper.PROBE_READ_KERNEL_STR)
