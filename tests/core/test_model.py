"""Endpoints are parsed once and compared by content."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core.model import Endpoint


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("192.0.2.1", "192.0.2.1:443"),
        ("::ffff:192.0.2.1", "192.0.2.1:443"),
        ("2001:DB8:0::1", "[2001:db8::1]:443"),
        ("fe80::1%eth0", "[fe80::1]:443"),
    ],
)
def test_an_address_has_one_spelling(address: str, shown: str) -> None:
    assert str(Endpoint.of(address, 443)) == shown


@pytest.mark.parametrize(("address", "port"), [("example.com", 1), ("", 1), ("192.0.2.1", -1), ("192.0.2.1", 65536)])
def test_what_is_no_address_or_port_is_refused(address: str, port: int) -> None:
    with pytest.raises(ValueError):
        Endpoint.of(address, port)


@given(st.ip_addresses(), st.integers(0, 0xFFFF))
def test_parsing_what_is_shown_changes_nothing(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int
) -> None:
    endpoint = Endpoint.of(str(address), port)
    assert Endpoint.of(endpoint.address, port) == endpoint
