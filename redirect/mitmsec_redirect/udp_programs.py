"""The programs that tell of UDP: which socket exchanges datagrams with whom, and who called. They let everything pass.

    connect4/6 ──┐ the caller is not selected (a standing selection only), or QUIC that is refused or led ─► pass
    sendmsg4/6 ──┤
    recvmsg4/6 ──┘ (socket's cookie, remote address, port) ─┬─ known ─► counted, its time noted
                                                            └─ new ───► described as an attempt is, told by the ring
    sock_release ─► the socket has flows ─► told by the ring

The kernel runs `sendmsg` only where the program names an address, and `recvmsg` only where it asks for one: a socket
that is connected sends and receives unseen, so of its flow only beginning and end are known. The flow that a socket
is connected to is noted in the socket (`sockets`), and leaves the map with it or with the next connect(). A flow that
could not be told, because the ring is full, is not kept either: its next datagram tells of it anew.

What goes to a name server may then be led to a relay of the gate: see `lead_steps`.

    stack:  0 ─ ATTEMPT ─ -144 ─ what ─ -152 ─ cookie ─ -160 ─ FLOW_KEY ─ -192 ─ VERDICT ─ -200 ─ COUNTS ─ -232
"""

from __future__ import annotations

from collections.abc import Mapping

from mitmsec.core.model import Quic, Value
from mitmsec_redirect import caller_steps, lead_steps, quic_steps, records, steps, udp_records
from mitmsec_redirect.assembler import Assembler, Condition, Helper, Size
from mitmsec_redirect.lead_steps import LeadLayout
from mitmsec_redirect.path_records import PathMaps
from mitmsec_redirect.process_offsets import Offsets
from mitmsec_redirect.steps import (
    ATTEMPT,
    IP_PROTOCOL,
    PORT_443,
    R0,
    R1,
    R2,
    R3,
    R4,
    R6,
    R7,
    R8,
    R9,
    R10,
    REMOTE,
    STORAGE_CREATE,
    Selection,
)
from mitmsec_redirect.udp_records import FlowFlag, What

RECORD = ATTEMPT - udp_records.BODY
FLOW_KEY = RECORD - udp_records.KEY.size
COUNTS = steps.VERDICT - udp_records.COUNTS.size
SOCK_PROTOCOL = 12  # in struct bpf_sock

__all__ = ["UdpLayout", "build"]


class UdpLayout(Value, frozen=True):
    """Descriptors of the maps that the programs use, and what is fixed for a session."""

    flows: int
    sockets: int
    ring: int
    lost: int
    quic: Quic
    selection: Selection | None = None  # None: all that the cgroup holds
    offsets: Offsets | None = None  # None: the kernel's types are not known, and the caller is told by its pid alone
    paths: PathMaps | None = None  # None: where its executable lies is not noted
    quic_led: tuple[int, int] | None = None  # the connect hook's maps of truth and settings: it leads QUIC to the gate
    lead: LeadLayout | None = None  # None: what is asked of name servers is led nowhere


def build(layout: UdpLayout) -> Mapping[str, bytes]:
    """The code of each program by its attach type's name."""
    return {
        "CONNECT4": _flow(layout, What.CONNECTED, v6=False),
        "CONNECT6": _flow(layout, What.CONNECTED, v6=True),
        "SENDMSG4": _flow(layout, What.SENT, v6=False),
        "SENDMSG6": _flow(layout, What.SENT, v6=True),
        "RECVMSG4": _flow(layout, What.RECEIVED, v6=False),
        "RECVMSG6": _flow(layout, What.RECEIVED, v6=True),
        "SOCK_RELEASE": _released(layout),
    }


def _flow(layout: UdpLayout, what: What, *, v6: bool) -> bytes:
    asm = Assembler()
    steps.begin(asm, v6=v6)
    asm.load(R2, R6, IP_PROTOCOL)
    asm.jump_if(R2, Condition.NOT_EQUAL, records.PROTOCOL_UDP, "pass")
    quic = layout.quic.unled if layout.quic_led is None else layout.quic
    if quic is Quic.REFUSE and what is not What.RECEIVED:  # told by the program that refuses it
        asm.jump_if(R8, Condition.EQUAL, PORT_443, "pass")
    if layout.quic_led is not None:
        truth, settings = layout.quic_led
        quic_steps.unless_led(asm, truth, settings, "pass", received=what is What.RECEIVED)
    if layout.lead is not None and what is What.CONNECTED:
        lead_steps.forget(asm, layout.lead)
    if layout.lead is not None and what is What.RECEIVED:
        lead_steps.hide(asm, layout.lead, v6=v6)
    steps.unless_selected(asm, layout, "connected" if layout.lead is not None and what is What.SENT else "pass")
    steps.addresses(asm, v6=v6)
    _key(asm)
    if what is What.CONNECTED:
        _forget_connected(asm, layout)
    steps.look_up(asm, layout.flows, FLOW_KEY)
    asm.jump_if(R0, Condition.EQUAL, 0, "new")
    _count(asm, what)
    asm.jump("told")
    asm.label("new")
    _describe(asm, layout, what)
    _keep(asm, layout, what)
    _note_socket(asm, layout, what)
    _tell(asm, layout)
    asm.label("told")
    _lead(asm, layout, what, v6=v6)
    asm.label("pass")
    asm.exit(1)
    return asm.code()


def _lead(asm: Assembler, layout: UdpLayout, what: What, *, v6: bool) -> None:
    if layout.lead is None or what is What.RECEIVED:
        return
    lead_steps.lead(
        asm,
        layout.lead,
        flows=layout.flows,
        flow_key=FLOW_KEY,
        sent=what is What.SENT,
        everything=layout.selection is None or layout.selection.everything,
        v6=v6,
    )
    if what is What.SENT:
        asm.jump("pass")
        asm.label("connected")
        lead_steps.stay(asm, layout.lead, v6=v6)


def _key(asm: Assembler) -> None:
    asm.move(R1, R6)
    asm.call(Helper.SOCKET_COOKIE)
    asm.store(R10, FLOW_KEY, R0, Size.LONG)
    for index in (0, 8):
        asm.load(R2, R10, REMOTE + index, Size.LONG)
        asm.store(R10, FLOW_KEY + udp_records.KEY_REMOTE + index, R2, Size.LONG)
    asm.store(R10, FLOW_KEY + udp_records.KEY_PORT, R8)
    asm.store(R10, FLOW_KEY + udp_records.KEY_PORT + 4, 0)


def _forget_connected(asm: Assembler, layout: UdpLayout) -> None:
    """What the socket was connected to before: that flow has ended."""
    _storage(asm, layout, create=False)
    asm.jump_if(R0, Condition.EQUAL, 0, "not_connected")
    _delete_noted(asm, layout, "not_connected")
    asm.label("not_connected")


def _storage(asm: Assembler, layout: UdpLayout, *, create: bool) -> None:
    asm.map(R1, layout.sockets)
    asm.move(R2, R7)
    asm.move(R3, 0)
    asm.move(R4, STORAGE_CREATE if create else 0)
    asm.call(Helper.SK_STORAGE_GET)


def _delete_noted(asm: Assembler, layout: UdpLayout, label: str) -> None:
    """R0: what is noted in the socket; on to `label` if that is nothing."""
    asm.load(R2, R0, udp_records.COOKIE, Size.LONG)
    asm.jump_if(R2, Condition.EQUAL, 0, label)
    asm.move(R2, R0)
    asm.map(R1, layout.flows)
    asm.call(Helper.MAP_DELETE)


def _count(asm: Assembler, what: What) -> None:
    """R0: the counts of the flow."""
    asm.move(R9, R0)
    if what is What.CONNECTED:
        asm.store(R9, udp_records.FLAGS, FlowFlag.CONNECTED, Size.LONG)
    else:
        asm.move(R2, 1)
        asm.add(R0, udp_records.SENT if what is What.SENT else udp_records.RECEIVED)
        asm.add_atomically(R0, R2)
    asm.call(Helper.KTIME_NS)
    asm.store(R9, udp_records.LAST, R0, Size.LONG)


def _describe(asm: Assembler, layout: UdpLayout, what: What) -> None:
    """The whole record."""
    steps.circumstances(asm)
    if layout.offsets is not None:
        caller_steps.caller(asm, layout.offsets, layout.paths)
    if layout.selection is not None:
        steps.note_selected(asm)
    asm.load(R2, R10, FLOW_KEY, Size.LONG)
    asm.store(R10, RECORD + udp_records.COOKIE, R2, Size.LONG)
    asm.store(R10, RECORD + udp_records.WHAT, what, Size.LONG)


def _keep(asm: Assembler, layout: UdpLayout, what: What) -> None:
    asm.store(R10, COUNTS + udp_records.SENT, int(what is What.SENT), Size.LONG)
    asm.store(R10, COUNTS + udp_records.RECEIVED, int(what is What.RECEIVED), Size.LONG)
    asm.load(R2, R10, ATTEMPT + records.TIME, Size.LONG)
    asm.store(R10, COUNTS + udp_records.LAST, R2, Size.LONG)
    connected = FlowFlag.CONNECTED if what is What.CONNECTED else 0
    asm.store(R10, COUNTS + udp_records.FLAGS, connected, Size.LONG)
    asm.map(R1, layout.flows)
    asm.point(R2, FLOW_KEY)
    asm.point(R3, COUNTS)
    asm.move(R4, 0)
    asm.call(Helper.MAP_UPDATE)


def _note_socket(asm: Assembler, layout: UdpLayout, what: What) -> None:
    """From now on its end is told; without memory for that, its flows end when they have been idle."""
    _storage(asm, layout, create=True)
    if what is What.CONNECTED:
        asm.jump_if(R0, Condition.EQUAL, 0, "noted_socket")
        for index in range(0, udp_records.KEY.size, 8):
            asm.load(R2, R10, FLOW_KEY + index, Size.LONG)
            asm.store(R0, index, R2, Size.LONG)
        asm.label("noted_socket")


def _tell(asm: Assembler, layout: UdpLayout) -> None:
    asm.map(R1, layout.ring)
    asm.point(R2, RECORD)
    asm.move(R3, udp_records.FLOW.size)
    asm.move(R4, 0)
    asm.call(Helper.RINGBUF_OUTPUT)
    asm.jump_if(R0, Condition.EQUAL, 0, "told")
    asm.map(R1, layout.flows)
    asm.point(R2, FLOW_KEY)
    asm.call(Helper.MAP_DELETE)
    steps.look_up_only(asm, layout.lost, "told")
    asm.move(R2, 1)
    asm.add_atomically(R0, R2)


def _released(layout: UdpLayout) -> bytes:
    """A socket is closed: struct bpf_sock. A record that the ring does not take is not missed, see `udp_table`."""
    asm = Assembler()
    asm.move(R6, R1)
    asm.load(R2, R6, SOCK_PROTOCOL)
    asm.jump_if(R2, Condition.NOT_EQUAL, records.PROTOCOL_UDP, "pass")
    asm.move(R7, R6)
    _storage(asm, layout, create=False)
    asm.jump_if(R0, Condition.EQUAL, 0, "pass")
    _delete_noted(asm, layout, "released")
    asm.label("released")
    asm.move(R1, R6)
    asm.call(Helper.SOCKET_COOKIE)
    record = -udp_records.RELEASED.size
    asm.store(R10, record + udp_records.COOKIE, R0, Size.LONG)
    asm.store(R10, record + udp_records.WHAT, What.RELEASED, Size.LONG)
    asm.call(Helper.KTIME_NS)
    asm.store(R10, record + udp_records.BODY, R0, Size.LONG)
    asm.map(R1, layout.ring)
    asm.point(R2, record)
    asm.move(R3, udp_records.RELEASED.size)
    asm.move(R4, 0)
    asm.call(Helper.RINGBUF_OUTPUT)
    asm.label("pass")
    asm.exit(1)
    return asm.code()
