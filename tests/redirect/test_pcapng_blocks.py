"""Capture files, whole, in pieces, foreign and broken."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.capture import pcapng
from mitmsec_redirect import pcapng_blocks
from mitmsec_redirect.pcapng_blocks import (
    Block,
    CapturedName,
    CapturedPacket,
    CapturedProcess,
    Malformed,
    Reader,
    Want,
    block_at,
)

HEAD = pcapng.section_header(application="test") + pcapng.interface_description(name="lo")
FILE = (
    HEAD
    + pcapng.process_event(pid=42, name="curl")
    + pcapng.name_resolution([("203.0.113.9", "example.com"), ("::ffff:203.0.113.8", "mapped"), ("2001:db8::1", "six")])
    + b"".join(pcapng.secrets(b"CLIENT_RANDOM " + b"ab" * 32 + b" " + b"cd" * 48))
    + pcapng.enhanced_packet(b"out", time_ns=10**18 + 1, outbound=True, process=0, comments=("é", "two"))
    + pcapng.enhanced_packet(b"", time_ns=10**18 + 2, outbound=False)
)
READ = [
    CapturedName("203.0.113.9", "example.com"),
    CapturedName("203.0.113.8", "mapped"),
    CapturedName("2001:db8::1", "six"),
    CapturedPacket(10**18 + 1, 101, b"out", True, CapturedProcess(42, "curl"), ("é", "two")),
    CapturedPacket(10**18 + 2, 101, b"", False, None, ()),
]


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    frame = struct.pack(f"{order}II", kind, len(body) + 12)
    return frame + body + frame[4:]


def option(code: int, value: bytes, order: str = "<") -> bytes:
    return struct.pack(f"{order}HH", code, len(value)) + value + bytes(-len(value) % 4)


def packet(body: bytes = bytes(20), options: bytes = b"", order: str = "<") -> bytes:
    return block(6, body + options, order)


def test_what_mitmsec_writes_is_read() -> None:
    reader = Reader()
    assert reader.feed(FILE) == READ
    assert (reader.malformed, reader.is_inside_block) == (None, False)


@given(st.lists(st.integers(0, len(FILE)), max_size=8).map(sorted))
def test_any_split_of_the_file_gives_the_same(cuts: list[int]) -> None:
    reader = Reader()
    ends = [*cuts, len(FILE)]
    pieces = [FILE[start:end] for start, end in zip([0, *cuts], ends, strict=True)]
    assert [event for piece in pieces for event in reader.feed(piece)] == READ
    assert not reader.is_inside_block


@given(st.integers(0, len(FILE) - 1))
def test_a_file_cut_anywhere_needs_more_and_nothing_else(at: int) -> None:
    reader = Reader()
    found = reader.feed(FILE[:at])
    assert found == READ[: len(found)]
    assert reader.malformed is None
    assert found + reader.feed(FILE[at:]) == READ


@given(st.binary(max_size=64), st.booleans(), st.integers(1, 20))
def test_no_bytes_raise_and_damage_is_final_however_they_come(data: bytes, headed: bool, step: int) -> None:
    data = HEAD + data if headed else data
    whole, pieces = Reader(), Reader()
    expected = whole.feed(data)
    found = [event for at in range(0, len(data), step) for event in pieces.feed(data[at : at + step])]
    assert (found, pieces.malformed) == (expected, whole.malformed)
    if whole.malformed is not None:
        assert whole.feed(FILE) == []
        assert not whole.is_inside_block


@given(st.integers(0, len(FILE) - 1), st.integers(0, 255))
def test_one_wrong_byte_spoils_at_most_what_follows(at: int, value: int) -> None:
    reader = Reader()
    found = reader.feed(FILE[:at] + bytes([value]) + FILE[at + 1 :])
    assert all(isinstance(event, CapturedName | CapturedPacket) for event in found)


def test_a_foreign_file_in_the_other_byte_order_with_its_own_units_is_read() -> None:
    section = block(0x0A0D0D0A, struct.pack(">IHHq", 0x1A2B3C4D, 1, 0, -1), ">")
    offset = option(14, struct.pack(">q", 1000), ">")
    interfaces = block(1, struct.pack(">HHI", 1, 0, 0) + option(9, b"\x8a", ">") + offset, ">")
    interfaces += block(1, struct.pack(">HHI", 101, 0, 0), ">")  # microseconds, where nothing else is said
    process = block(0x80000001, struct.pack(">I", 7), ">")
    options = option(0x8001, struct.pack(">I", 0), ">") + option(2, struct.pack(">I", 2), ">")
    first = packet(struct.pack(">IIIII", 0, 0, 2048, 0, 0), options, ">")
    second = packet(struct.pack(">IIIII", 1, 0, 5, 3, 9) + b"abc\0", b"", ">")
    assert Reader().feed(section + interfaces + process + first + second) == [
        CapturedPacket(1002 * 10**9, 1, b"", True, CapturedProcess(7, ""), ()),
        CapturedPacket(5000, 101, b"abc", None, None, ()),
    ]


def test_a_new_section_numbers_anew() -> None:
    reader = Reader()
    assert len(reader.feed(FILE + FILE)) == 2 * len(READ)
    reader.feed(pcapng.section_header(application="third") + packet())
    assert reader.malformed == Malformed(
        2 * len(FILE) + len(pcapng.section_header(application="third")), "a packet of an unknown interface"
    )


def test_an_option_that_makes_no_sense_is_no_option() -> None:
    options = option(2, b"\1") + option(0x8001, struct.pack("<I", 9))
    (read,) = Reader().feed(HEAD + packet(options=options))
    assert isinstance(read, CapturedPacket)
    assert (read.outbound, read.process) == (None, None)


IN_SECONDS = block(1, struct.pack("<HHI", 101, 0, 0) + option(9, b"\0"))


@pytest.mark.parametrize(
    ("data", "at", "why"),
    [
        (packet(), 0, "no section header"),
        (b"\n\r\r\n" + struct.pack("<III", 28, 1, 2), 0, "a section without byte order"),
        (block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 2, 0, -1)), 0, "version 2"),
        (block(0x0A0D0D0A, struct.pack("<I", 0x1A2B3C4D)), 0, "a block shorter than its fields"),
        (HEAD + struct.pack("<III", 6, 13, 0), len(HEAD), "a block of 13 bytes"),
        (HEAD + struct.pack("<III", 6, 8, 0), len(HEAD), "a block of 8 bytes"),
        (HEAD + struct.pack("<III", 6, 1 << 28, 0), len(HEAD), f"a block of {1 << 28} bytes"),
        (HEAD + struct.pack("<III", 6, 12, 16), len(HEAD), "a block whose lengths differ"),
        (HEAD + packet(struct.pack("<IIIII", 0, 0, 0, 4, 4)), len(HEAD), "a packet longer than its block"),
        (HEAD + packet(options=b"\1\0\0"), len(HEAD), "a block of 35 bytes"),
        (HEAD + packet(options=b"\1\0\4\0"), len(HEAD), "an option longer than its block"),
        (HEAD + block(4, option(1, b"abc")), len(HEAD), "a name without an address"),
        (HEAD + IN_SECONDS + packet(struct.pack("<IIIII", 1, 17, 0, 0, 0)), len(HEAD + IN_SECONDS), "a packet of no t"),
    ],
)
def test_damage_is_told_with_its_place(data: bytes, at: int, why: str) -> None:
    reader = Reader()
    reader.feed(data)
    assert reader.malformed is not None
    assert reader.malformed.at == at
    assert reader.malformed.why.startswith(why)


def test_what_a_section_numbers_and_names_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pcapng_blocks, "NUMBERED_LIMIT", 2)
    for each in (block(1, struct.pack("<HHI", 101, 0, 0)), block(0x80000001, struct.pack("<I", 7))):
        reader = Reader()
        reader.feed(pcapng.section_header(application="x") + each * 2)
        assert reader.malformed is None
        reader.feed(each)
        assert reader.malformed is not None
        assert reader.malformed.why == "a section with more than 2 of a kind"
    (name,) = Reader().feed(HEAD + block(4, option(1, bytes(range(4)) + b"x" * 5000)))
    assert isinstance(name, CapturedName)
    assert name.host == "x" * 1024


def test_the_packet_data_may_end_with_its_block() -> None:
    cut = struct.pack("<IIIII", 0, 0, 0, 0, 0) + b"\0\0\0\0"
    assert len(Reader().feed(HEAD + packet(cut))) == 1
    reader = Reader()
    reader.feed(HEAD + block(6, struct.pack("<IIIII", 0, 0, 0, 0, 0) + b"\1\0\0\0" + b"\2\0\1\0"))
    assert reader.malformed == Malformed(len(HEAD), "an option longer than its block")


def test_a_block_is_parsed_needs_more_or_is_malformed() -> None:
    whole = block(7, b"body")
    assert block_at(b"----" + whole, 4, "<") == Block(7, "<", b"body", 16)
    assert block_at(whole[:-1], 0, "<") is Want.NEED_MORE
    assert block_at(whole, 0, "") == "no section header"
