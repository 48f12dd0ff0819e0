"""The programs that note, in connect() itself, whose connections a standing selection means (`connect_notes`).

connect4/6 of TCP, on all cgroups; they change nothing of the connection:

     the caller is not selected ─► what an earlier connect() of this socket noted is over ─► pass
      ├─ MPTCP, whose packets another socket sends ──────────► on_failure   unsupported_protocol
      ├─ another network namespace, where no handle is ──────► on_failure   other_network_namespace
      ├─ no room for the note ───────────────────────────────► on_failure   no_memory
      ▼
     noted in the socket: its packets are the handles' (`bystander_programs`); by its cookie: for whoever holds its SYN

on_failure: counted, by reason, and let go (open) or denied with EPERM (closed); whom nobody has judged yet passes. A
note is the verdict that the caller had. Its process may end, or execute something else, before the SYN is looked at.

    stack: as in `steps`; VERDICT is the note
"""

from __future__ import annotations

from collections.abc import Mapping

from mitmsec.core.model import OnFailure, Value
from mitmsec_redirect import records, steps
from mitmsec_redirect.assembler import Assembler, Condition, Helper, Size
from mitmsec_redirect.records import Code
from mitmsec_redirect.steps import (
    IP_PROTOCOL,
    KEY,
    R0,
    R1,
    R2,
    R3,
    R4,
    R6,
    R7,
    R10,
    STORAGE_CREATE,
    VERDICT,
    Selection,
    because,
)
from mitmsec_redirect.verdicts import Verdict

FAILURES = (Code.UNSUPPORTED_PROTOCOL, Code.OTHER_NETWORK_NAMESPACE, Code.NO_MEMORY)


class NoteLayout(Value, frozen=True):
    """Descriptors of the maps that the programs use, and what is fixed until the terms change."""

    sockets: int
    cookies: int
    namespaces: int  # those in which handles are
    counts: int  # by Code
    on_failure: OnFailure
    selection: Selection


def build(layout: NoteLayout) -> Mapping[str, bytes]:
    """The code of each program by its attach type's name."""
    return {"CONNECT4": _connect(layout, v6=False), "CONNECT6": _connect(layout, v6=True)}


def _connect(layout: NoteLayout, *, v6: bool) -> bytes:
    asm = Assembler()
    steps.begin(asm, v6=v6)
    asm.load(R2, R6, IP_PROTOCOL)
    asm.jump_if(R2, Condition.EQUAL, records.PROTOCOL_TCP, "ours")
    asm.jump_if(R2, Condition.NOT_EQUAL, records.PROTOCOL_MPTCP, "pass")
    asm.label("ours")
    steps.unless_selected(asm, layout, "bystander")
    asm.load(R2, R6, IP_PROTOCOL)
    asm.jump_if(R2, Condition.EQUAL, records.PROTOCOL_MPTCP, because(Code.UNSUPPORTED_PROTOCOL))
    _key(asm, Helper.NETNS_COOKIE)
    steps.look_up(asm, layout.namespaces, KEY)
    asm.jump_if(R0, Condition.EQUAL, 0, because(Code.OTHER_NETWORK_NAMESPACE))
    _note(asm, layout)
    asm.label("pass")
    asm.exit(1)
    asm.label("bystander")
    _forget(asm, layout)
    asm.jump("pass")
    _ends(asm, layout)
    return asm.code()


def _key(asm: Assembler, helper: Helper) -> None:
    asm.move(R1, R6)
    asm.call(helper)
    asm.store(R10, KEY, R0, Size.LONG)


def _note(asm: Assembler, layout: NoteLayout) -> None:
    """By the cookie first: packets that come to the handles are to be known there."""
    _key(asm, Helper.SOCKET_COOKIE)
    asm.map(R1, layout.cookies)
    asm.point(R2, KEY)
    asm.point(R3, VERDICT)
    asm.move(R4, 0)
    asm.call(Helper.MAP_UPDATE)
    asm.jump_if(R0, Condition.NOT_EQUAL, 0, because(Code.NO_MEMORY))
    asm.map(R1, layout.sockets)
    asm.move(R2, R7)
    asm.move(R3, 0)
    asm.move(R4, STORAGE_CREATE)
    asm.call(Helper.SK_STORAGE_GET)
    asm.jump_if(R0, Condition.EQUAL, 0, because(Code.NO_MEMORY))


def _forget(asm: Assembler, layout: NoteLayout) -> None:
    """Nearly nobody has anything to forget, and pays for one look."""
    asm.map(R1, layout.sockets)
    asm.move(R2, R7)
    asm.call(Helper.SK_STORAGE_DELETE)
    asm.jump_if(R0, Condition.NOT_EQUAL, 0, "pass")
    _key(asm, Helper.SOCKET_COOKIE)
    asm.map(R1, layout.cookies)
    asm.point(R2, KEY)
    asm.call(Helper.MAP_DELETE)


def _ends(asm: Assembler, layout: NoteLayout) -> None:
    for code in FAILURES:
        asm.label(because(code))
        asm.store(R10, KEY, code)
        asm.jump("failed")
    asm.label("failed")
    if not layout.selection.everything:
        asm.load(R2, R10, VERDICT)
        asm.mask(R2, Verdict.SELECTED)
        asm.jump_if(R2, Condition.EQUAL, 0, "pass")
    steps.look_up(asm, layout.counts, KEY)
    asm.jump_if(R0, Condition.EQUAL, 0, "counted")
    asm.move(R2, 1)
    asm.add_atomically(R0, R2)
    asm.label("counted")
    asm.exit(0 if layout.on_failure is OnFailure.CLOSED else 1)
