"""Alerts as OpenSSL words them, and as the wire carries them."""

from __future__ import annotations

import pytest

from mitmsec.engine import alerts
from mitmsec.engine.contexts import OriginContext
from mitmsec.engine.openssl import TlsFailed

EVERY = (10, 20, 21, 22, 30, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, 60, 70, 71, 80, 86, 90, 100, 109, 110, 111,
         112, 113, 114, 115, 116, 120)  # fmt: skip


@pytest.mark.parametrize("number", EVERY)
def test_what_a_peer_sends_is_recognised(number: int) -> None:
    """Asked of the OpenSSL that is really there: its words change with its versions."""
    session = OriginContext(b"").session("origin.test", sni=True, alpn=(), tls12=True)
    session.handshake()
    session.feed(alerts.record(number))
    with pytest.raises(TlsFailed) as caught:
        session.handshake()
    assert caught.value.alert == number


def test_an_error_of_ours_is_no_alert_of_the_peers() -> None:
    session = OriginContext(b"").session("origin.test", sni=True, alpn=(), tls12=True)
    session.handshake()
    session.feed(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(TlsFailed) as caught:
        session.handshake()
    assert caught.value.alert is None


@pytest.mark.parametrize("reason", ["", "wrong version number", "tls", "ssl/tls alert of another world"])
def test_other_words_are_no_alert(reason: str) -> None:
    assert alerts.received(reason) is None


@pytest.mark.parametrize(
    ("reason", "alert"), [("unsupported protocol", 70), ("wrong version number", 40), ("bad signature", 40)]
)
def test_what_we_find_wrong_has_an_alert_for_the_client(reason: str, alert: int) -> None:
    assert alerts.for_local(reason) == alert


def test_distrust() -> None:
    assert [number for number in EVERY if alerts.is_distrust(number)] == [42, 43, 44, 45, 46, 48]
    assert not alerts.is_distrust(None)
