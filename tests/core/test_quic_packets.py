"""QUIC's Initial packets, by the examples of RFC 9001 and RFC 9369 and by what may be wrong with one."""

from __future__ import annotations

import pytest
import quic_packets
from hypothesis import given
from hypothesis import strategies as st
from quic_packets import ID, V1, V2, initial

from mitmsec.core.quic_packets import Fields, Keys, client_keys, initials, opened
from mitmsec_certs.packet_cipher import Aes128

CIPHER = Aes128()


@pytest.mark.parametrize(
    ("version", "key", "iv", "header"),
    [
        (V1, "1f369613dd76d5467730efcbe3b1a22d", "fa044b2f42a3fd3b46fb255c", "9f50449e04a0e810283a1e9933adedd2"),
        (V2, "8b1a0bc121284290a29e0971b5cd045d", "91f73e2351d8fa91660e909f", "45b95e15235d6f45a6b19cbcb0294ba9"),
    ],
)
def test_keys_are_those_of_the_standards(version: int, key: str, iv: str, header: str) -> None:
    """RFC 9001 appendix A.1, RFC 9369 appendix A.1."""
    assert client_keys(version, ID) == Keys(key=bytes.fromhex(key), iv=bytes.fromhex(iv), header=bytes.fromhex(header))


HELLO_FRAME = bytes.fromhex(
    "060040f1010000ed0303ebf8fa56f12939b9584a3896472ec40bb863cfd3e86804fe3a47f06a2b69484c00000413011302010000c0"
    "00000010000e00000b6578616d706c652e636f6dff01000100000a00080006001d00170018001000070005046"
    "16c706e000500050100000000003300260024001d00209370b2c9caa47fbabaf4559fedba753de171fa71f50f1ce15d43e994ec74"
    "d748002b0003020304000d0010000e0403050306030203080408050806002d00020101001c00024001003900320408ffffffffffffffff"
    "05048000ffff07048000ffff0801100104800075300901100f088394c8f03e51570806048000ffff"
)


def test_the_packet_of_the_standard_is_written_and_read() -> None:
    """RFC 9001 appendix A.2: its number is 2, in four bytes, and 1,162 bytes of frames."""
    packet = initial(HELLO_FRAME.ljust(1162, b"\0"), 2, number_size=4)
    assert len(packet) == 1200
    assert packet.startswith(bytes.fromhex("c000000001088394c8f03e5157080000449e7b9aec34d1b1c98dd7689fb8ec11"))
    assert packet.endswith(bytes.fromhex("e221af44860018ab0856972e194cd934"))
    (found,) = initials(packet)
    inside = opened(found, client_keys(V1, ID), CIPHER)
    assert inside is not None
    assert inside.frames == HELLO_FRAME.ljust(1162, b"\0")
    assert inside.is_reserved_clear


@pytest.mark.parametrize("version", [V1, V2])
def test_a_packet_opens_by_its_own_keys_only(version: int) -> None:
    (found,) = initials(initial(b"\x01", 7, version=version, token=b"token", source=b"me"))
    assert (found.version, found.destination) == (version, ID)
    assert opened(found, client_keys(version, b"another"), CIPHER) is None
    inside = opened(found, client_keys(version, ID), CIPHER)
    assert inside is not None
    assert inside.frames == b"\x01\0\0\0"


def test_initials_are_found_among_other_packets_until_something_is_unreadable() -> None:
    one, two = initial(b"\x01", 0), initial(b"\x01", 1)
    early_data = b"\xd0" + one[1:]  # its token's length is now taken for the packet's
    assert [found.packet for found in initials(one + two)] == [one, two]
    assert [found.packet for found in initials(one + bytes(50) + two)] == [one]
    assert [found.packet for found in initials(early_data)] == []
    handshake = bytes([0xE0]) + V1.to_bytes(4) + bytes([8]) + ID + bytes([0, 2]) + b"ab"
    assert [found.packet for found in initials(handshake + two)] == [two]


def test_a_packet_whose_fixed_bit_is_clear_is_read_as_its_server_may() -> None:
    (found,) = initials(initial(b"\x01", fixed_bit=0))
    inside = opened(found, client_keys(V1, ID), CIPHER)
    assert inside is not None
    assert inside.frames == b"\x01\0\0\0"


@pytest.mark.parametrize(
    "change",
    [
        lambda packet: b"\x40" + packet[1:],  # short header
        lambda packet: packet[:1] + b"\x0a\x1a\x2a\x3a" + packet[5:],  # of a version that provokes another
        lambda packet: packet[:5] + b"\x15" + packet[6:],  # a connection id of 21 bytes
        lambda packet: packet[:14] + b"\x15" + packet[15:],  # the client's, too
    ],
)
def test_what_is_no_packet_of_a_known_version_is_passed_over(change: object) -> None:
    assert callable(change)
    assert list(initials(change(initial(b"\x01")))) == []


@given(st.integers(0, 43))
def test_a_packet_that_ends_early_is_none(size: int) -> None:
    packet = initial(bytes(4), token=b"abc", source=b"me")
    assert len(packet) == 44
    assert list(initials(packet[:size])) == []


def test_a_packet_too_short_for_its_protection_does_not_open() -> None:
    head = bytes([0xC0]) + V1.to_bytes(4) + bytes([8]) + ID + bytes([0, 0])
    (found,) = initials(head + quic_packets.varint(19) + bytes(19))
    assert opened(found, client_keys(V1, ID), CIPHER) is None
    (found,) = initials(head + quic_packets.varint(20) + bytes(20))
    assert opened(found, client_keys(V1, ID), CIPHER) is None


def test_reserved_bits_are_told() -> None:
    (found,) = initials(initial(b"\x01", reserved=1))
    inside = opened(found, client_keys(V1, ID), CIPHER)
    assert inside is not None
    assert not inside.is_reserved_clear


@pytest.mark.parametrize(
    ("data", "value"),
    [("c2197c5eff14e88c", 151288809941952652), ("9d7f3e7d", 494878333), ("7bbd", 15293), ("25", 37), ("4025", 37)],
)
def test_numbers_are_those_of_the_standard(data: str, value: int) -> None:
    """RFC 9000 appendix A.1."""
    fields = Fields(bytes.fromhex(data))
    assert (fields.varint(), fields.left) == (value, 0)
    assert Fields(bytes.fromhex(data)[:-1]).varint() is None
    assert fields.varint() is None


def test_zeroes_are_passed_up_to_anything_else() -> None:
    fields = Fields(b"\0\0\x01\0")
    fields.pass_zeroes()
    assert (fields.at, fields.number(1)) == (2, 1)
    fields.pass_zeroes()
    assert fields.left == 0
