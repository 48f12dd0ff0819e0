"""The programs that run in the kernel when a selected program connects, built as instructions from a `Layout`.

connect4/6, in this order; the first step that applies decides. Whatever is neither TCP nor UDP/443 passes at once:

     the caller is not selected (a standing selection only) ─► pass
     describe the attempt, and where the kernel's types are known, who makes it (`caller_steps`)
      ├─ UDP/443, and quic = refuse ─────────────────────────► EPERM            quic_refused
      │  forget what an earlier connect() of this socket left (it may have been disconnected since)
      ├─ MPTCP ──────────────────────────────────────────────► on_failure       unsupported_protocol
      ├─ bound to a device ──────────────────────────────────► on_failure       device_bound
      ├─ link-local IPv6 ────────────────────────────────────► on_failure       link_local
      ├─ a network namespace without a listener of ours ─────► on_failure       other_network_namespace
      ├─ to the gate's own listener ─────────────────────────► EPERM            own_listener
      ├─ no route, and the mirror is exact ──────────────────► the kernel's errno (not a missed connection)
      ├─ gate's heartbeat older than STALL_NS ───────────────► on_failure       gate_stalled
      ├─ IPv6, but there is no IPv6 listener ────────────────► on_failure       no_ipv6_listener
      ├─ origin cannot be remembered ────────────────────────► on_failure       no_memory
      ▼
     remembered by cookie (for the gate) and in the socket (for getpeername, getsockname);
     destination := 127.0.0.1:port_v4, [::1]:port_v6, or ::ffff:127.0.0.1:port_v4 for a v4-mapped one

on_failure: open lets the connection out undiverted, closed denies it with EPERM; either way the attempt is queued.
sendmsg4/6 is the first step only. With `leads_quic` UDP/443 is diverted too: `quic_steps`. The instructions of each
step stand in `steps`.
"""

from __future__ import annotations

from collections.abc import Mapping

from mitmsec.core.model import Quic
from mitmsec_redirect import caller_steps, name_steps, quic_steps, records, route_steps, steps
from mitmsec_redirect.assembler import Assembler, Condition, Helper, Size
from mitmsec_redirect.records import Code
from mitmsec_redirect.steps import (
    ADDRESS_V4,
    ADDRESS_V6,
    BOUND_DEVICE,
    IP_PROTOCOL,
    R0,
    R1,
    R2,
    R3,
    R6,
    R7,
    USER_PORT,
    Layout,
)

__all__ = ["Layout", "build"]


def build(layout: Layout) -> Mapping[str, bytes]:
    """The code of each program by its attach type's name."""
    programs = {
        "CONNECT4": connect(layout, v6=False),
        "CONNECT6": connect(layout, v6=True),
        "GETPEERNAME4": peer_name(layout, v6=False),
        "GETPEERNAME6": peer_name(layout, v6=True),
        "GETSOCKNAME4": socket_name(layout, v6=False),
        "GETSOCKNAME6": socket_name(layout, v6=True),
    }
    if layout.quic is Quic.REFUSE:
        programs["SENDMSG4"] = sendmsg(layout, v6=False)
        programs["SENDMSG6"] = sendmsg(layout, v6=True)
    if layout.leads_quic:
        programs |= {f"SENDMSG{family}": sendmsg_led(layout, v6=family == 6) for family in (4, 6)}
        programs |= {f"RECVMSG{family}": recvmsg(layout, v6=family == 6) for family in (4, 6)}
    return programs


def connect(layout: Layout, *, v6: bool) -> bytes:
    """The ladder at the head of this module."""
    asm = Assembler()
    steps.begin(asm, v6=v6)
    asm.load(R2, R6, IP_PROTOCOL)
    asm.jump_if(R2, Condition.EQUAL, records.PROTOCOL_TCP, "ours")
    asm.jump_if(R2, Condition.EQUAL, records.PROTOCOL_MPTCP, "ours")
    if layout.leads_quic:
        asm.jump_if(R2, Condition.NOT_EQUAL, records.PROTOCOL_UDP, "pass")
        quic_steps.forget(asm, layout)
    if layout.quic is Quic.REFUSE or layout.leads_quic:
        steps.unless_quic(asm, "pass")
    else:
        asm.jump("pass")
    asm.label("ours")
    steps.unless_selected(asm, layout, "pass")
    _describe(asm, layout, v6=v6)
    if layout.quic is Quic.REFUSE:
        asm.load(R2, R6, IP_PROTOCOL)
        asm.jump_if(R2, Condition.EQUAL, records.PROTOCOL_UDP, steps.because(Code.QUIC_REFUSED))
    asm.map(R1, layout.truth)
    asm.move(R2, R7)
    asm.call(Helper.SK_STORAGE_DELETE)
    asm.load(R2, R6, IP_PROTOCOL)
    asm.jump_if(R2, Condition.EQUAL, records.PROTOCOL_MPTCP, steps.because(Code.UNSUPPORTED_PROTOCOL))
    _divert(asm, layout, v6=v6)
    steps.ends(asm, layout, tuple(code for code in Code if code not in _unreached(layout)))
    return asm.code()


def _divert(asm: Assembler, layout: Layout, *, v6: bool) -> None:
    asm.load(R2, R7, BOUND_DEVICE)
    asm.jump_if(R2, Condition.NOT_EQUAL, 0, steps.because(Code.DEVICE_BOUND))
    steps.link_local(asm)
    steps.namespace(asm, layout)
    steps.own_listener(asm, layout)
    route_steps.route(asm, layout)
    steps.heartbeat(asm, layout)
    steps.divert(asm, layout, v6=v6)


def _unreached(layout: Layout) -> frozenset[Code]:
    """The verifier wants no instruction that is never reached."""
    return frozenset({Code.DIVERTED} if layout.quic is Quic.REFUSE else {Code.DIVERTED, Code.QUIC_REFUSED})


def _describe(asm: Assembler, layout: Layout, *, v6: bool) -> None:
    steps.describe(asm, v6=v6)
    if layout.offsets is not None:
        caller_steps.caller(asm, layout.offsets, layout.paths)


def sendmsg(layout: Layout, *, v6: bool) -> bytes:
    """Refuse datagrams to port 443 of sockets that are not connected; connect() has refused the others."""
    asm = Assembler()
    steps.begin(asm, v6=v6)
    steps.unless_quic(asm, "pass")
    steps.unless_selected(asm, layout, "pass")
    _describe(asm, layout, v6=v6)
    asm.jump(steps.because(Code.QUIC_REFUSED))
    steps.ends(asm, layout, (Code.QUIC_REFUSED,))
    return asm.code()


def sendmsg_led(layout: Layout, *, v6: bool) -> bytes:
    """Lead datagrams to port 443 of sockets that are not connected; connect() has led the others."""
    asm = Assembler()
    steps.begin(asm, v6=v6)
    steps.unless_quic(asm, "pass")
    steps.unless_selected(asm, layout, "pass")
    _describe(asm, layout, v6=v6)
    quic_steps.again(asm, layout, v6=v6)
    _divert(asm, layout, v6=v6)
    steps.ends(asm, layout, tuple(code for code in Code if code not in (Code.DIVERTED, Code.UNSUPPORTED_PROTOCOL)))
    return asm.code()


def recvmsg(layout: Layout, *, v6: bool) -> bytes:
    """Where what comes from the relay seems to come from."""
    asm = Assembler()
    steps.begin(asm, v6=v6)
    quic_steps.hide(asm, layout, v6=v6)
    return asm.code()


def peer_name(layout: Layout, *, v6: bool) -> bytes:
    """getpeername(): the origin instead of the gate, for sockets that were diverted."""
    asm = Assembler()
    name_steps.find_truth(asm, layout)
    name_steps.answer(asm, records.TRUTH_REMOTE, v6=v6)
    asm.load(R2, R0, records.TRUTH_PORT)
    asm.store(R6, USER_PORT, R2)
    asm.label("done")
    asm.exit(1)
    return asm.code()


def socket_name(layout: Layout, *, v6: bool) -> bytes:
    """getsockname(): the address that the route to the origin would have chosen, where one is known."""
    asm = Assembler()
    name_steps.find_truth(asm, layout)
    asm.load(R2, R6, ADDRESS_V6 + 12 if v6 else ADDRESS_V4)
    asm.jump_if(R2, Condition.EQUAL, 0, "done")  # disconnected since: the wildcard is the truth
    asm.load(R2, R0, records.TRUTH_SOURCE, Size.LONG)
    asm.load(R3, R0, records.TRUTH_SOURCE + 8, Size.LONG)
    asm.merge(R2, R3)
    asm.jump_if(R2, Condition.EQUAL, 0, "done")
    name_steps.answer(asm, records.TRUTH_SOURCE, v6=v6)
    asm.label("done")
    asm.exit(1)
    return asm.code()
