"""The programs that note, in connect() itself, who calls (`call_notes`). They change nothing of the connection.

connect4/6 on one cgroup, of TCP and of what may be QUIC:

     all that is known of the caller (`steps`, `caller_steps`) ──► by the socket's cookie ──► pass

A note that cannot be made is missing, as are those of sockets that were connected before: an earlier call of the same
socket is not told in its place.
"""

from __future__ import annotations

from collections.abc import Mapping

from mitmsec.core.model import Value
from mitmsec_redirect import caller_steps, records, steps
from mitmsec_redirect.assembler import Assembler, Condition, Helper, Size
from mitmsec_redirect.process_offsets import Offsets
from mitmsec_redirect.steps import ATTEMPT, IP_PROTOCOL, KEY, R0, R1, R2, R3, R4, R6, R10

OR_INSTEAD = 0  # BPF_ANY: of an earlier note


class CallLayout(Value, frozen=True):
    """The descriptor of the map of attempts by cookie, and where this kernel keeps what is read of processes."""

    calls: int
    offsets: Offsets | None  # None: it does not say, and the caller is told by its pid alone


def build(layout: CallLayout) -> Mapping[str, bytes]:
    """The code of each program by its attach type's name."""
    return {"CONNECT4": _connect(layout, v6=False), "CONNECT6": _connect(layout, v6=True)}


def _connect(layout: CallLayout, *, v6: bool) -> bytes:
    asm = Assembler()
    steps.begin(asm, v6=v6)
    asm.load(R2, R6, IP_PROTOCOL)
    asm.jump_if(R2, Condition.EQUAL, records.PROTOCOL_TCP, "noted")
    steps.unless_quic(asm, "pass")
    asm.label("noted")
    steps.describe(asm, v6=v6)
    if layout.offsets is not None:
        caller_steps.caller(asm, layout.offsets, None)
    asm.move(R1, R6)
    asm.call(Helper.SOCKET_COOKIE)
    asm.store(R10, KEY, R0, Size.LONG)
    asm.map(R1, layout.calls)
    asm.point(R2, KEY)
    asm.point(R3, ATTEMPT)
    asm.move(R4, OR_INSTEAD)
    asm.call(Helper.MAP_UPDATE)
    asm.jump_if(R0, Condition.EQUAL, 0, "pass")
    asm.map(R1, layout.calls)
    asm.point(R2, KEY)
    asm.call(Helper.MAP_DELETE)
    asm.label("pass")
    asm.exit(1)
    return asm.code()
