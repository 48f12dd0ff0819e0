"""What a client's first bytes are taken for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.engine.firstline import is_http, looks_like_http


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        (b"GET / HTTP/1.1\r\n", True),
        (b"m-search * HTTP/1.0\n", True),
        (b"get\t/  http/1.1 \r\n", True),
        (b"\r\n\r\nGET / HTTP/1.1\r\n", True),
        (b"", None),
        (b"\r\n", None),
        (b"GET", None),
        (b"GET /a/long/pa", None),
        (b"GET x", None),
        (b"NICK some", None),
        (b"NICK somebody\r\n", False),
        (b"PRI * HTTP/2.0\r\n\r\n", False),
        (b"\x00\x01", False),
        (b"*3\r\n", False),
        (b"GET /" + b"x" * (1 << 14), True),
    ],
)
def test_what_looks_like_http(first: bytes, expected: bool | None) -> None:
    assert looks_like_http(first) is expected


@pytest.mark.parametrize(
    ("alpn", "expected"), [(b"h2", True), (b"http/1.1", True), (b"http/1.0", True), (b"h3", False), (b"", None)]
)
def test_what_was_agreed_to_says_whether_it_is_http(alpn: bytes, expected: bool | None) -> None:
    assert is_http(alpn) is expected


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_an_answer_is_not_taken_back_when_more_comes(first: bytes, more: bytes) -> None:
    answer = looks_like_http(first)
    if answer is not None:
        assert looks_like_http(first + more) is answer
