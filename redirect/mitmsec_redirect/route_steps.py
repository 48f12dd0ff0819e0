"""The steps that ask the mirror of the routes (mitmsec_redirect.routes): registers and stack as in `steps`."""

from __future__ import annotations

from mitmsec_redirect import records
from mitmsec_redirect.assembler import Assembler, Condition, Helper, Size
from mitmsec_redirect.records import NamespaceFlag, RouteFlag
from mitmsec_redirect.steps import (
    ATTEMPT,
    FLAGS,
    MAPPED_WORD,
    MARK,
    R0,
    R1,
    R2,
    R3,
    R4,
    R7,
    R9,
    R10,
    REMOTE,
    ROUTE_KEY,
    SOURCE,
    Layout,
    look_up,
)  # fmt: skip


def route(asm: Assembler, layout: Layout) -> None:
    """Take the source from the mirror of the routes, or fail as the kernel would."""
    asm.store(R10, ROUTE_KEY, records.ROUTE_KEY_FIXED_BITS + 128)
    for offset, field in ((4, records.NAMESPACE), (12, records.REMOTE), (20, records.REMOTE + 8)):
        asm.load(R2, R10, ATTEMPT + field)
        asm.store(R10, ROUTE_KEY + offset, R2)
        asm.load(R2, R10, ATTEMPT + field + 4)
        asm.store(R10, ROUTE_KEY + offset + 4, R2)
    look_up(asm, layout.routes, ROUTE_KEY)
    asm.jump_if(R0, Condition.EQUAL, 0, "routed")
    asm.load(R2, R10, FLAGS, Size.HALF)
    asm.load(R1, R0, records.ROUTE_ERRNO)
    asm.jump_if(R1, Condition.NOT_EQUAL, 0, "unroutable")
    asm.jump_if(R2, Condition.NOT_EQUAL, 0, "routed")  # the program chose its source itself
    asm.load(R2, R0, records.ROUTE_FLAGS)
    asm.jump_if(R2, Condition.NOT_EQUAL, RouteFlag.SOURCE_IS_REMOTE, "source")
    asm.point(R0, REMOTE)
    asm.label("source")
    for index in range(0, 16, 4):
        asm.load(R2, R0, index)
        asm.store(R10, SOURCE + index, R2)
    asm.jump("routed")
    asm.label("unroutable")
    believe_mirror(asm)
    asm.move(R2, 0)
    asm.subtract(R2, R1)
    asm.move(R1, R2)
    asm.call(Helper.SET_RETVAL)
    asm.exit(0)
    asm.label("routed")


def believe_mirror(asm: Assembler) -> None:
    """Go on to "routed" unless the mirror is exact for this socket. R2: the attempt's flags; keeps R1."""
    asm.jump_if(R2, Condition.EQUAL, 0, "any_source")
    asm.move(R3, R9)
    asm.mask(R3, NamespaceFlag.SOURCE_MATTERS)
    asm.jump_if(R3, Condition.NOT_EQUAL, 0, "routed")
    asm.label("any_source")
    asm.load(R3, R7, MARK)  # rules may look at it, and the mirror was asked without one
    asm.jump_if(R3, Condition.NOT_EQUAL, 0, "routed")
    asm.move(R4, NamespaceFlag.EXACT_V4)
    asm.load(R3, R10, REMOTE, Size.LONG)
    asm.jump_if(R3, Condition.NOT_EQUAL, 0, "exact_v6")
    asm.load(R3, R10, REMOTE + 8)
    asm.jump_if_word(R3, Condition.EQUAL, MAPPED_WORD, "exact")
    asm.label("exact_v6")
    asm.move(R4, NamespaceFlag.EXACT_V6)
    asm.label("exact")
    asm.intersect(R4, R9)
    asm.jump_if(R4, Condition.EQUAL, 0, "routed")
