"""What unfinished first bytes claim to be."""

from __future__ import annotations

import pytest

from mitmsec.gate.claims import claims, is_connect


@pytest.mark.parametrize(
    "data",
    [b"\x16", b"\x16\x03\x01", b"G", b"ge", b"GET ", b"GET /x HT", b"FROB /x", b"FROB *", b"FROB http:", b"\r", b"\r\n",
     b"\r\nPO", b"PRI * HTTP/2", b"FROB / HTTP/1.1\r\nHost: a"],
)  # fmt: skip
def test_a_hello_or_request_that_has_begun_is_a_claim(data: bytes) -> None:
    assert claims(data)


@pytest.mark.parametrize("data", [b"", b"pin", b"SSH", b"hello world", b"GETS", b"GETS x", b"\x00\x20"])
def test_what_is_no_beginning_of_either_claims_nothing(data: bytes) -> None:
    assert not claims(data)


def test_connect_is_told_from_other_requests_to_a_proxy() -> None:
    assert is_connect(b"\r\nCONNECT a.test:443 HTTP/1.1\r\n\r\n")
    assert not is_connect(b"GET http://a.test/ HTTP/1.1\r\n\r\n")
