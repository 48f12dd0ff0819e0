"""Name servers as /etc/resolv.conf names them."""

from __future__ import annotations

from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core.resolv_conf import nameservers

FILE = """\
# nameserver 192.0.2.1
; nameserver 192.0.2.2
search example.test
nameserver 127.0.0.53
nameserver\t2001:DB8:0::1   # the comment of a careless person
 nameserver 127.0.0.53

nameserver
nameserver fe80::1%eth0
nameserver router
nameservers 192.0.2.3
"""


def test_addresses_are_told_once_in_their_order_and_canonical() -> None:
    assert nameservers(FILE) == ("127.0.0.53", "2001:db8::1")


def test_a_file_that_names_nobody_names_nobody() -> None:
    assert nameservers("") == ()


@given(st.text())
def test_any_text_gives_addresses_or_nothing(text: str) -> None:
    for said in (text, f"nameserver {text}", f"nameserver 192.0.2.7\n{text}"):
        found = nameservers(said)
        assert all(str(ip_address(address)) == address for address in found)
    assert found[:1] == ("192.0.2.7",)
