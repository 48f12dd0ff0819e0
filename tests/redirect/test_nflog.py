"""Logged packets, from the kernel and made up."""

from __future__ import annotations

import contextlib
import os
import socket
import struct

import pytest
from descriptors import descriptors
from hypothesis import given
from hypothesis import strategies as st
from nft_stage import needs_nft

from mitmsec.core.model import Transport
from mitmsec_redirect import nflog, nft
from mitmsec_redirect.nflog import PacketLog, parse
from mitmsec_redirect.nfnetlink import attribute
from mitmsec_redirect.records import Reason

pytestmark = [pytest.mark.root, needs_nft]


def log_udp(group: int, prefix: str) -> None:
    nft.load(
        "table inet logging { chain out { type filter hook output priority 0;"
        f'udp dport 443 log prefix "{prefix}" group {group} snaplen 128; }}; }}\n'
    )


def send(count: int = 1) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _ in range(count):
            sock.sendto(b"x" * 1200, ("127.0.0.1", 443))
        return int(sock.getsockname()[1])


def test_a_logged_packet_says_why_what_became_of_it_and_whose_it_is(own_netns: None) -> None:
    with contextlib.closing(PacketLog()) as log:
        log_udp(log.group, "quic_refused denied")
        port = send()
        (logged,) = log.drain(10)
        assert (logged.reason, logged.denied, logged.uid) == (Reason.QUIC_REFUSED, True, os.getuid())
        assert (logged.heading.transport, logged.heading.source.port) == (Transport.UDP, port)
        assert logged.heading.payload_bytes == 1200, "although only its head was logged"
        assert log.drain(10) == []


def test_what_does_not_fit_is_dropped_and_the_rest_still_told(own_netns: None) -> None:
    with contextlib.closing(PacketLog()) as log:
        log_udp(log.group, "gate_stalled passed")
        log._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        send(500)
        found = log.drain(1000)
        assert 0 < len(found) < 500
        assert {one.denied for one in found} == {False}
        send()
        assert len(log.drain(10)) == 1


def test_each_log_has_a_group_of_its_own(own_netns: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.closing(PacketLog()) as one, contextlib.closing(PacketLog()) as two:
        assert (one.group, two.group) == (nflog.GROUPS[0], nflog.GROUPS[1])
        monkeypatch.setattr(nflog, "GROUPS", range(nflog.GROUPS[0], nflog.GROUPS[2]))
        before = len(descriptors())
        with pytest.raises(OSError, match="no NFLOG group is free"):
            PacketLog()
        assert len(descriptors()) == before


# --- made up ----------------------------------------------------------------------------------------------------------
def datagram(*attributes: bytes, kind: int = nflog.ULOG << 8 | nflog.PACKET) -> bytes:
    payload = struct.pack("!BBH", socket.AF_INET, 0, 7) + b"".join(attributes)
    return struct.pack("=IHHII", 16 + len(payload), kind, 0, 0, 0) + payload


PACKET = struct.pack("!BxHxxHxB2x4s4s", 0x45, 28, 0, 17, bytes([10, 0, 0, 1]), bytes([9, 9, 9, 9])) + bytes(8)
HEAD = attribute(nflog.PAYLOAD, PACKET)


def test_a_packet_without_an_owner_has_none() -> None:
    (logged,) = parse(datagram(HEAD, attribute(nflog.PREFIX, b"no_memory denied\0")))
    assert (logged.uid, logged.reason) == (None, Reason.NO_MEMORY)
    (logged,) = parse(
        datagram(HEAD, attribute(nflog.PREFIX, b"no_memory passed\0"), attribute(nflog.UID, b"\0\0\3\xe8"))
    )
    assert (logged.uid, logged.denied) == (1000, False)


@pytest.mark.parametrize(
    "other",
    [
        datagram(HEAD, attribute(nflog.PREFIX, b"somebody else's")),
        datagram(HEAD),
        datagram(attribute(nflog.PREFIX, b"no_memory denied\0")),
        datagram(HEAD, attribute(nflog.PREFIX, b"no_memory denied\0"), kind=2),
        datagram(HEAD)[:-4],
    ],
)
def test_what_is_none_of_ours_does_not_count(other: bytes) -> None:
    assert list(parse(other)) == []


@given(st.binary(max_size=80) | st.binary(max_size=60).map(datagram))
def test_no_bytes_raise(data: bytes) -> None:
    assert all(logged.reason in Reason for logged in parse(data))
