"""The two classifiers that let the packets of everybody but whom it concerns pass by the library's handles (Linux).

    packet ──────────────► `leave`  IP: ours, the gate's, marked, nobody's? ─ on ──► handles take what is theirs
                              │                                                      ▲
                              └─ else: marked ──► handles skip what has that mark ──► `back` unmarked ──► out

Ours are the sockets of one cgroup (`leave`, a run), or those whose connect() was noted (`leave_unnoted`, a service).
On loopback, where nothing is diverted, everything is left (`leave_all`). So is what is not IP, everywhere: the library
takes ARP for IP between one pair of hardware addresses in twelve, cannot put it back, and cuts the machine off its
network. The library's classifiers skip what it has put back itself, which it knows by a mark. A packet that has a mark
already (routing by mark) is left to the handles, which give it back as well; so no mark but ours is ever changed.
"""

from __future__ import annotations

import sys

from mitmsec_redirect.assembler import Assembler, Condition, Helper, Size
from mitmsec_redirect.records import PROTOCOL_TCP, PROTOCOL_UDP
from mitmsec_redirect.steps import LOCAL_PORT, R0, R1, R2, R3, R4, R6

SKB_MARK, SKB_PROTOCOL, SKB_SOCKET = 8, 16, 168  # struct __sk_buff
ETH_P_IP, ETH_P_IPV6 = (
    int.from_bytes(kind, sys.byteorder) for kind in (b"\x08\x00", b"\x86\xdd")
)  # as packets have it
SOCKET_TYPE, SOCKET_PROTOCOL = 8, 12  # struct bpf_sock
SOCK_RAW = 3  # also the kernel's own socket, by which it answers for those that have gone
LEFT_MARK = 0x4D49FFFF  # the library's own marks end in the priority of the handle that put the packet back
NEXT_CLASSIFIER = -1  # TC_ACT_UNSPEC


def leave(cgroups: int, gate_port: int) -> bytes:
    """For egress, before the handles: mark what is sent by sockets that were made outside a cgroup.

    `cgroups` is the descriptor of a map with that cgroup alone (CGROUP_ARRAY). Where the kernel cannot say whose a
    packet is, the handles are left to find out.
    """
    asm = Assembler()
    _unless_full_socket_of_ip(asm)
    asm.jump_if(R2, Condition.EQUAL, PROTOCOL_UDP, "whose")
    _unless_gates(asm, gate_port)
    asm.label("whose")
    asm.move(R1, R6)
    asm.map(R2, cgroups)
    asm.move(R3, 0)
    asm.call(Helper.SKB_UNDER_CGROUP)
    return _left(asm)


def leave_unnoted(sockets: int, gate_port: int) -> bytes:
    """The same for what TCP sockets send in which nothing is noted (SK_STORAGE, `noting_programs`). UDP goes on."""
    asm = Assembler()
    _unless_full_socket_of_ip(asm)
    _unless_gates(asm, gate_port)
    asm.map(R1, sockets)
    asm.move(R2, R0)
    asm.move(R3, 0)
    asm.move(R4, 0)
    asm.call(Helper.SK_STORAGE_GET)
    return _left(asm)


def _unless_full_socket_of_ip(asm: Assembler) -> None:
    """R0: the packet's socket, R2: its protocol."""
    asm.move(R6, R1)
    asm.load(R2, R6, SKB_MARK)
    asm.jump_if(R2, Condition.NOT_EQUAL, 0, "on")
    asm.load(R2, R6, SKB_PROTOCOL)
    asm.jump_if(R2, Condition.EQUAL, ETH_P_IP, "ip")
    asm.jump_if(R2, Condition.NOT_EQUAL, ETH_P_IPV6, "left")
    asm.label("ip")
    asm.load(R1, R6, SKB_SOCKET, Size.LONG)
    asm.jump_if(R1, Condition.EQUAL, 0, "on")
    asm.call(Helper.SK_FULLSOCK)
    asm.jump_if(R0, Condition.EQUAL, 0, "on")
    asm.load(R2, R0, SOCKET_TYPE)
    asm.jump_if(R2, Condition.EQUAL, SOCK_RAW, "on")
    asm.load(R2, R0, SOCKET_PROTOCOL)


def _unless_gates(asm: Assembler, gate_port: int) -> None:
    """Of TCP only."""
    asm.jump_if(R2, Condition.NOT_EQUAL, PROTOCOL_TCP, "on")
    asm.load(R2, R0, LOCAL_PORT)
    asm.jump_if(R2, Condition.EQUAL, gate_port, "on")
    asm.jump_if(R2, Condition.EQUAL, 0, "on")  # it is being closed with a reset, and may be the gate's


def _left(asm: Assembler) -> bytes:
    """R0 0: marked."""
    asm.jump_if(R0, Condition.NOT_EQUAL, 0, "on")
    asm.label("left")
    asm.move(R2, LEFT_MARK)
    asm.store(R6, SKB_MARK, R2)
    asm.label("on")
    asm.exit(NEXT_CLASSIFIER)
    return asm.code()


def leave_all() -> bytes:
    """For egress of loopback, before the handles: connections within the machine are nobody's to divert."""
    return _marked(0, LEFT_MARK)


def back() -> bytes:
    """For egress, after the handles: take our mark away."""
    return _marked(LEFT_MARK, 0)


def _marked(before: int, after: int) -> bytes:
    """What has the mark `before` goes on with `after`."""
    asm = Assembler()
    asm.load(R2, R1, SKB_MARK)
    asm.jump_if(R2, Condition.NOT_EQUAL, before, "on")
    asm.move(R2, after)
    asm.store(R1, SKB_MARK, R2)
    asm.label("on")
    asm.exit(NEXT_CLASSIFIER)
    return asm.code()
