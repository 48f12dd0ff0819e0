"""Messages of rtnetlink: whatever the bytes, they parse or are NetlinkBroken."""

from __future__ import annotations

import contextlib
import select
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redirect_sandbox import ip

from mitmsec_redirect import netlink
from mitmsec_redirect.netlink import NetlinkBroken, RouteSocket


@given(st.binary(max_size=200))
def test_any_bytes_parse_or_are_broken(data: bytes) -> None:
    with contextlib.suppress(NetlinkBroken):
        for _, _, _, payload in netlink.messages(data):
            netlink.parse(payload, netlink.ROUTE_MESSAGE)
    with contextlib.suppress(NetlinkBroken):
        netlink.parse(data, netlink.RULE_MESSAGE)


def test_attributes_are_found_behind_the_fixed_part() -> None:
    payload = bytes(8) + struct.pack("=BBBBII", 10, 0, 64, 0, 1, 2)[:0]
    fixed = netlink.ADDRESS_MESSAGE.pack(10, 64, 0, 0, 3)
    attributes = struct.pack("=HH", 5, 1) + b"a" + bytes(3) + struct.pack("=HH", 6, 0x8002) + b"bc"
    reply = netlink.parse(fixed + attributes, netlink.ADDRESS_MESSAGE)
    assert payload == bytes(8)
    assert reply.fields == (10, 64, 0, 0, 3)
    assert reply.attributes == {1: b"a", 2: b"bc"}


def test_loopback_has_a_route_and_a_source() -> None:
    asking = RouteSocket()
    reply = asking.route_to(socket.inet_aton("127.0.0.1"))
    assert reply.attributes[netlink.RTA_PREFSRC] == socket.inet_aton("127.0.0.1")
    asking.close()


def test_a_dump_ends_and_a_question_follows_on_the_same_socket() -> None:
    asking = RouteSocket()
    rules = asking.dump(netlink.RTM_GETRULE, socket.AF_INET, netlink.RULE_MESSAGE)
    assert len(rules) >= 3, "local, main, default"
    assert asking.route_to(socket.inet_aton("127.0.0.1")).fields[0] == socket.AF_INET
    asking.close()


@pytest.mark.root
def test_no_route_is_an_error_with_the_kernels_errno(own_netns: None) -> None:
    asking = RouteSocket()
    with pytest.raises(OSError, match="ENETUNREACH"):
        asking.route_to(socket.inet_aton("203.0.113.9"))
    asking.close()


@pytest.mark.root
def test_changes_are_told(own_netns: None) -> None:
    news = netlink.notifications()
    for command in ("addr add 10.9.0.1/24 dev va", "route add 10.8.0.0/16 dev va", "rule add fwmark 3 lookup 9"):
        ip(command)
        assert select.select([news], [], [], 5)[0], command
        with contextlib.suppress(BlockingIOError):
            while news.recv(netlink.RECEIVE_BYTES):
                pass
    news.close()
