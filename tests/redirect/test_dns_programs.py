"""The programs that copy DNS, as instructions; what they do in the kernel, test_dns_hook.py sees."""

from __future__ import annotations

import struct

import pytest

from mitmsec_redirect import dns_programs, dns_records
from mitmsec_redirect.records import port_field

LOAD_HALF, JUMP_IF_NOT, EXIT, CALL = 0x69, 0x55, 0x95, 0x85
RESERVE, SUBMIT, DISCARD = 131, 132, 133


def instructions(code: bytes) -> list[tuple[int, int, int, int]]:
    return [struct.unpack_from("=BBhi", code, at) for at in range(0, len(code), 8)]


@pytest.mark.parametrize(("sent", "offset"), [(True, 2), (False, 0)])
def test_the_port_that_is_looked_at_is_the_servers(sent: bool, offset: int) -> None:
    lines = instructions(dns_programs.copies(11, sent=sent))
    assert [line[2] for line in lines if line[0] == LOAD_HALF] == [20 + offset, 40 + offset]
    assert [line[3] for line in lines if line[0] == JUMP_IF_NOT].count(port_field(53)) == 1


@pytest.mark.parametrize("sent", [True, False])
def test_whatever_happens_the_packet_passes_and_what_is_reserved_is_given_back(sent: bool) -> None:
    lines = instructions(dns_programs.copies(11, sent=sent))
    assert [line[0] for line in lines].count(EXIT) == 1
    assert lines[-2] == (0xB7, 0, 0, 1), "R0 = 1"
    assert [line[3] for line in lines if line[0] == CALL and line[3] >= RESERVE] == [RESERVE, SUBMIT, DISCARD]


def test_what_may_be_copied_fits_into_a_record() -> None:
    assert dns_records.PACKET + dns_records.PACKET_LIMIT_BYTES == dns_records.RECORD_BYTES
    assert dns_records.RECORD_BYTES % 8 == 0
