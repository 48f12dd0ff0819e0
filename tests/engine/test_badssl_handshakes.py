"""The handshakes of the mirror: each server is as bad as its category says, and whoever agrees to one is caught."""

from __future__ import annotations

import socket

import pytest
from badssl import PAGE, PATIENCE_S, Category
from badssl_handshakes import ByHand, GnuTls, OpenSsl, WentOn, handshake_categories, record
from hellos import body, message, records

REAL = [one for one in handshake_categories() if isinstance(one.server, OpenSsl | GnuTls)]
BY_HAND = [one for one in handshake_categories() if isinstance(one.server, ByHand)]
HELLO = records(message(body(None)))
SUITE_AT = 5 + 4 + 2 + 32 + 1  # after the heads, version, random and the length of no session
ALERT = bytes.fromhex("15 0303 0002 022f")
KEY_EXCHANGE = bytes.fromhex("16 0303 0005 10 000001 00")


@pytest.mark.parametrize("category", [pytest.param(one, id=one.id) for one in REAL])
def test_a_careless_client_gets_the_page(category: Category) -> None:
    """With the same suite, version and group, and nothing else: so what refuses it refuses just that."""
    if category.lacks:
        pytest.skip(category.lacks)
    assert isinstance(category.server, OpenSsl | GnuTls)
    with category.serving() as port:
        assert PAGE in category.server.careless(port)


def chosen(category: Category, answer: bytes) -> int:
    """The suite that the server chooses. The client answers so once the server has said all that it has to say."""
    with category.serving() as port, socket.create_connection(("127.0.0.1", port), PATIENCE_S) as sock:
        with sock.makefile("rb") as stream:
            sock.sendall(HELLO)
            hello, _ = record(stream), record(stream)
            sock.sendall(answer)
            sock.shutdown(socket.SHUT_WR)
            assert stream.read() == b"", "nothing follows"
    return int.from_bytes(hello[SUITE_AT : SUITE_AT + 2])


@pytest.mark.parametrize("category", [pytest.param(one, id=one.id) for one in BY_HAND])
def test_who_goes_on_has_agreed(category: Category) -> None:
    assert isinstance(category.server, ByHand)
    assert chosen(category, ALERT) == category.server.suite
    assert chosen(category, b"") == category.server.suite, "who hangs up has not"
    with pytest.raises(WentOn, match=category.id):
        chosen(category, KEY_EXCHANGE)
