"""The 80 bytes beside each packet, as the library itself lays them out."""

from __future__ import annotations

import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydivert.bpf import WinDivertAddress

from mitmsec.core.model import Endpoint, Transport
from mitmsec_redirect.divert_records import (
    FLAGS_AT,
    RECORD_BYTES,
    RecordFlag,
    SocketEvent,
    inbound,
    parse_connect,
    parse_connects,
)


def record(
    event: int = SocketEvent.CONNECT, protocol: int = 6, remote: tuple[int, ...] = (0xCB007109, 0xFFFF, 0, 0)
) -> WinDivertAddress:
    """Somebody connects to 203.0.113.9:443."""
    address = WinDivertAddress(Timestamp=5, Layer=3, Event=event)
    address.Socket.EndpointId = 0x1122334455667788
    address.Socket.ProcessId = 77
    address.Socket.LocalAddr[:] = (0xC0000201, 0xFFFF, 0, 0)
    address.Socket.LocalPort = 40000
    address.Socket.RemoteAddr[:] = remote
    address.Socket.RemotePort = 443
    address.Socket.Protocol = protocol
    return address


def test_an_event_of_linux_is_known_by_the_sockets_cookie() -> None:
    event = parse_connect(bytes(record()), has_cookie=True)
    assert event is not None
    assert (event.pid, event.connected_ns, event.cookie, event.local) == (77, 5, 0x1122334455667788, None)
    assert (event.transport, event.remote) == (Transport.TCP, None)


def test_an_event_of_windows_is_known_by_its_addresses() -> None:
    event = parse_connect(bytes(record(protocol=17)), has_cookie=False)
    assert event is not None
    assert (event.cookie, event.local) == (None, Endpoint.of("192.0.2.1", 40000))
    assert (event.transport, event.remote) == (Transport.UDP, Endpoint.of("203.0.113.9", 443))


def test_times_of_windows_are_ticks() -> None:
    fast = parse_connect(bytes(record()), has_cookie=False, ticks_per_s=10_000_000)
    odd = parse_connects(bytes(record()), 1, has_cookie=False, ticks_per_s=3_000_000)
    assert fast is not None
    assert (fast.connected_ns, [one.connected_ns for one in odd]) == (500, [1666])


def test_events_of_a_batch_are_found_by_their_place() -> None:
    first, second = record(), record(protocol=17)
    batch = bytes(first) + bytes(second)
    for has_cookie in (True, False):
        events = parse_connects(batch, 2, has_cookie=has_cookie)
        assert [event.transport for event in events] == [Transport.TCP, Transport.UDP]
        assert parse_connects(bytes(record(SocketEvent.CLOSE)), 1, has_cookie=has_cookie) == []


def test_an_ipv6_address_is_read_word_by_word() -> None:
    event = parse_connect(bytes(record(remote=(9, 0, 0, 0x20010DB8))), has_cookie=False)
    assert event is not None
    assert event.remote == Endpoint.of("2001:db8::9", 443)


@pytest.mark.parametrize("event", [kind for kind in SocketEvent if kind is not SocketEvent.CONNECT])
def test_other_events_are_not_connections(event: SocketEvent) -> None:
    for has_cookie in (True, False):
        assert parse_connect(bytes(record(event)), has_cookie=has_cookie) is None


def test_other_protocols_are_none_of_ours() -> None:
    for has_cookie in (True, False):
        assert parse_connect(bytes(record(protocol=1)), has_cookie=has_cookie) is None


@given(st.binary(min_size=RECORD_BYTES, max_size=RECORD_BYTES), st.booleans())
def test_no_record_raises(data: bytes, has_cookie: bool) -> None:
    parse_connect(data, has_cookie=has_cookie)


def test_what_is_turned_round_comes_in_with_its_checksums_to_be_computed() -> None:
    address = WinDivertAddress(Outbound=1, IPv6=1, IPChecksum=1, TCPChecksum=1, UDPChecksum=1, Sniffed=1)
    data = bytearray(bytes(address))
    assert data[FLAGS_AT] == 0xF3
    data[FLAGS_AT] = inbound(data[FLAGS_AT])
    assert data[FLAGS_AT] == RecordFlag.IPV6 | RecordFlag.SNIFFED
    assert ctypes.sizeof(address) == RECORD_BYTES
