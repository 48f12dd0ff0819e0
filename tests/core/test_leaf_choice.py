"""Which kind of key a client wants, as real clients say it, and as odd ones do."""

from __future__ import annotations

import ssl

import pytest
from msgspec.structs import replace

from mitmsec.core.clienthello import ClientHello, parse
from mitmsec.core.leaf_choice import LeafKeyKind, leaf_key

P256, RSA2048 = LeafKeyKind


def hello(ciphers: str = "DEFAULT", *, only_tls12: bool = False) -> ClientHello:
    """As OpenSSL writes it."""
    context = ssl.create_default_context()
    context.set_ciphers(ciphers)
    if only_tls12:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    out = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="a.test")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    parsed = parse(out.read())
    assert isinstance(parsed, ClientHello)
    return parsed


@pytest.mark.parametrize("only_tls12", [False, True])
@pytest.mark.parametrize("tls13", [False, True])
def test_a_usual_client_gets_p256(only_tls12: bool, tls13: bool) -> None:
    assert leaf_key(hello(only_tls12=only_tls12), tls13=tls13) is P256
    assert leaf_key(None, tls13=tls13) is P256


def test_a_client_that_has_suites_with_rsa_only_gets_rsa_where_they_count() -> None:
    """In TLS 1.3 a suite says nothing of the certificate."""
    ours = hello("ECDHE-RSA-AES128-GCM-SHA256")
    assert leaf_key(ours, tls13=True) is P256
    assert leaf_key(ours, tls13=False) is RSA2048
    assert leaf_key(hello("ECDHE-RSA-AES128-GCM-SHA256", only_tls12=True), tls13=True) is RSA2048


@pytest.mark.parametrize("tls13", [False, True])
def test_a_client_that_does_not_take_the_signature_gets_rsa(tls13: bool) -> None:
    assert leaf_key(replace(hello(), signatures=(0x0804, 0x0401, 0x0503)), tls13=tls13) is RSA2048


def test_below_tls_1_3_the_curve_has_to_be_among_the_groups() -> None:
    ours = hello(only_tls12=True)
    assert leaf_key(replace(ours, groups=(0x001D, 0x0018)), tls13=False) is RSA2048
    assert leaf_key(replace(ours, groups=()), tls13=False) is P256
    assert leaf_key(replace(hello(), groups=(0x001D,)), tls13=True) is P256


def test_a_client_of_old_that_names_no_signatures_is_judged_by_its_suites() -> None:
    assert leaf_key(replace(hello(only_tls12=True), signatures=()), tls13=False) is P256
    old = replace(hello("ECDHE-RSA-AES128-GCM-SHA256", only_tls12=True), signatures=())
    assert leaf_key(old, tls13=False) is RSA2048
