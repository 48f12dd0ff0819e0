"""Names that requests carry against the name that was decided."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.engine.authority import agrees, host_of, port_of, public_url


@pytest.mark.parametrize(
    "authority",
    [b"www.a.test", b"www.a.test:443", b"www.a.test:1", b"www.a.test:", b"WWW.A.test", b"www.a.test.", b" www.a.test "],
)
def test_the_decided_name_in_its_spellings(authority: bytes) -> None:
    assert agrees("www.a.test", [authority])


@pytest.mark.parametrize(
    "authority",
    [
        b"", b"a.test", b"www.a.test.evil.test", b"evil.test", b"user@www.a.test", b"www.a.test@evil.test",
        b"www.a.test:x", b"www.a.test:443:443", b"www.a.test:1234567", b"www.a.test/", b"www.a.test,evil.test",
        b"www.a.test\x00", b"\xff\xfe", b"[www.a.test]", b"www..a.test", b"www.a.test evil.test",
    ],
)  # fmt: skip
def test_everything_else(authority: bytes) -> None:
    assert not agrees("www.a.test", [authority])
    assert not agrees("www.a.test", [b"www.a.test", authority])


@pytest.mark.parametrize(
    ("decided", "authority"),
    [
        ("xn--bcher-kva.test", "bücher.test".encode()),
        ("xn--bcher-kva.test", b"XN--bcher-kva.test:443"),
        ("::1", b"[::1]:8443"),
        ("::1", b"[0:0::1]"),
        ("127.0.0.1", b"127.0.0.1:80"),
    ],
)
def test_a_labels_and_addresses_compare_by_value(decided: str, authority: bytes) -> None:
    assert agrees(decided, [authority])


@given(st.binary(max_size=60))
def test_no_bytes_make_it_raise(authority: bytes) -> None:
    host = host_of(authority)
    assert host is None or host
    assert 0 <= port_of(authority, "https") < 65536
    assert agrees("www.a.test", [authority]) is (host == "www.a.test")


@pytest.mark.parametrize(
    ("authority", "port"),
    [(b"a.test", 80), (b"a.test:", 80), (b"a.test:8080", 8080), (b"[::1]:81", 81), (b"[::1]", 80), (b"a.test:x", 0),
     (b"a.test:65536", 0), (b"a.test:123456", 0), (b"\xff:1", 1), (b"a.test:\xb2", 0)],
)  # fmt: skip
def test_the_port_that_an_authority_means(authority: bytes, port: int) -> None:
    assert port_of(authority, "http") == port


@pytest.mark.parametrize(
    ("scheme", "name", "port", "target", "url"),
    [
        ("https", "a.test", 443, "/", "https://a.test/"),
        ("https", "a.test", 8443, "/x", "https://a.test:8443/x"),
        ("http", "::1", 80, "/x", "http://[::1]/x"),
        ("https", "a.test", 443, "/x?a=1&b=2&a=3", "https://a.test/x?a=&b=&a="),
        ("https", "a.test", 443, "/x?token", "https://a.test/x?"),
        ("https", "a.test", 443, "/x?a=1;b=2=3", "https://a.test/x?a=&b="),
        ("https", "a.test", 443, "/x#secret", "https://a.test/x"),
        ("https", "a.test", 443, "*", "https://a.test*"),
        ("https", "a.test", 443, "x", "https://a.test/x"),
        ("https", "a.test", 443, "/?" + "k" * 100 + "=v", "https://a.test/?" + "k" * 64 + "="),
    ],
)
def test_urls_for_the_record_have_no_query_values(scheme: str, name: str, port: int, target: str, url: str) -> None:
    assert public_url(scheme, name, port, target) == url


@given(st.text(max_size=40), st.text(alphabet="0123456789abcdef", min_size=12, max_size=12))
def test_a_value_never_survives(key: str, value: str) -> None:
    assert value not in public_url("https", "a.test", 443, f"/p?{key.replace('#', '')}={value}").partition("?")[
        2
    ].replace(key[:64], "")
