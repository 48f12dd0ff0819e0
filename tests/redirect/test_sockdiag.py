"""From an accepted socket to the client's, by the four-tuple."""

from __future__ import annotations

import socket
import struct

import pytest

from mitmsec.core.model import Endpoint
from mitmsec_redirect.sockdiag import CookieLookup

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
