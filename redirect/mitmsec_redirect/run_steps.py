"""The steps that ask whether the caller is in the cgroup of a run, which has a hook of its own (mitmsec_redirect.runs).

    caller's cgroup ─► its ancestor at depth 1, 2, 3 … ─► in the map of runs? ── yes ──► the run's own hook diverts it

Each ancestor is asked about: how deep below the kernel's root the cgroup of a run lies, nobody can tell in a cgroup
namespace, or where only a part of the hierarchy is mounted. Directly below the root, the first ancestor says so.
"""

from __future__ import annotations

from mitmsec_redirect.assembler import Assembler, Condition, Helper, Register, Size

R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10 = Register
DEPTH_LIMIT = 32  # the verifier follows each, which takes its time; containers in containers come to a dozen


def unless_in_run(asm: Assembler, runs: int, key: int, label: str) -> None:
    """On to `label` for whoever is in the cgroup of a run, or below one. Loses R9, and eight bytes of stack at `key`.

    `runs` is the descriptor of the map of runs.
    """
    asm.move(R9, 0)
    asm.label("ancestor")
    asm.jump_if(R9, Condition.EQUAL, DEPTH_LIMIT, "in_no_run")
    asm.add(R9, 1)
    asm.move(R1, R9)
    asm.call(Helper.ANCESTOR_CGROUP_ID)
    asm.jump_if(R0, Condition.EQUAL, 0, "in_no_run")  # the caller's own cgroup lies less deep
    asm.store(R10, key, R0, Size.LONG)
    asm.map(R1, runs)
    asm.point(R2, key)
    asm.call(Helper.MAP_LOOKUP)
    asm.jump_if(R0, Condition.EQUAL, 0, "ancestor")
    asm.jump(label)
    asm.label("in_no_run")
