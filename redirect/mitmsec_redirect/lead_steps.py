"""The steps that lead what a selected program asks a name server to a relay of the gate, and hide that from it.

    connect4/6, sendmsg4/6, when the flow has been told or counted; whatever does not go on here passes untouched:
      from another port to 53 ─► selected ─► no interface, no mark, no source by message ─► the server has a relay
        ─► our network namespace ─► the gate's heart beats
        ─► (sendmsg) no more than UNANSWERED questions are open ─► routed
        ─► the socket's cookie noted, for the gate, which answers nobody else
        ─► (connect) the truth noted in the socket, for the connect hook's getpeername
        ─► destination := loopback, or (connect) the address that the socket would have had itself; port of the relay
    sendmsg4/6, whoever calls: connected to the relay of the server that is named ─► where it is connected
    recvmsg4/6, first of all: from there, a port below 1024, of a relay, in its family and our network namespace
        ─► source := the server, port 53

A relay has a port of its own, below 1024, for each server: so nothing needs to be remembered of a datagram, and nobody
without privilege can have the port of a relay that has ended. A socket that is connected to the server itself never
hears a relay, so what it sends to a name is not led. Where the kernel says nothing of routes, the relay finds out.

    stack:  -232 (COUNTS of `udp_programs`) ─ ROUTE ─ -264 ─ BEAT ─ -272 ─ SCRATCH ─ -296
"""

from __future__ import annotations

from mitmsec.core.model import Value
from mitmsec_redirect import records, steps, udp_records
from mitmsec_redirect.assembler import Assembler, Condition, Helper, Register, Size
from mitmsec_redirect.lead_offsets import LeadOffsets
from mitmsec_redirect.records import AttemptFlag, RouteFlag
from mitmsec_redirect.steps import (
    ADDRESS_V4,
    ADDRESS_V6,
    ATTEMPT,
    BOUND_DEVICE,
    FLAGS,
    KEY,
    LOCAL_PORT,
    LOCAL_V4,
    LOCAL_V6,
    LOOPBACK_V4,
    LOOPBACK_V6_END,
    MAPPED_WORD,
    MARK,
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
    SOURCE,
    STALL_NS,
    STORAGE_CREATE,
    USER_PORT,
    VERDICT,
)
from mitmsec_redirect.verdicts import Verdict

DNS_PORT = 53
PORT_53 = records.port_field(DNS_PORT)
PRIVILEGED_HIGH_BYTE = 3  # of a port, which comes first: 1023 and below
UNANSWERED = 2  # an A and an AAAA; who hears nothing may have bound its messages to an interface, which nobody can see
MESSAGE_SOURCE_V4, MESSAGE_SOURCE_V6 = 40, 44  # in struct bpf_sock_addr
PEER_PORT = 48  # in struct bpf_sock

ROUTE = -264
BEAT = -272
SCRATCH = -296  # 24 bytes
POINTER = SCRATCH + 8


class LeadLayout(Value, frozen=True):
    """Descriptors of maps: three of `dns_lead`, then some of the connect hook."""

    servers: int
    behind: int
    led: int
    truth: int
    routes: int
    namespaces: int
    heartbeat: int
    offsets: LeadOffsets


def forget(asm: Assembler, lead: LeadLayout) -> None:
    """At the next connect() of a socket, whoever makes it: it is not at the relay any more."""
    asm.map(R1, lead.truth)
    asm.move(R2, R7)
    asm.call(Helper.SK_STORAGE_DELETE)


def hide(asm: Assembler, lead: LeadLayout, *, v6: bool) -> None:
    """recvmsg(): what comes from a relay comes from its server, in the context and in R8. Loses R9."""
    asm.move(R2, R8)
    asm.mask(R2, 0xFF)
    asm.jump_if(R2, Condition.ABOVE, PRIVILEGED_HIGH_BYTE, "not_led")
    _unless_from_relay(asm, lead, v6=v6)
    asm.store(R10, KEY, R8)
    steps.look_up(asm, lead.behind, KEY)
    asm.jump_if(R0, Condition.EQUAL, 0, "not_led")
    asm.move(R9, R0)
    _unless_of_other_family(asm, v6=v6)
    _in_our_namespace(asm, lead, "not_led")
    for index in (0, 4, 8, 12) if v6 else (12,):
        asm.load(R2, R9, index)
        asm.store(R6, ADDRESS_V6 + index if v6 else ADDRESS_V4, R2)
    asm.move(R8, PORT_53)
    asm.store(R6, USER_PORT, R8)
    asm.label("not_led")


def _unless_from_relay(asm: Assembler, lead: LeadLayout, *, v6: bool) -> None:
    """Who sent to loopback hears that; who is connected hears where that is, and the truth is noted in the socket."""
    _if_loopback(asm, "from_relay", "from_elsewhere", v6=v6)
    asm.label("from_elsewhere")
    asm.load(R2, R7, PEER_PORT, Size.HALF)
    asm.jump_if(R2, Condition.NOT_EQUAL, R8, "not_led")
    _truth(asm, lead, create=False)
    asm.jump_if(R0, Condition.EQUAL, 0, "not_led")
    asm.label("from_relay")


def _unless_of_other_family(asm: Assembler, *, v6: bool) -> None:
    """A relay has its port of one family only; of the other it may be anybody's. R9: the server behind the port."""
    asm.load(R2, R9, 8)
    if v6:
        asm.load(R3, R6, ADDRESS_V6 + 8)
        asm.jump_if_word(R3, Condition.EQUAL, MAPPED_WORD, "from_v4")
        asm.jump_if_word(R2, Condition.EQUAL, MAPPED_WORD, "not_led")
        asm.jump("from_its_family")
        asm.label("from_v4")
    asm.jump_if_word(R2, Condition.NOT_EQUAL, MAPPED_WORD, "not_led")
    asm.label("from_its_family")


def _truth(asm: Assembler, lead: LeadLayout, *, create: bool) -> None:
    asm.map(R1, lead.truth)
    asm.move(R2, R7)
    asm.move(R3, 0)
    asm.move(R4, STORAGE_CREATE if create else 0)
    asm.call(Helper.SK_STORAGE_GET)


def _if_loopback(asm: Assembler, label: str, otherwise: str, *, v6: bool) -> None:
    if not v6:
        asm.load(R2, R6, ADDRESS_V4)
        asm.jump_if_word(R2, Condition.EQUAL, LOOPBACK_V4, label)
        return
    for index in (0, 4):
        asm.load(R2, R6, ADDRESS_V6 + index)
        asm.jump_if(R2, Condition.NOT_EQUAL, 0, otherwise)
    asm.load(R2, R6, ADDRESS_V6 + 8)
    asm.load(R3, R6, ADDRESS_V6 + 12)
    asm.jump_if(R2, Condition.EQUAL, 0, "of_v6")
    asm.jump_if_word(R2, Condition.NOT_EQUAL, MAPPED_WORD, otherwise)
    asm.jump_if_word(R3, Condition.EQUAL, LOOPBACK_V4, label)
    asm.jump(otherwise)
    asm.label("of_v6")
    asm.jump_if_word(R3, Condition.EQUAL, LOOPBACK_V6_END, label)


def lead(
    asm: Assembler, layout: LeadLayout, *, flows: int, flow_key: int, sent: bool, everything: bool, v6: bool
) -> None:
    """The ladder above; the attempt on the stack has the addresses. `flow_key`: in the stack, that of `flows`."""
    asm.jump_if(R8, Condition.NOT_EQUAL, PORT_53, "pass")
    if sent:
        asm.load(R2, R7, PEER_PORT, Size.HALF)
        asm.jump_if(R2, Condition.NOT_EQUAL, 0, "connected")
    if not everything:  # whom nobody has judged yet is not led
        asm.load(R2, R10, VERDICT)
        asm.mask(R2, Verdict.SELECTED)
        asm.jump_if(R2, Condition.EQUAL, 0, "pass")
    asm.load(R2, R7, LOCAL_PORT)
    asm.jump_if(R2, Condition.EQUAL, DNS_PORT, "pass")  # a server, which answers another one
    _unless_bound(asm, layout.offsets, sent=sent, v6=v6)
    steps.look_up(asm, layout.servers, REMOTE)
    asm.jump_if(R0, Condition.EQUAL, 0, "pass")
    asm.load(R9, R0, 0)
    _in_our_namespace(asm, layout, "pass")
    _unless_stalled(asm, layout)
    if sent:
        _unless_unanswered(asm, flows, flow_key)
    _route(asm, layout)
    if not sent:
        _unless_source_is_odd(asm)
    _note_led(asm, layout, flow_key)
    if sent:
        _to_loopback(asm, v6=v6)
    else:
        _note_truth(asm, layout)
        _to_own_address(asm, R10, SOURCE if v6 else SOURCE + 12, v6=v6)
    asm.store(R6, USER_PORT, R9)


def stay(asm: Assembler, layout: LeadLayout, *, v6: bool) -> None:
    """sendmsg() of a connected socket, whoever has it now: at a relay it hears nobody else, so its server is there."""
    asm.jump_if(R8, Condition.NOT_EQUAL, PORT_53, "pass")
    asm.load(R9, R7, PEER_PORT, Size.HALF)
    asm.jump_if(R9, Condition.EQUAL, 0, "pass")
    _truth(asm, layout, create=False)
    asm.jump_if(R0, Condition.EQUAL, 0, "pass")
    named = ((index, ADDRESS_V6 + index) for index in range(0, 16, 4)) if v6 else ((12, ADDRESS_V4),)
    for index, field in named:
        asm.load(R2, R0, records.TRUTH_REMOTE + index)
        asm.load(R3, R6, field)
        asm.jump_if(R2, Condition.NOT_EQUAL, R3, "pass")
    _to_own_address(asm, R7, LOCAL_V6 if v6 else LOCAL_V4, v6=v6)
    asm.store(R6, USER_PORT, R9)


def _to_loopback(asm: Assembler, *, v6: bool) -> None:
    if v6:
        steps.rewrite_v6(asm)
    else:
        asm.move_word(R2, LOOPBACK_V4)
        asm.store(R6, ADDRESS_V4, R2)


def _to_own_address(asm: Assembler, base: Register, offset: int, *, v6: bool) -> None:
    """The one that the program would have had: a connected socket keeps its own, also when it is connected anew."""
    for index in range(0, 16 if v6 else 4, 4):
        asm.load(R2, base, offset + index)
        asm.store(R6, (ADDRESS_V6 if v6 else ADDRESS_V4) + index, R2)


def _unless_source_is_odd(asm: Assembler) -> None:
    """It is known, and of the server's family, and not a link's."""
    asm.load(R2, R10, SOURCE)
    asm.mask(R2, records.word(b"\xff\xc0\0\0"))
    asm.jump_if_word(R2, Condition.EQUAL, records.word(b"\xfe\x80\0\0"), "pass")
    asm.load(R2, R10, SOURCE, Size.LONG)
    asm.load(R3, R10, SOURCE + 8, Size.LONG)
    asm.merge(R2, R3)
    asm.jump_if(R2, Condition.EQUAL, 0, "pass")
    asm.load(R2, R10, SOURCE + 8)
    asm.load(R3, R10, REMOTE + 8)
    asm.jump_if_word(R3, Condition.EQUAL, MAPPED_WORD, "to_mapped")
    asm.jump_if_word(R2, Condition.EQUAL, MAPPED_WORD, "pass")
    asm.jump("same_family")
    asm.label("to_mapped")
    asm.jump_if_word(R2, Condition.NOT_EQUAL, MAPPED_WORD, "pass")
    asm.label("same_family")


def _unless_bound(asm: Assembler, at: LeadOffsets, *, sent: bool, v6: bool) -> None:
    """A datagram that must leave by some interface cannot go by loopback."""
    for field in (BOUND_DEVICE, MARK):
        asm.load(R2, R7, field)
        asm.jump_if(R2, Condition.NOT_EQUAL, 0, "pass")
    if sent:
        for index in range(0, 16, 4) if v6 else (0,):  # as the socket was bound, or the message says another
            asm.load(R2, R6, MESSAGE_SOURCE_V6 + index if v6 else MESSAGE_SOURCE_V4)
            asm.load(R3, R7, LOCAL_V6 + index if v6 else LOCAL_V4)
            asm.jump_if(R2, Condition.NOT_EQUAL, R3, "pass")
    asm.store(R10, SCRATCH, R7, Size.LONG)
    asm.point(R3, SCRATCH)
    _read(asm, POINTER, 8)  # the socket's address as a number, which the verifier lets us add to
    asm.load(R9, R10, POINTER, Size.LONG)
    _unless_interface(asm, at.interface_v4)
    if v6:
        asm.move(R3, R9)
        asm.add(R3, at.v6)
        _read(asm, POINTER, 8)
        asm.load(R9, R10, POINTER, Size.LONG)
        _unless_interface(asm, at.interface_v6)
        _unless_interface(asm, at.sticky_v6)


def _unless_interface(asm: Assembler, offset: int) -> None:
    asm.move(R3, R9)
    asm.add(R3, offset)
    _read(asm, SCRATCH, 4)
    asm.load(R2, R10, SCRATCH)
    asm.jump_if(R2, Condition.NOT_EQUAL, 0, "pass")


def _read(asm: Assembler, into: int, size: int) -> None:
    """What R3 points to, onto the stack; what cannot be read is not trusted to be nothing."""
    asm.point(R1, into)
    asm.move(R2, size)
    asm.call(Helper.PROBE_READ_KERNEL)
    asm.jump_if(R0, Condition.NOT_EQUAL, 0, "pass")


def _in_our_namespace(asm: Assembler, layout: LeadLayout, label: str) -> None:
    """On to `label` elsewhere: there are no relays of ours."""
    asm.move(R1, R6)
    asm.call(Helper.NETNS_COOKIE)
    asm.store(R10, ATTEMPT + records.NAMESPACE, R0, Size.LONG)
    steps.look_up(asm, layout.namespaces, ATTEMPT + records.NAMESPACE)
    asm.jump_if(R0, Condition.EQUAL, 0, label)


def _unless_stalled(asm: Assembler, layout: LeadLayout) -> None:
    """As `steps.heartbeat`; but whatever the policy says of failures, questions then go where they always went."""
    steps.look_up_only(asm, layout.heartbeat, "pass")
    asm.load(R2, R0, 0, Size.LONG)
    asm.store(R10, BEAT, R2, Size.LONG)
    asm.call(Helper.KTIME_NS)
    asm.load(R2, R10, BEAT, Size.LONG)
    asm.subtract(R0, R2)
    asm.jump_if(R0, Condition.ABOVE, STALL_NS, "pass")


def _unless_unanswered(asm: Assembler, flows: int, flow_key: int) -> None:
    """This question is counted already. What is received unseen counts as no answer: then few are led."""
    steps.look_up(asm, flows, flow_key)
    asm.jump_if(R0, Condition.EQUAL, 0, "pass")
    asm.load(R2, R0, udp_records.RECEIVED, Size.LONG)
    asm.add(R2, UNANSWERED)
    asm.load(R3, R0, udp_records.SENT, Size.LONG)
    asm.jump_if(R3, Condition.ABOVE, R2, "pass")


def _route(asm: Assembler, layout: LeadLayout) -> None:
    """What has no route fails as ever. The source that the route would have chosen, into the attempt."""
    asm.store(R10, ROUTE, records.ROUTE_KEY_FIXED_BITS + 128)
    for offset, field in ((4, records.NAMESPACE), (12, records.REMOTE), (20, records.REMOTE + 8)):
        for half in (0, 4):
            asm.load(R2, R10, ATTEMPT + field + half)
            asm.store(R10, ROUTE + offset + half, R2)
    steps.look_up(asm, layout.routes, ROUTE)
    asm.jump_if(R0, Condition.EQUAL, 0, "routed")
    asm.load(R2, R0, records.ROUTE_ERRNO)
    asm.jump_if(R2, Condition.NOT_EQUAL, 0, "pass")
    asm.load(R2, R10, FLAGS, Size.HALF)
    asm.mask(R2, AttemptFlag.BOUND)
    asm.jump_if(R2, Condition.NOT_EQUAL, 0, "routed")  # the program chose its source itself
    asm.load(R2, R0, records.ROUTE_FLAGS)
    asm.jump_if(R2, Condition.NOT_EQUAL, RouteFlag.SOURCE_IS_REMOTE, "source")
    asm.point(R0, REMOTE)
    asm.label("source")
    for index in range(0, 16, 4):
        asm.load(R2, R0, index)
        asm.store(R10, SOURCE + index, R2)
    asm.label("routed")


def _note_led(asm: Assembler, layout: LeadLayout, flow_key: int) -> None:
    """The gate answers nobody else; the flow's key begins with the socket's cookie, and that is all it is asked for."""
    steps.look_up(asm, layout.led, flow_key)
    asm.jump_if(R0, Condition.NOT_EQUAL, 0, "noted_led")
    asm.store(R10, SCRATCH, R9)
    asm.map(R1, layout.led)
    asm.point(R2, flow_key)
    asm.point(R3, SCRATCH)
    asm.move(R4, 0)
    asm.call(Helper.MAP_UPDATE)
    asm.jump_if(R0, Condition.NOT_EQUAL, 0, "pass")
    asm.label("noted_led")


def _note_truth(asm: Assembler, layout: LeadLayout) -> None:
    _truth(asm, layout, create=True)
    asm.jump_if(R0, Condition.EQUAL, 0, "pass")
    for target, field in ((records.TRUTH_REMOTE, REMOTE), (records.TRUTH_SOURCE, SOURCE)):
        for index in (0, 8):
            asm.load(R2, R10, field + index, Size.LONG)
            asm.store(R0, target + index, R2, Size.LONG)
    asm.store(R0, records.TRUTH_PORT, R8)
