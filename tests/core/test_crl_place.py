"""The place of revocation lists is one that nobody else can be reached at."""

from __future__ import annotations

import ipaddress

from mitmsec.core.crl_place import CRL_PLACE, crl_path, crl_url


def test_it_lies_where_nobody_is_and_the_url_leads_to_its_path() -> None:
    assert ipaddress.ip_address(CRL_PLACE.address) in ipaddress.ip_network("192.0.2.0/24")  # TEST-NET-1
    assert crl_url(b"\x0a\xff") == f"http://{CRL_PLACE.address}/0aff.crl"
    assert crl_url(b"\x0a\xff").endswith(crl_path(b"\x0a\xff"))
