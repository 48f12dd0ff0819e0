"""The steps that lead QUIC to the gate's relay, which has the port of the gate's listeners: as `steps`, for UDP.

    connect4/6 to UDP/443 ──► the ladder of `programs`, as for TCP: remembered, and led to loopback
    sendmsg4/6 to UDP/443 ──► the socket has been led? ─┬─ no ────► the same ladder
                                                        ├─ there ─► to loopback, while the gate's heart beats
                                                        └─ elsewhere, or connected elsewhere ─► EPERM
    recvmsg4/6 ─────────────► from the gate's port on loopback, and the socket was led? source := the origin

What a datagram was meant for is remembered with its socket, so a socket that is led is led for one destination. Who is
refused another falls back to TCP, as with `quic = "refuse"`.
"""

from __future__ import annotations

from mitmsec_redirect import records, steps
from mitmsec_redirect.assembler import Assembler, Condition, Helper, Size
from mitmsec_redirect.records import Code
from mitmsec_redirect.steps import (
    ADDRESS_V4,
    ADDRESS_V6,
    IP_PROTOCOL,
    LOOPBACK_V4,
    LOOPBACK_V6_END,
    MAPPED_WORD,
    PORT_443,
    R0,
    R1,
    R2,
    R3,
    R4,
    R6,
    R7,
    R8,
    R10,
    REMOTE,
    USER_PORT,
    Layout,
    because,
)

PEER_PORT = 48  # in struct bpf_sock


def truth(asm: Assembler, truth_fd: int, label: str) -> None:
    """R0: what the socket remembers, of QUIC that was led; on to `label` if it does not."""
    asm.map(R1, truth_fd)
    asm.move(R2, R7)
    asm.move(R3, 0)
    asm.move(R4, 0)
    asm.call(Helper.SK_STORAGE_GET)
    asm.jump_if(R0, Condition.EQUAL, 0, label)
    asm.load(R2, R0, records.TRUTH_PORT)
    asm.jump_if(R2, Condition.NOT_EQUAL, PORT_443, label)


def forget(asm: Assembler, layout: Layout) -> None:
    """At each connect() of a UDP socket: wherever it was led before, it goes elsewhere now."""
    asm.map(R1, layout.truth)
    asm.move(R2, R7)
    asm.call(Helper.SK_STORAGE_DELETE)


def again(asm: Assembler, layout: Layout, *, v6: bool) -> None:
    """sendmsg(), described: of a socket that was led before, the last step. Falls through for one that was not."""
    truth(asm, layout.truth, "first")
    for index in (0, 8):
        asm.load(R2, R0, records.TRUTH_REMOTE + index, Size.LONG)
        asm.load(R3, R10, REMOTE + index, Size.LONG)
        asm.jump_if(R2, Condition.NOT_EQUAL, R3, because(Code.QUIC_REFUSED))
    steps.heartbeat(asm, layout)
    _to_relay(asm, layout, v6=v6)
    asm.jump("pass")
    asm.label("first")
    asm.load(R2, R7, PEER_PORT, Size.HALF)
    asm.jump_if(R2, Condition.NOT_EQUAL, 0, because(Code.QUIC_REFUSED))  # it hears nobody but its peer


def _to_relay(asm: Assembler, layout: Layout, *, v6: bool) -> None:
    steps.look_up_only(asm, layout.settings, because(Code.GATE_STALLED))
    asm.load(R8, R0, records.PORT_V4)
    asm.load(R2, R10, REMOTE, Size.LONG)
    asm.jump_if(R2, Condition.NOT_EQUAL, 0, "relay_v6")
    asm.load(R2, R10, REMOTE + 8)
    asm.jump_if_word(R2, Condition.EQUAL, MAPPED_WORD, "relay")
    asm.label("relay_v6")
    asm.load(R8, R0, records.PORT_V6)
    asm.label("relay")
    if v6:
        steps.rewrite_v6(asm, "_again")
    else:
        asm.move_word(R2, LOOPBACK_V4)
        asm.store(R6, ADDRESS_V4, R2)
    asm.store(R6, USER_PORT, R8)


def hide(asm: Assembler, layout: Layout, *, v6: bool) -> None:
    """recvmsg(): what comes from the relay comes from where the socket was led from."""
    asm.load(R2, R6, IP_PROTOCOL)
    asm.jump_if(R2, Condition.NOT_EQUAL, records.PROTOCOL_UDP, "pass")
    steps.look_up_only(asm, layout.settings, "pass")
    asm.load(R2, R0, records.PORT_V4)
    asm.jump_if(R2, Condition.EQUAL, R8, "from_port")
    asm.load(R2, R0, records.PORT_V6)
    asm.jump_if(R2, Condition.NOT_EQUAL, R8, "pass")
    asm.label("from_port")
    _unless_loopback(asm, v6=v6)
    truth(asm, layout.truth, "pass")
    for index in (0, 4, 8, 12) if v6 else (12,):
        asm.load(R2, R0, records.TRUTH_REMOTE + index)
        asm.store(R6, ADDRESS_V6 + index if v6 else ADDRESS_V4, R2)
    asm.move(R2, PORT_443)
    asm.store(R6, USER_PORT, R2)
    asm.label("pass")
    asm.exit(1)


def _unless_loopback(asm: Assembler, *, v6: bool) -> None:
    if not v6:
        asm.load(R2, R6, ADDRESS_V4)
        asm.jump_if_word(R2, Condition.NOT_EQUAL, LOOPBACK_V4, "pass")
        return
    for index in (0, 4):
        asm.load(R2, R6, ADDRESS_V6 + index)
        asm.jump_if(R2, Condition.NOT_EQUAL, 0, "pass")
    asm.load(R2, R6, ADDRESS_V6 + 8)
    asm.load(R3, R6, ADDRESS_V6 + 12)
    asm.jump_if(R2, Condition.EQUAL, 0, "loopback_v6")
    asm.jump_if_word(R2, Condition.NOT_EQUAL, MAPPED_WORD, "pass")
    asm.jump_if_word(R3, Condition.NOT_EQUAL, LOOPBACK_V4, "pass")
    asm.jump("from_loopback")
    asm.label("loopback_v6")
    asm.jump_if_word(R3, Condition.NOT_EQUAL, LOOPBACK_V6_END, "pass")
    asm.label("from_loopback")


def unless_led(asm: Assembler, truth_fd: int, settings_fd: int, label: str, *, received: bool) -> None:
    """For `udp_programs`, before or after the connect hook's: on to `label` with what is led, told by the gate.

    What is sent to UDP/443 is led, or told by the connect hook as a failure.
    """
    asm.jump_if(R8, Condition.EQUAL, PORT_443, "maybe_led" if received else label)
    steps.look_up_only(asm, settings_fd, label)
    for field in (records.PORT_V4, records.PORT_V6):
        asm.load(R2, R0, field)
        asm.jump_if(R2, Condition.EQUAL, R8, "maybe_led")
    asm.jump("not_led_quic")
    asm.label("maybe_led")
    truth(asm, truth_fd, "not_led_quic")
    asm.jump(label)
    asm.label("not_led_quic")
