"""What conntrack says on an accepted socket, asked without privilege."""

from __future__ import annotations

import socket

import pytest
from nft_stage import as_nobody, needs_nft

from mitmsec.core.model import Endpoint
from mitmsec_redirect import nft
from mitmsec_redirect.original_destination import original_destination

pytestmark = [pytest.mark.root, needs_nft]


def redirected(port: int) -> None:
    nft.load(
        f"table inet nat {{ chain out {{ type nat hook output priority -100;tcp dport 80 redirect to :{port}; }}; }}\n"
    )


@pytest.mark.parametrize(
    ("listen", "family", "to", "origin"),
    [
        ("127.0.0.1", socket.AF_INET, "127.7.7.7", "127.7.7.7"),
        ("::1", socket.AF_INET6, "fd77::1", "fd77::1"),
        ("::", socket.AF_INET, "127.7.7.7", "127.7.7.7"),  # accepted as ::ffff:127.0.0.1
        ("127.0.0.1", socket.AF_INET6, "::ffff:127.7.7.7", "127.7.7.7"),
    ],
)
def test_the_destination_before_the_redirection_is_known(
    own_netns: None, listen: str, family: socket.AddressFamily, to: str, origin: str
) -> None:
    listen_family = socket.AF_INET6 if ":" in listen else socket.AF_INET
    both = listen == "::"
    with socket.create_server((listen, 0), family=listen_family, dualstack_ipv6=both) as server:
        redirected(server.getsockname()[1])
        with socket.create_connection((to, 80)) if family is socket.AF_INET else socket.socket(family) as client:
            if family is socket.AF_INET6:
                client.connect((to, 80))
            with server.accept()[0] as accepted:
                assert original_destination(accepted) == Endpoint(address=origin, port=80)


def test_a_connection_that_came_by_itself_has_none(own_netns: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()), server.accept()[0] as accepted:
            assert original_destination(accepted) is None, "conntrack does not even run here"
        redirected(server.getsockname()[1])
        with socket.create_connection(server.getsockname()), server.accept()[0] as accepted:
            assert original_destination(accepted) is None, "it runs, and says that nothing was changed"


def test_it_takes_no_privilege(own_netns: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        redirected(server.getsockname()[1])
        with socket.create_connection(("127.7.7.7", 80)), server.accept()[0] as accepted:
            assert as_nobody(lambda: str(original_destination(accepted))) == "127.7.7.7:80"


def test_a_socket_that_is_closed_raises() -> None:
    sock = socket.socket()
    sock.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        original_destination(sock)
