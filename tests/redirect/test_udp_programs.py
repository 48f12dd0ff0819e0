"""The UDP programs as instructions; what they do in the kernel, test_udp_hook.py sees."""

from __future__ import annotations

import struct

import pytest

from mitmsec.core.model import Quic
from mitmsec_redirect import records, steps, udp_programs, udp_records
from mitmsec_redirect.steps import Selection
from mitmsec_redirect.udp_programs import UdpLayout, build

MAPS = {"flows": 11, "sockets": 12, "ring": 13, "lost": 14}
EXIT = 0x95
JUMP_IF_EQUAL, LOAD_MAP = 0x15, 0x18


def instructions(code: bytes) -> list[tuple[int, int, int, int]]:
    return [struct.unpack_from("=BBhi", code, at) for at in range(0, len(code), 8)]


def compares_with(code: bytes, value: int) -> bool:
    return any(opcode == JUMP_IF_EQUAL and immediate == value for opcode, _, _, immediate in instructions(code))


def maps_of(code: bytes) -> set[int]:
    return {immediate for opcode, _, _, immediate in instructions(code) if opcode == LOAD_MAP}


def test_the_stack_slots_do_not_overlap_and_the_record_is_one_piece() -> None:
    slots = [
        (udp_programs.RECORD, udp_records.FLOW.size),
        (udp_programs.FLOW_KEY, udp_records.KEY.size),
        (steps.VERDICT, 8),
        (udp_programs.COUNTS, udp_records.COUNTS.size),
    ]
    assert slots == sorted(slots, reverse=True)
    assert all(
        start + size <= above for (start, size), above in zip(slots, [0, *(one for one, _ in slots)], strict=False)
    )
    assert udp_programs.COUNTS >= -512
    assert udp_programs.RECORD + udp_records.BODY == steps.ATTEMPT
    assert udp_records.FLOW.size == udp_records.BODY + records.ATTEMPT.size


@pytest.mark.parametrize("quic", Quic)
def test_every_program_ends_with_letting_pass_and_only_there(quic: Quic) -> None:
    for code in build(UdpLayout(**MAPS, quic=quic)).values():
        lines = instructions(code)
        assert [line[0] for line in lines].count(EXIT) == 1
        assert lines[-1][0] == EXIT
        assert lines[-2] == (0xB7, 0, 0, 1), "R0 = 1"


def test_refused_quic_is_left_to_the_program_that_refuses_it_and_received_quic_is_told() -> None:
    for quic in Quic:
        programs = build(UdpLayout(**MAPS, quic=quic))
        asks = {name for name, code in programs.items() if compares_with(code, steps.PORT_443)}
        assert asks == (set() if quic is Quic.BYPASS else {"CONNECT4", "CONNECT6", "SENDMSG4", "SENDMSG6"})


def test_under_a_selection_each_program_asks_for_the_verdict_but_the_one_of_closed_sockets() -> None:
    plain = build(UdpLayout(**MAPS, quic=Quic.BYPASS))
    chosen = build(UdpLayout(**MAPS, quic=Quic.BYPASS, selection=Selection(21, 22, everything=False)))
    for name, code in chosen.items():
        more = maps_of(code) - maps_of(plain[name])
        assert more == (set() if name == "SOCK_RELEASE" else {21, 22})
