"""What the kernel knows about a process when it connects: one number, its entry in the map `selected`.

     63 ──────────────── stamp ──────────────── 12 │ 11 ── verdict ── 0        no entry: not selected, and settled

The stamp is CLOCK_MONOTONIC at the exec() that began the program, without its lowest 12 bits (4 µs). So an entry names
one program in one process: a decision is an exchange of the whole number for another, which does nothing if the process
has executed something else, or ended, in the meantime. A fork without exec() copies the entry, stamp and all.

`at_fork` and `at_exec` say what the programs in the kernel do (`process_programs`), and are what they are tested by.
"""

from __future__ import annotations

import struct
from enum import NAMED_FLAGS, IntFlag, verify

PID, ENTRY = struct.Struct("=I"), struct.Struct("=Q")  # key and value of the map
VERDICT_BITS = 12
VERDICT_MASK = (1 << VERDICT_BITS) - 1
STAMP_MASK = (1 << 64) - 1 & ~VERDICT_MASK


@verify(NAMED_FLAGS)
class Verdict(IntFlag):
    """What is known of a program, or of a process that runs it.

    A connection is diverted if SELECTED is set and OWN_TRAFFIC is not. UNDECIDED beside SELECTED leaves only open what
    the process inherits or passes on.
    """

    SELECTED = 1  # the policy selects it
    UNDECIDED = 2  # user space has not said yet; whoever meets it must ask, or follow on_failure
    INHERITS = 4  # what it starts is selected too, whatever program that is (`children = true`)
    INHERITED = 8  # it is selected for what its parent was, not only for itself
    OWN_TRAFFIC = 16  # of mitmsec itself: never diverted, whatever else is set


PASSED_ON = Verdict.SELECTED | Verdict.INHERITS | Verdict.OWN_TRAFFIC  # by an entry with INHERITS, through exec()


def entry(stamp_ns: int, verdict: Verdict) -> int:
    """The number for a program that began at `stamp_ns`, any time of CLOCK_MONOTONIC."""
    return stamp_ns & STAMP_MASK | verdict


def verdict_of(number: int) -> Verdict:
    """The lower part; 0, as for a process without an entry, is the empty verdict."""
    return Verdict(number & VERDICT_MASK)


def at_fork(parent: int) -> int:
    """The child's entry: the same program, so the same verdict. 0: none."""
    return parent if verdict_of(parent) else 0


def at_exec(previous: int, known: Verdict | None, stamp_ns: int) -> int:
    """The entry before the new program's first instruction; `known` is what `executables` says of its file.

    Whoever inherits needs no decision. If what was there before was undecided, so is whether this inherits.
    """
    new = Verdict.UNDECIDED if known is None else known
    if previous & Verdict.INHERITS:
        new = new & ~Verdict.UNDECIDED | verdict_of(previous) & PASSED_ON | Verdict.INHERITED
    else:
        new |= verdict_of(previous) & Verdict.UNDECIDED
    return entry(stamp_ns, new) if new else 0
