"""The program that leads connections to the gate as they come in, built as instructions (BPF_PROG_TYPE_SK_LOOKUP).

The kernel runs it when it looks for the listener of a first segment; what belongs to a connection never meets it.

     not TCP, or nobody of ours listens there ─► whoever it is meant for
     the gate's own leg ───────────────────────► whoever it is meant for
     gate's heartbeat older than STALL_NS ─────► on_failure
     the gate has no listener of this family ──► on_failure
      ▼
     the gate's listener, which sees both true addresses

on_failure: open lets it in to whoever it is meant for, closed refuses it (reset); either is counted. Registers: R6 the
context, R7 the gate's listener, R9 whether a port is served at all addresses; R0–R5 are lost at each call.
"""

from __future__ import annotations

from mitmsec.core.model import OnFailure, Value
from mitmsec_redirect import records, steps
from mitmsec_redirect import steering_records as shared
from mitmsec_redirect.assembler import Assembler, Condition, Helper, Size
from mitmsec_redirect.steering_records import Steered
from mitmsec_redirect.steps import AF_INET, MAPPED_WORD, R0, R1, R2, R3, R6, R7, R8, R9, R10, STALL_NS

# struct bpf_sk_lookup
FAMILY, PROTOCOL, REMOTE_V4, REMOTE_V6, REMOTE_PORT, LOCAL_V4, LOCAL_V6, LOCAL_PORT = 8, 12, 16, 20, 36, 40, 44, 60
PASS, DROP = 1, 0
FOUR, SIX = 0, 1  # indices of the gate's listeners

# our stack, from the frame pointer
LEG = -shared.LEG.size
INDEX, BEAT, SERVED = LEG - 8, LEG - 16, LEG - 40


class SteeringLayout(Value, frozen=True):
    """Descriptors of the maps that the program uses, and what is fixed for a session."""

    served: int  # what somebody of ours listens on
    legs: int
    gates: int  # the gate's listeners, by FOUR and SIX
    counts: int  # by Steered
    heartbeat: int
    on_failure: OnFailure


def build(layout: SteeringLayout) -> bytes:
    """The ladder at the head of this module."""
    asm = Assembler()
    asm.move(R6, R1)
    asm.load(R2, R6, PROTOCOL)
    asm.jump_if(R2, Condition.NOT_EQUAL, records.PROTOCOL_TCP, "pass")
    _addresses(asm)
    _served_everywhere(asm, layout)
    _served_here(asm, layout)
    steps.look_up(asm, layout.legs, LEG)
    asm.jump_if(R0, Condition.NOT_EQUAL, 0, "pass")
    _heartbeat(asm, layout)
    _lead(asm, layout)
    asm.label("failed")
    is_open = layout.on_failure is OnFailure.OPEN
    asm.store(R10, BEAT, Steered.LET_IN if is_open else Steered.REFUSED)
    steps.look_up(asm, layout.counts, BEAT)
    asm.jump_if(R0, Condition.EQUAL, 0, "counted")
    asm.move(R2, 1)
    asm.add_atomically(R0, R2)
    asm.label("counted")
    if not is_open:
        asm.exit(DROP)
    asm.label("pass")
    asm.exit(PASS)
    return asm.code()


def counting(served: int) -> bytes:
    """(address, as two numbers, port, how many more), run on demand: for who listened before us."""
    asm = Assembler()
    for index in (0, 8):
        asm.load(R2, R1, index, Size.LONG)
        asm.store(R10, SERVED + shared.SERVED_LOCAL + index, R2, Size.LONG)
    asm.load(R2, R1, 16, Size.LONG)
    asm.store(R10, SERVED + shared.SERVED_PORT, R2)
    asm.load(R7, R1, 24, Size.LONG)
    steps.look_up(asm, served, SERVED)
    asm.jump_if(R0, Condition.EQUAL, 0, "none")
    asm.add_atomically(R0, R7)
    asm.label("none")
    asm.exit(0)
    return asm.code()


def _served_everywhere(asm: Assembler, layout: SteeringLayout) -> None:
    """R9: whether somebody of ours listens on the port at all addresses of this family."""
    asm.load(R2, R6, LOCAL_PORT)
    asm.store(R10, LEG + shared.LEG_LOCAL_PORT, R2)
    asm.store(R10, SERVED + shared.SERVED_PORT, R2)
    for half in (0, 8):
        asm.store(R10, SERVED + shared.SERVED_LOCAL + half, 0, Size.LONG)
    asm.load(R2, R6, FAMILY)
    asm.jump_if(R2, Condition.NOT_EQUAL, AF_INET, "all_addresses")
    asm.store(R10, SERVED + shared.SERVED_LOCAL + 8, MAPPED_WORD)
    asm.label("all_addresses")
    _look_up_served(asm, layout, "counted_everywhere")
    asm.move(R9, R0)


def _served_here(asm: Assembler, layout: SteeringLayout) -> None:
    """On to "pass" where nobody does, and nobody at this address either."""
    asm.jump_if(R9, Condition.NOT_EQUAL, 0, "served")
    for half in (0, 8):
        asm.load(R2, R10, LEG + shared.LEG_LOCAL + half, Size.LONG)
        asm.store(R10, SERVED + shared.SERVED_LOCAL + half, R2, Size.LONG)
    _look_up_served(asm, layout, "counted_here")
    asm.jump_if(R0, Condition.EQUAL, 0, "pass")
    asm.label("served")


def _look_up_served(asm: Assembler, layout: SteeringLayout, label: str) -> None:
    """R0: how many of ours listen there. `label` has to be this call's own."""
    steps.look_up(asm, layout.served, SERVED)
    asm.jump_if(R0, Condition.EQUAL, 0, label)
    asm.load(R0, R0, 0, Size.LONG)
    asm.label(label)


def _addresses(asm: Assembler) -> None:
    """The key of a leg, and which of the gate's listeners is the one."""
    asm.load(R2, R6, REMOTE_PORT, Size.HALF)
    asm.store(R10, LEG + shared.LEG_REMOTE_PORT, R2)
    asm.load(R2, R6, FAMILY)
    asm.jump_if(R2, Condition.EQUAL, AF_INET, "four")
    asm.store(R10, INDEX, SIX)
    for field, base in ((shared.LEG_REMOTE, REMOTE_V6), (shared.LEG_LOCAL, LOCAL_V6)):
        for index in range(0, 16, 4):
            asm.load(R2, R6, base + index)
            asm.store(R10, LEG + field + index, R2)
    asm.jump("addresses")
    asm.label("four")
    asm.store(R10, INDEX, FOUR)
    for field, offset in ((shared.LEG_REMOTE, REMOTE_V4), (shared.LEG_LOCAL, LOCAL_V4)):
        asm.store(R10, LEG + field, 0, Size.LONG)
        asm.store(R10, LEG + field + 8, MAPPED_WORD)
        asm.load(R2, R6, offset)
        asm.store(R10, LEG + field + 12, R2)
    asm.label("addresses")


def _heartbeat(asm: Assembler, layout: SteeringLayout) -> None:
    """As `steps.heartbeat`."""
    asm.store(R10, BEAT, 0)
    steps.look_up(asm, layout.heartbeat, BEAT)
    asm.jump_if(R0, Condition.EQUAL, 0, "failed")
    asm.load(R8, R0, 0, Size.LONG)
    asm.call(Helper.KTIME_NS)
    asm.subtract(R0, R8)
    asm.jump_if(R0, Condition.ABOVE, STALL_NS, "failed")


def _lead(asm: Assembler, layout: SteeringLayout) -> None:
    """To the gate, unless somebody else's program leads it elsewhere already."""
    steps.look_up(asm, layout.gates, INDEX)
    asm.jump_if(R0, Condition.EQUAL, 0, "failed")
    asm.move(R7, R0)
    asm.move(R1, R6)
    asm.move(R2, R7)
    asm.move(R3, 0)
    asm.call(Helper.SK_ASSIGN)
    asm.move(R8, R0)
    asm.move(R1, R7)
    asm.call(Helper.SK_RELEASE)
    asm.jump_if(R8, Condition.EQUAL, 0, "pass")
