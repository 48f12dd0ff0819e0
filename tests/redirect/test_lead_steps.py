"""The steps that lead DNS, as instructions; what they do in the kernel, test_dns_lead.py sees."""

from __future__ import annotations

import struct

from msgspec.structs import replace

from mitmsec.core.model import Quic
from mitmsec_redirect import lead_steps, records, udp_programs, udp_records
from mitmsec_redirect.lead_offsets import LeadOffsets
from mitmsec_redirect.lead_steps import LeadLayout
from mitmsec_redirect.steps import Selection
from mitmsec_redirect.udp_programs import UdpLayout, build

LEAD = LeadLayout(
    servers=31,
    behind=32,
    led=37,
    truth=33,
    routes=34,
    namespaces=35,
    heartbeat=36,
    offsets=LeadOffsets(912, 760, 48, 32),
)
SELECTED = UdpLayout(
    flows=11, sockets=12, ring=13, lost=14, quic=Quic.REFUSE, selection=Selection(21, 22, everything=False), lead=LEAD
)
LOAD_MAP = 0x18


def maps_of(code: bytes) -> set[int]:
    lines = [struct.unpack_from("=BBhi", code, at) for at in range(0, len(code), 8)]
    return {immediate for opcode, _, _, immediate in lines if opcode == LOAD_MAP}


def test_the_stack_slots_do_not_overlap() -> None:
    slots = [
        (udp_programs.COUNTS, udp_records.COUNTS.size),
        (lead_steps.ROUTE, records.ROUTE_KEY.size),
        (lead_steps.BEAT, records.HEARTBEAT.size),
        (lead_steps.SCRATCH, 24),
    ]
    above = [0, *(start for start, _ in slots)]
    assert all(start + size <= end for (start, size), end in zip(slots, above, strict=False))
    assert all(start % 8 == 0 and start >= -512 for start, _ in slots)


def test_only_who_sends_is_led_and_only_who_receives_has_that_hidden() -> None:
    asked = {name: maps_of(code) & set(range(31, 38)) for name, code in build(SELECTED).items()}
    sends = connects = {31, 33, 34, 35, 36, 37}
    assert asked == {
        "CONNECT4": connects, "CONNECT6": connects, "SENDMSG4": sends, "SENDMSG6": sends,
        "RECVMSG4": {32, 33, 35}, "RECVMSG6": {32, 33, 35}, "SOCK_RELEASE": set(),
    }  # fmt: skip


def test_without_a_selection_all_are_led_and_nobody_is_asked_who_is_selected() -> None:
    run, selected = build(replace(SELECTED, selection=None)), build(SELECTED)
    assert {name: maps_of(code) & set(range(31, 38)) for name, code in run.items()} == {
        name: maps_of(code) & set(range(31, 38)) for name, code in selected.items()
    }
    assert not any(maps_of(code) & {21, 22} for code in run.values())


def test_without_relays_nobody_is_led() -> None:
    without = build(replace(SELECTED, lead=None))
    assert not any(maps_of(code) & set(range(31, 38)) for code in without.values())


def test_ports_are_in_network_order() -> None:
    assert lead_steps.PORT_53.to_bytes(2, "little") == b"\0\x35"
    assert (1023).to_bytes(2, "big")[0] == lead_steps.PRIVILEGED_HIGH_BYTE
