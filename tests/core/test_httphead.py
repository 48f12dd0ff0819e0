"""The host of an HTTP/1 request: one that every reader would take, or none."""

from __future__ import annotations

import pytest

from mitmsec.core.clienthello import Malformed, NeedMore
from mitmsec.core.httphead import HEAD_LIMIT_BYTES, NamedHost, host_of


def named(fields: bytes, target: bytes = b"/", method: bytes = b"GET") -> NamedHost:
    data = b"?" * 9 + fields + b"\r\n"
    outcome = host_of(method, target, data, 9)
    assert isinstance(outcome, NamedHost), outcome
    return outcome


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        (b"Host: A.Example\r\n", "a.example"),
        (b"hOST:\ta.example.:8080 \r\n", "a.example"),
        (b"Accept: */*\r\nHost: a.example\r\nX: y\r\n", "a.example"),
        (b"Accept: */*\nHost: a.example\n", "a.example"),
        (b"Host: a.example\r\nHost: A.example:80\r\n", "a.example"),
        (b"X: y\r\n folded\r\nHost: a.example\r\n", "a.example"),
    ],
)
def test_a_host_that_is_certain(fields: bytes, name: str) -> None:
    assert named(fields) == NamedHost(name=name)


@pytest.mark.checklist("C9")
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (b"", "no Host field"),
        (b"Host:\r\n", "Host is not a host name"),
        (b"Host: a b\r\n", "Host is not a host name"),
        (b"Host: user@a.example\r\n", "Host is not a host name"),
        (b"Host: a.example\r\nHost: b.example\r\n", "different hosts in one request"),
        (b"Host : a.example\r\n", "space after the name of the Host field"),
        (b"Host: a.example\r\n b\r\n", "folded Host field"),
        (b"Host: 192.0.2.1:80\r\n", ""),
        (b"Host: [2001:db8::1]:80\r\n", ""),
    ],
)
def test_a_host_that_is_not_certain_is_no_name(fields: bytes, reason: str) -> None:
    assert named(fields) == NamedHost(name=None, reason=reason)


@pytest.mark.parametrize(
    ("method", "target", "fields", "name"),
    [
        (b"CONNECT", b"a.example:443", b"Host: a.example:443\r\n", "a.example"),
        (b"CONNECT", b"a.example:443", b"", "a.example"),
        (b"GET", b"http://a.example/x", b"Host: a.example\r\n", "a.example"),
        (b"GET", b"HTTP://me@A.example:80?x", b"", "a.example"),
        (b"GET", b"http://a.example/", b"Host: b.example\r\n", None),
    ],
)
def test_a_request_to_a_proxy_names_whom_it_wants(
    method: bytes, target: bytes, fields: bytes, name: str | None
) -> None:
    found = named(fields, target, method)
    assert (found.name, found.through_proxy) == (name, True)


@pytest.mark.parametrize("fields", [b"nonsense\r\n", b"a\x00b: c\r\n", b"a: b\rc\r\n", b": x\r\n", b"\x7f: x\r\n"])
def test_a_head_that_breaks_the_rules_is_malformed(fields: bytes) -> None:
    assert isinstance(host_of(b"GET", b"/", fields + b"\r\n", 0), Malformed)


def test_a_head_is_waited_for_up_to_a_limit() -> None:
    fields = b"Host: a.example\r\n"
    assert host_of(b"GET", b"/", fields, 0) == NeedMore()
    filler = b"a: b\r\n" * HEAD_LIMIT_BYTES
    assert isinstance(host_of(b"GET", b"/", filler[: HEAD_LIMIT_BYTES - 1], 0), NeedMore)
    assert host_of(b"GET", b"/", filler[:HEAD_LIMIT_BYTES] + b"\r\n\r\n", 0) == Malformed(
        reason="request head over 64 KiB"
    )
