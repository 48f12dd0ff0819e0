"""Instructions that find what a listener serves: its address and port, in the map that counts who listens there."""

from __future__ import annotations

from mitmsec_redirect import steering_records as shared
from mitmsec_redirect import steps
from mitmsec_redirect.assembler import Assembler, Condition, Size
from mitmsec_redirect.steering_records import SteeringMaps
from mitmsec_redirect.steps import AF_INET, MAPPED_WORD, R2, R6, R10

FAMILY, LOCAL_V4, LOCAL_V6, LOCAL_PORT = 20, 28, 48, 68  # of struct bpf_sock_ops


def count(asm: Assembler, maps: SteeringMaps, key: int, label: str) -> None:
    """R0: how many listen where the socket of the context R6 does; 0, no pointer: none yet.

    `key` is where on the stack the map's key is left; `label` has to be this call's own.
    """
    local = key + shared.SERVED_LOCAL
    asm.load(R2, R6, LOCAL_PORT)
    asm.store(R10, key + shared.SERVED_PORT, R2)
    asm.load(R2, R6, FAMILY)
    asm.jump_if(R2, Condition.EQUAL, AF_INET, f"{label}_four")
    for index in range(0, 16, 4):
        asm.load(R2, R6, LOCAL_V6 + index)
        asm.store(R10, local + index, R2)
    asm.jump_if(R2, Condition.NOT_EQUAL, 0, label)
    asm.load(R2, R10, local, Size.LONG)
    asm.jump_if(R2, Condition.NOT_EQUAL, 0, label)
    asm.load(R2, R10, local + 8)
    asm.jump_if_word(R2, Condition.NOT_EQUAL, MAPPED_WORD, label)
    asm.store(R10, local + 8, 0)  # ::ffff:0.0.0.0 is all addresses too
    asm.jump(label)
    asm.label(f"{label}_four")
    for half in (0, 8):
        asm.store(R10, local + half, 0, Size.LONG)
    asm.load(R2, R6, LOCAL_V4)
    asm.jump_if(R2, Condition.EQUAL, 0, label)  # all addresses are one, of both families
    asm.store(R10, local + 8, MAPPED_WORD)
    asm.store(R10, local + 12, R2)
    asm.label(label)
    steps.look_up(asm, maps.served, key)
