"""The programs that run in the kernel when a connection comes in for a selected program, built as instructions.

    listen()    ──► who calls it: into the listener's socket ─── copied by the kernel into each of its connections ──┐
    handshake   ──► addresses, time, cookie ─► selected, as far as can be told by who listens? ─► record BEGAN       │
    accept()    ──► who calls it, once ──────► selected? ──────────────────────────────────────► record ACCEPTED  ◄──┘
    TCP_CLOSE   ──► bytes, error ────────────► was it selected? ────────────────────────────────► record ENDED
    connect()   ──► a socket that is used once more is another connection: its record goes

All but accept() are one program (BPF_PROG_TYPE_SOCK_OPS): it runs in the caller of listen(), and else in whatever
context the kernel handles packets. accept() asks for the peer's address where its caller wants that, which is what
`getpeername4/6` see; who does not want it is seen when it first calls getpeername(), or never.

Where connections are led to the gate (`steering`), listeners of its network namespace, of selected processes among
them, are kept in maps for as long as they listen (`served_steps`), and told (LISTENS): whoever calls listen() may have
ended when somebody calls. What the gate then connects
to them is not told, for the gate tells of it, and getpeername() answers with the peer that the gate has it from.

Registers: R6 the context, R7 the socket, R8 the record in it; R0–R5 are lost at each call.
"""

from __future__ import annotations

from collections.abc import Mapping

from mitmsec.core.model import Value
from mitmsec_redirect import caller_steps, name_steps, path_steps, run_steps, served_steps, steps
from mitmsec_redirect import inbound_records as records
from mitmsec_redirect import steering_records as shared
from mitmsec_redirect.assembler import Assembler, Condition, Helper, Size
from mitmsec_redirect.inbound_records import InboundFlag, InboundKind
from mitmsec_redirect.path_records import PathMaps
from mitmsec_redirect.process_offsets import Offsets
from mitmsec_redirect.records import PROTOCOL_TCP
from mitmsec_redirect.served_steps import FAMILY, LOCAL_PORT, LOCAL_V4, LOCAL_V6, TELL_STATES
from mitmsec_redirect.steering_records import SteeringMaps
from mitmsec_redirect.steps import (
    AF_INET,
    KEY,
    MAPPED_WORD,
    R0,
    R1,
    R2,
    R3,
    R4,
    R6,
    R7,
    R8,
    R10,
    SOCKET,
    STORAGE_CREATE,
    USER_PORT,
    Selection,
)
from mitmsec_redirect.verdicts import Verdict

LONG = Size.LONG
# struct bpf_sock_ops
OP, OLD_STATE, NEW_STATE, REMOTE_V4, REMOTE_V6, REMOTE_PORT, OPS_SOCKET = 0, 4, 8, 24, 32, 64, 184
CONNECTS, PASSIVE_ESTABLISHED, STATE_CHANGED, LISTENS = 3, 5, 10, 11  # BPF_SOCK_OPS_…_CB
TCP_CLOSE, TCP_LISTEN = 7, 10
PROTOCOL, STATE = 12, 72  # of struct bpf_sock
LEG = -shared.LEG.size  # on our stack, from the frame pointer: a leg's key
SOCK_DONE = 2  # bit 1 of sk_flags: the peer's FIN has come, which bytes_received counts as a byte


class InboundLayout(Value, frozen=True):
    """Descriptors of the maps that the programs use, and what is fixed for a session."""

    sockets: int  # storage in sockets: the record
    ring: int
    lost: int  # one counter: records for which the ring had no room
    offsets: Offsets
    selection: Selection | None = None  # None: all that the cgroup holds
    steering: SteeringMaps | None = None  # None: nothing is led to the gate
    paths: PathMaps | None = None  # None: where a caller's executable lies is not noted


def build(layout: InboundLayout) -> Mapping[str, bytes]:
    """The code of each program by its attach type's name."""
    programs = {
        "SOCK_OPS": happened(layout),
        "GETPEERNAME4": accepted(layout, v6=False),
        "GETPEERNAME6": accepted(layout, v6=True),
    }
    if layout.selection is not None and layout.steering is not None:
        programs["SOCK_RELEASE"] = released(layout.steering)
    return programs


def happened(layout: InboundLayout) -> bytes:
    """What becomes of TCP sockets, from listen() to their end."""
    asm = Assembler()
    asm.move(R6, R1)
    asm.load(R7, R6, OPS_SOCKET, LONG)
    asm.jump_if(R7, Condition.EQUAL, 0, "out")
    asm.load(R2, R6, OP)
    asm.jump_if(R2, Condition.EQUAL, STATE_CHANGED, "state")
    asm.jump_if(R2, Condition.EQUAL, LISTENS, "listens")
    asm.jump_if(R2, Condition.EQUAL, CONNECTS, "connects")
    asm.jump_if(R2, Condition.NOT_EQUAL, PASSIVE_ESTABLISHED, "out")
    _began(asm, layout)
    asm.label("listens")
    _listens(asm, layout)
    asm.label("state")
    _state(asm, layout)
    asm.jump("out")
    asm.label("connects")  # what it was before, to whom it was accepted from, is over
    asm.map(R1, layout.sockets)
    asm.move(R2, R7)
    asm.call(Helper.SK_STORAGE_DELETE)
    asm.label("out")
    asm.exit(1)
    return asm.code()


def accepted(layout: InboundLayout, *, v6: bool) -> bytes:
    """getpeername(), by accept() or by the program itself: the first time, its caller is who has the connection."""
    asm = Assembler()
    asm.move(R6, R1)
    asm.load(R7, R6, SOCKET, LONG)
    _record(asm, layout, create=False)
    asm.load(R2, R8, records.FLAGS)
    if layout.steering is not None:
        asm.jump_if(R2, Condition.EQUAL, InboundFlag.GATES, "gates")
    asm.mask(R2, InboundFlag.ACCEPTED)
    asm.jump_if(R2, Condition.NOT_EQUAL, 0, "out")
    _caller(asm, layout.offsets, layout.paths)
    asm.store(R8, records.FLAGS, InboundFlag.ACCEPTED)
    steps.unless_selected(asm, layout, "out")
    asm.store(R8, records.FLAGS, InboundFlag.ACCEPTED | InboundFlag.SELECTED)
    _tell(asm, layout, InboundKind.ACCEPTED)
    if layout.steering is not None:
        asm.jump("out")
        asm.label("gates")
        asm.move(R0, R8)
        name_steps.answer(asm, records.PEER, v6=v6)
        asm.load(R2, R8, records.PEER_PORT)
        asm.store(R6, USER_PORT, R2)
    asm.label("out")
    asm.exit(1)
    return asm.code()


def released(maps: SteeringMaps) -> bytes:
    """The last close() of a socket: the end of a listener that `happened` is not told of, for it listened before us."""
    asm = Assembler()
    asm.move(R6, R1)
    asm.load(R2, R6, PROTOCOL)
    asm.jump_if(R2, Condition.NOT_EQUAL, PROTOCOL_TCP, "out")
    asm.load(R2, R6, STATE)
    asm.jump_if(R2, Condition.EQUAL, TCP_LISTEN, "listens")
    asm.jump_if(R2, Condition.NOT_EQUAL, TCP_CLOSE, "out")  # closed without an end of its file: it may have listened
    asm.label("listens")
    served_steps.forget(asm, maps)
    asm.label("out")
    asm.exit(1)
    return asm.code()


# --- what has happened ------------------------------------------------------------------------------------------------
def _listens(asm: Assembler, layout: InboundLayout) -> None:
    _record(asm, layout, create=True)
    _caller(asm, layout.offsets, layout.paths)
    asm.store(R8, records.FLAGS, 0)
    if layout.selection is not None:
        _unless_in_run(asm, layout.selection)
    if layout.steering is not None:
        if layout.selection is not None:
            _unless_selected(asm, layout.selection, "leads")
        some_undecided = layout.selection is not None and not layout.selection.everything
        served_steps.keep(asm, layout.steering, layout.offsets, some_undecided=some_undecided)
        _tell(asm, layout, InboundKind.LISTENS)
    asm.jump("out")


def _unless_in_run(asm: Assembler, selection: Selection) -> None:
    run_steps.unless_in_run(asm, selection.runs, KEY, "in_run")
    asm.jump("in_none")
    asm.label("in_run")
    asm.store(R8, records.FLAGS, InboundFlag.IN_RUN)
    asm.jump("out")
    asm.label("in_none")


def _began(asm: Assembler, layout: InboundLayout) -> None:
    _record(asm, layout, create=True)
    asm.move(R1, R6)
    asm.move(R2, TELL_STATES)
    asm.call(Helper.CALLBACKS_SET)
    for helper, field in ((Helper.SOCKET_COOKIE, records.COOKIE), (Helper.NETNS_COOKIE, records.NAMESPACE)):
        asm.move(R1, R6)
        asm.call(helper)
        asm.store(R8, field, R0, LONG)
    asm.call(Helper.KTIME_NS)
    asm.store(R8, records.BEGAN, R0, LONG)
    for field, offset in ((records.LOCAL_PORT, LOCAL_PORT), (records.REMOTE_PORT, REMOTE_PORT)):
        asm.load(R2, R6, offset)
        asm.store(R8, field, R2)
    _addresses(asm)
    if layout.steering is not None:
        _unless_gates(asm, layout.steering)
    _unless_listener_selected(asm, layout)
    asm.store(R8, records.FLAGS, InboundFlag.SELECTED)
    _tell(asm, layout, InboundKind.BEGAN)
    asm.jump("out")


def _addresses(asm: Assembler) -> None:
    asm.load(R2, R6, FAMILY)
    asm.jump_if(R2, Condition.EQUAL, AF_INET, "four")
    for field, base in ((records.LOCAL, LOCAL_V6), (records.REMOTE, REMOTE_V6)):
        for index in range(0, 16, 4):
            asm.load(R2, R6, base + index)
            asm.store(R8, field + index, R2)
    asm.jump("addresses")
    asm.label("four")
    for field, offset in ((records.LOCAL, LOCAL_V4), (records.REMOTE, REMOTE_V4)):
        asm.store(R8, field, 0, LONG)
        asm.store(R8, field + 8, MAPPED_WORD)
        asm.load(R2, R6, offset)
        asm.store(R8, field + 12, R2)
    asm.label("addresses")


def _unless_listener_selected(asm: Assembler, layout: InboundLayout) -> None:
    """On to "out" for a connection of which only its acceptor can tell whether it is meant."""
    if layout.selection is None:
        return
    asm.load(R2, R8, records.FLAGS)
    asm.mask(R2, InboundFlag.IN_RUN)
    asm.jump_if(R2, Condition.NOT_EQUAL, 0, "out")
    _unless_selected(asm, layout.selection, "meant")


def _unless_selected(asm: Assembler, selection: Selection, label: str) -> None:
    """On to "out" unless the process of the record is, or may be. `label` has to be this call's own."""
    asm.load(R2, R8, records.PID)
    asm.jump_if(R2, Condition.EQUAL, 0, "out")  # it listened before we were there
    asm.store(R10, KEY, R2)
    steps.look_up(asm, selection.verdicts, KEY)
    asm.jump_if(R0, Condition.EQUAL, 0, label if selection.everything else "out")
    asm.load(R2, R0, 0)
    asm.move(R3, R2)
    asm.mask(R3, Verdict.OWN_TRAFFIC)
    asm.jump_if(R3, Condition.NOT_EQUAL, 0, "out")
    asm.move(R3, R2)
    asm.mask(R3, Verdict.SELECTED)
    asm.jump_if(R3, Condition.EQUAL, 0, f"{label}_perhaps")
    asm.store(R8, records.FLAGS, InboundFlag.BY_SELECTED)
    asm.jump(label)
    asm.label(f"{label}_perhaps")
    if not selection.everything:
        asm.mask(R2, Verdict.UNDECIDED)
        asm.jump_if(R2, Condition.EQUAL, 0, "out")
    asm.label(label)


def _state(asm: Assembler, layout: InboundLayout) -> None:
    asm.load(R2, R6, NEW_STATE)
    asm.jump_if(R2, Condition.NOT_EQUAL, TCP_CLOSE, "out")
    if layout.steering is not None:
        asm.load(R2, R6, OLD_STATE)
        asm.jump_if(R2, Condition.EQUAL, TCP_LISTEN, "listens_no_more")
    _record(asm, layout, create=False)
    asm.load(R2, R8, records.FLAGS)
    asm.mask(R2, InboundFlag.SELECTED)
    asm.jump_if(R2, Condition.EQUAL, 0, "out")
    asm.move(R1, R7)
    asm.call(Helper.TCP_SOCK)
    asm.jump_if(R0, Condition.EQUAL, 0, "out")  # never: it is one
    _counts(asm, layout.offsets)
    _tell(asm, layout, InboundKind.ENDED)
    if layout.steering is not None:
        asm.jump("out")
        asm.label("listens_no_more")
        served_steps.forget(asm, layout.steering)


def _counts(asm: Assembler, at: Offsets) -> None:
    """What the socket in R0 has carried."""
    asm.load(R2, R0, at.tcp_sent, LONG)
    asm.load(R3, R0, at.tcp_resent, LONG)
    asm.subtract(R2, R3)
    asm.store(R8, records.SENT, R2, LONG)
    asm.load(R2, R0, at.tcp_received, LONG)
    asm.load(R3, R0, at.sock_flags, LONG)
    asm.mask(R3, SOCK_DONE)
    asm.jump_if(R3, Condition.EQUAL, 0, "no_fin")
    asm.add(R2, -1)
    asm.label("no_fin")
    asm.store(R8, records.RECEIVED, R2, LONG)
    asm.load(R2, R0, at.sock_error)
    asm.store(R8, records.ERROR, R2)


# --- what is led to the gate ------------------------------------------------------------------------------------------
def _unless_gates(asm: Assembler, maps: SteeringMaps) -> None:
    """On to "out" for a leg of the gate's, once it is noted whose connection it carries on."""
    for index in (0, 8):
        for field, source in ((shared.LEG_REMOTE, records.REMOTE), (shared.LEG_LOCAL, records.LOCAL)):
            asm.load(R2, R8, source + index, LONG)
            asm.store(R10, LEG + field + index, R2, LONG)
    asm.load(R2, R8, records.REMOTE_PORT)
    asm.shift_right(R2, 16)
    asm.store(R10, LEG + shared.LEG_REMOTE_PORT, R2)
    asm.load(R2, R8, records.LOCAL_PORT)
    asm.store(R10, LEG + shared.LEG_LOCAL_PORT, R2)
    steps.look_up(asm, maps.legs, LEG)
    asm.jump_if(R0, Condition.EQUAL, 0, "no_leg")
    for index in range(0, shared.PEER.size, 8):
        asm.load(R2, R0, index, LONG)
        asm.store(R8, records.PEER + index, R2, LONG)
    asm.store(R8, records.FLAGS, InboundFlag.GATES)
    asm.jump("out")
    asm.label("no_leg")


# --- steps ------------------------------------------------------------------------------------------------------------
def _record(asm: Assembler, layout: InboundLayout, *, create: bool) -> None:
    """R8: the record in the socket R7; on to "out" where there is none."""
    asm.map(R1, layout.sockets)
    asm.move(R2, R7)
    asm.move(R3, 0)
    asm.move(R4, STORAGE_CREATE if create else 0)
    asm.call(Helper.SK_STORAGE_GET)
    asm.jump_if(R0, Condition.EQUAL, 0, "out")
    asm.move(R8, R0)


def _caller(asm: Assembler, at: Offsets, paths: PathMaps | None) -> None:
    """Who runs now, into the record, read through the kernel's own types."""
    path_steps.current_task(asm, at)
    asm.load(R2, R0, at.task_tgid)
    asm.store(R8, records.PID, R2)
    asm.load(R2, R0, at.task_cred, LONG)
    asm.load(R2, R2, at.cred_uid)
    asm.store(R8, records.UID, R2)
    for half in (0, 8):
        asm.load(R2, R0, at.task_comm + half, LONG)
        asm.store(R8, records.COMM + half, R2, LONG)
    caller_steps.who(asm, at, paths, record=R8, place=records.STARTED)


def _tell(asm: Assembler, layout: InboundLayout, kind: InboundKind) -> None:
    asm.store(R8, records.KIND, kind)
    asm.call(Helper.KTIME_NS)
    asm.store(R8, records.AT, R0, LONG)
    asm.map(R1, layout.ring)
    asm.move(R2, R8)
    asm.move(R3, records.INBOUND.size)
    asm.move(R4, 0)
    asm.call(Helper.RINGBUF_OUTPUT)
    asm.jump_if(R0, Condition.EQUAL, 0, "out")
    asm.store(R10, KEY, 0)
    steps.look_up(asm, layout.lost, KEY)
    asm.jump_if(R0, Condition.EQUAL, 0, "out")
    asm.move(R1, 1)
    asm.add_atomically(R0, R1)
