"""Where the packet begins, on every link that captures come from."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec_redirect.link_types import network

PACKET = b"\x45 and the rest of a packet"
V4, V6, ARP = b"\x08\x00", b"\x86\xdd", b"\x08\x06"


@pytest.mark.parametrize(
    ("link_type", "before"),
    [
        (101, b""),
        (228, b""),
        (229, b""),
        (1, bytes(12) + V4),
        (1, bytes(12) + V6),
        (1, bytes(12) + b"\x81\x00\x00\x07" + V4),
        (1, bytes(12) + b"\x88\xa8\x00\x07\x81\x00\x00\x08" + V6),
        (113, bytes(14) + V4),
        (276, V6 + bytes(18)),
        (0, b"\x02\x00\x00\x00"),
        (108, b"\x00\x00\x00\x02"),
    ],
)
def test_the_packet_is_what_follows_the_links_own_header(link_type: int, before: bytes) -> None:
    assert network(link_type, before + PACKET) == PACKET


@pytest.mark.parametrize(
    ("link_type", "data"),
    [
        (1, bytes(12) + ARP + PACKET),
        (1, bytes(12) + b"\x81\x00\x00\x07" * 5 + V4 + PACKET),
        (1, bytes(7)),
        (113, bytes(14) + ARP + PACKET),
        (276, ARP + bytes(18) + PACKET),
        (99, PACKET),
    ],
)
def test_what_carries_no_ip_is_no_packet(link_type: int, data: bytes) -> None:
    assert network(link_type, data) == b""


@given(st.sampled_from([0, 1, 101, 108, 113, 228, 229, 276, 7]), st.binary(max_size=64))
def test_no_frame_raises_and_nothing_is_added_to_it(link_type: int, data: bytes) -> None:
    found = network(link_type, data)
    assert data.endswith(found)
