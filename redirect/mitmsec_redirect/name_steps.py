"""The steps of getpeername() and getsockname(): registers as in `steps`, R0 what the socket remembers."""

from __future__ import annotations

from mitmsec_redirect.assembler import Assembler, Condition, Helper, Size
from mitmsec_redirect.steps import ADDRESS_V4, ADDRESS_V6, R0, R1, R2, R3, R4, R6, SOCKET, Layout


def find_truth(asm: Assembler, layout: Layout) -> None:
    """R0: what the socket remembers; on to "done" if it was not diverted."""
    asm.move(R6, R1)
    asm.load(R2, R6, SOCKET, Size.LONG)
    asm.map(R1, layout.truth)
    asm.move(R3, 0)
    asm.move(R4, 0)
    asm.call(Helper.SK_STORAGE_GET)
    asm.jump_if(R0, Condition.EQUAL, 0, "done")


def answer(asm: Assembler, field: int, *, v6: bool) -> None:
    """IPv4 is the last word of the 16 bytes; a v4-mapped answer on an IPv6 socket is all four."""
    words = ((ADDRESS_V6 + index, field + index) for index in range(0, 16, 4)) if v6 else ((ADDRESS_V4, field + 12),)
    for target, source in words:
        asm.load(R2, R0, source)
        asm.store(R6, target, R2)
