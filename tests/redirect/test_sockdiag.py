"""From an accepted socket to the client's, by the four-tuple."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core.model import Endpoint
from mitmsec_redirect.sockdiag import INET_DIAG_CGROUP_ID, CookieLookup, cgroup_in

SO_COOKIE = 57


@pytest.mark.parametrize(
    ("family", "address", "listen"),
    [
        (socket.AF_INET, "127.0.0.1", "127.0.0.1"),
        (socket.AF_INET6, "::1", "::1"),
        (socket.AF_INET6, "::ffff:127.0.0.1", "127.0.0.1"),
    ],
)
def test_the_clients_own_socket_is_found(family: socket.AddressFamily, address: str, listen: str) -> None:
    listen_family = socket.AF_INET6 if ":" in listen else socket.AF_INET
    lookup = CookieLookup()
    with socket.create_server((listen, 0), family=listen_family) as server, socket.socket(family) as client:
        client.connect((address, server.getsockname()[1]))
        accepted, _ = server.accept()
        with accepted:
            theirs, ours = (Endpoint.of(*name[:2]) for name in (accepted.getpeername(), accepted.getsockname()))
            own = struct.unpack("=Q", client.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))[0]
            assert lookup.cookie_of(theirs, ours) == own
            assert lookup.cookie_of(ours, theirs) not in (own, None), "the other way round it is the accepted socket"
    lookup.close()


def test_a_connection_that_is_not_there_has_no_cookie() -> None:
    lookup = CookieLookup()
    assert lookup.cookie_of(Endpoint(address="127.0.0.1", port=1), Endpoint(address="127.0.0.1", port=2)) is None
    lookup.close()


def attribute(kind: int, value: bytes) -> bytes:
    return (struct.pack("=HH", 4 + len(value), kind) + value).ljust((7 + len(value)) & ~3, b"\0")


def test_the_cgroup_is_found_among_other_attributes() -> None:
    others = attribute(8, b"\0") + attribute(INET_DIAG_CGROUP_ID, b"short")
    message = bytes(72) + others + attribute(INET_DIAG_CGROUP_ID, struct.pack("=Q", 1 << 40))
    assert cgroup_in(message) == 1 << 40
    assert cgroup_in(bytes(72) + others) == 0
    assert cgroup_in(message[:-1]) == 0


@given(st.binary(max_size=120))
def test_no_answer_raises_or_keeps_us(message: bytes) -> None:
    assert cgroup_in(bytes(72) + message) >= 0
    assert cgroup_in(message[:71]) == 0
