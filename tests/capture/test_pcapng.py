from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pcapng_reader import INTERFACE, NAMES, PACKET, PROCESS, SECRETS, SECTION, STATISTICS, Block, blocks, time_ns

from mitmsec.capture import pcapng

LINE = b"CLIENT_RANDOM " + b"ab" * 32 + b" " + b"cd" * 48


def one(data: bytes) -> Block:
    [block] = blocks(data)
    return block


def test_a_section_header_says_who_wrote_the_file() -> None:
    block = one(pcapng.section_header(application="mitmsec 1", hardware="x86", system="Linux", comment="why"))
    assert block.kind == SECTION
    assert block.fixed == struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)
    assert block.options == ((1, b"why"), (2, b"x86"), (3, b"Linux"), (4, b"mitmsec 1"))


def test_an_interface_carries_raw_ip_in_nanoseconds() -> None:
    block = one(pcapng.interface_description(name="mitmsec", description="curl x"))
    assert (block.kind, block.fixed) == (INTERFACE, struct.pack("<HHI", 101, 0, 0))
    assert block.options == ((9, b"\x09"), (2, b"mitmsec"), (3, b"curl x"))


def test_empty_texts_are_no_options() -> None:
    assert one(pcapng.interface_description(name="", description="")).options == ((9, b"\x09"),)


@pytest.mark.parametrize("outbound", [True, False])
def test_a_packet_carries_time_direction_process_and_comments(outbound: bool) -> None:
    at_ns = 1_800_000_000_123_456_789
    data = pcapng.enhanced_packet(b"packet", time_ns=at_ns, outbound=outbound, process=3, comments=("é", "", "two"))
    block = one(data)
    assert (block.kind, block.data, time_ns(block)) == (PACKET, b"packet", at_ns)
    assert block.options == (
        (2, struct.pack("<I", 2 if outbound else 1)),
        (0x8001, struct.pack("<I", 3)),
        (1, "é".encode()),
        (1, b"two"),
    )


def test_a_packet_of_an_unknown_process_points_at_none() -> None:
    assert one(pcapng.enhanced_packet(b"x", time_ns=0, outbound=True)).option(0x8001) == []


def test_a_process_event_names_pid_and_program() -> None:
    block = one(pcapng.process_event(pid=4242, name="curl"))
    assert (block.kind, block.fixed, block.options) == (PROCESS, struct.pack("<I", 4242), ((2, b"curl"),))


def test_secrets_hold_only_well_formed_key_log_lines() -> None:
    bad = [b"# comment", b"", b"CLIENT_RANDOM zz cc", LINE[:-1], b" " + LINE, LINE + b"\0", b"\xff" * 80]
    [data] = pcapng.secrets(b"\n".join([*bad, LINE, LINE]) + b"\r\n")
    block = one(data)
    assert (block.kind, block.fixed[:4]) == (SECRETS, struct.pack("<I", 0x544C534B))
    assert block.data == LINE + b"\n" + LINE + b"\n"
    assert pcapng.secrets(b"\n".join(bad)) == []


def test_many_secrets_are_several_blocks() -> None:
    count = pcapng.SECRETS_LIMIT_BYTES * 2 // len(LINE)
    found = [one(data).data for data in pcapng.secrets((LINE + b"\n") * count)]
    assert len(found) == 3
    assert all(len(data) <= pcapng.SECRETS_LIMIT_BYTES for data in found)
    assert b"".join(found) == (LINE + b"\n") * count


def test_names_belong_to_addresses_and_a_zero_byte_begins_no_other_name() -> None:
    block = one(pcapng.name_resolution([("192.0.2.1", "a.test\0b"), ("2001:db8::1", "ö.test")]))
    assert block.kind == NAMES
    assert block.options == (
        (1, bytes([192, 0, 2, 1]) + b"a.testb\0"),
        (2, bytes.fromhex("20010db8" + "0" * 23 + "1") + "ö.test".encode() + b"\0"),
    )
    with pytest.raises(ValueError, match="does not appear to be"):
        pcapng.name_resolution([("a.test", "a.test")])


def test_statistics_count_what_is_there_and_what_is_missing() -> None:
    block = one(pcapng.interface_statistics(time_ns=9, start_ns=1 << 33, end_ns=9, received=5, dropped=2))
    assert (block.kind, block.fixed) == (STATISTICS, struct.pack("<III", 0, 0, 9))
    assert block.options == (
        (2, struct.pack("<II", 2, 0)),
        (3, struct.pack("<II", 0, 9)),
        (4, struct.pack("<Q", 5)),
        (5, struct.pack("<Q", 2)),
    )


def test_a_text_too_long_for_its_length_field_is_cut_between_characters() -> None:
    [comment] = one(pcapng.enhanced_packet(b"", time_ns=0, outbound=True, comments=("é" * 40_000,))).option(1)
    assert comment.decode() == "é" * 32_767


@given(st.text(st.characters(), max_size=40), st.binary(max_size=40))
def test_any_text_makes_a_readable_block(text: str, data: bytes) -> None:
    """Paths and names come from outside: lone surrogates, control characters and all."""
    [comment] = one(pcapng.enhanced_packet(data, time_ns=0, outbound=True, comments=("x" + text,))).option(1)
    assert comment.decode().startswith("x")
    assert one(pcapng.name_resolution([("::1", text)])).kind == NAMES


def test_a_path_that_is_no_text_is_still_told() -> None:
    [comment] = one(pcapng.enhanced_packet(b"", time_ns=0, outbound=True, comments=("/bin/\udcff",))).option(1)
    assert comment.decode() == "/bin/\ufffd"


def test_the_reader_of_these_tests_refuses_what_is_cut_short(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="inside a block"):
        blocks(pcapng.section_header(application="x")[:-4])
