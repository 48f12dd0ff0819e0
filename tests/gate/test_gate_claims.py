"""What unfinished first bytes claim to be."""

from __future__ import annotations

import pytest

from mitmsec.gate.claims import claims, connect_host


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


@pytest.mark.parametrize(
    ("target", "host"),
    [("A.test:443", "a.test"), ("a.test.", "a.test"), ("192.0.2.1:443", "192.0.2.1"),
     ("[2001:DB8::1]:443", "2001:db8::1"), ("a b:443", ""), ("joe@a.test:443", ""), ("2001:db8::1", ""), (":443", "")],
)  # fmt: skip
def test_connect_is_told_from_other_requests_to_a_proxy_and_says_where_to(target: str, host: str) -> None:
    assert connect_host(f"\r\nCONNECT {target} HTTP/1.1\r\n\r\n".encode()) == host
    assert connect_host(b"GET http://a.test/ HTTP/1.1\r\n\r\n") is None
