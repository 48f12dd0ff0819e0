"""What an operator names as a service's certificate and key."""

from __future__ import annotations

import datetime
import hashlib
import ssl
import time
from collections.abc import Callable

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import pkcs12

from mitmsec_certs.bundle import certificates_in
from mitmsec_certs.known_key import BadChain, key_flaw, opened, own_chain

CA = trustme.CA()
LEAF = CA.create_child_ca().issue_cert("shop.example", "*.Shop.example", "192.0.2.1", "2001:db8::1")
CHAIN_PEM = b"".join(pem.bytes() for pem in LEAF.cert_chain_pems)
KEY_PEM = LEAF.private_key_pem.bytes()


def pem_of(key: PrivateKeyTypes, password: bytes | None = None) -> bytes:
    hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden)


def test_a_chain_tells_whom_it_is_for() -> None:
    own = own_chain("c.pem", CHAIN_PEM)
    assert own.chain == certificates_in(CHAIN_PEM)
    assert len(own.chain) == 2
    assert own.names == ("shop.example", "*.shop.example", "192.0.2.1", "2001:db8::1")
    assert own.sha256 == hashlib.sha256(own.chain[0]).hexdigest()
    assert own.not_after_s > time.time()


def test_one_that_has_expired_is_read_all_the_same() -> None:
    expires = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    pem = CA.issue_cert("old.example", not_before=expires.replace(year=2019), not_after=expires)
    assert own_chain("c.pem", pem.cert_chain_pems[0].bytes()).not_after_s == int(expires.timestamp())


def test_one_without_names_names_nobody() -> None:
    assert own_chain("c.pem", CA.cert_pem.bytes()).names == ()


@pytest.mark.parametrize(
    ("pem", "why"),
    [
        (b"", "c.pem: no certificate in PEM form in it"),
        (CHAIN_PEM + KEY_PEM, "c.pem holds a private key as well: certificates have to stand in a file of their own"),
        (
            b"-----BEGIN CERTIFICATE-----\nMAAA\n-----END CERTIFICATE-----\n",
            "c.pem: block 1 is not a certificate that can be read",
        ),
        (
            ssl.DER_cert_to_PEM_cert(certificates_in(CHAIN_PEM)[0].replace(b"\x17\x0d", b"\x1f\x0d")).encode(),
            "c.pem: the first certificate cannot be read",
        ),
    ],
)
def test_what_is_no_chain_says_why(pem: bytes, why: str) -> None:
    with pytest.raises(BadChain) as bad:
        own_chain("c.pem", pem)
    assert str(bad.value).startswith(why)


KEYS: tuple[Callable[[], PrivateKeyTypes], ...] = (
    lambda: ec.generate_private_key(ec.SECP384R1()),
    lambda: rsa.generate_private_key(65537, 2048),
    ed25519.Ed25519PrivateKey.generate,
)


@pytest.mark.parametrize("make", KEYS)
def test_keys_of_every_kind_that_tls_uses_are_known(make: Callable[[], PrivateKeyTypes]) -> None:
    assert key_flaw("k.pem", pem_of(make()), ()) is None


def test_the_key_belongs_to_the_first_certificate_or_the_sentence_says_to_which() -> None:
    chain = certificates_in(CHAIN_PEM)
    assert key_flaw("k.pem", KEY_PEM, chain) is None
    assert key_flaw("k.pem", KEY_PEM, chain[1:]) == "k.pem does not belong to the certificate"
    assert key_flaw("k.pem", KEY_PEM, (chain[1], chain[0])) == (
        "k.pem belongs to certificate 2 of the chain: the service's own has to be the first"
    )


OLD = (
    b"-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n"
    b"-----END EC PRIVATE KEY-----\n"
)


@pytest.mark.parametrize(
    ("pem", "why"),
    [
        (b"", "k.pem: no private key in PEM form in it"),
        (CHAIN_PEM, "k.pem: no private key in PEM form in it"),
        (pem_of(ec.generate_private_key(ec.SECP256R1()), b"secret"), "k.pem is encrypted"),
        (OLD, "k.pem is encrypted"),
        (pem_of(dsa.generate_private_key(1024)), "k.pem: RSA, EC and EdDSA keys are known here"),
    ],
)
def test_what_is_no_key_says_why(pem: bytes, why: str) -> None:
    assert (key_flaw("k.pem", pem, ()) or "").startswith(why)


def of_no_known_kind(der: bytes) -> str:
    """The certificate, with an algorithm of its key that nobody has registered."""
    return ssl.DER_cert_to_PEM_cert(
        der.replace(bytes.fromhex("06072a8648ce3d0201"), bytes.fromhex("06072a8648ce3d0263"))
    )


def test_a_key_of_a_kind_that_nobody_knows_is_told_where_it_is_the_services_and_else_not_looked_at() -> None:
    leaf, issuer = certificates_in(CHAIN_PEM)
    with pytest.raises(BadChain, match=r"c\.pem: the first certificate cannot be read: .*1\.2\.840\.10045\.2\.99"):
        own_chain("c.pem", of_no_known_kind(leaf).encode())
    pem = (ssl.DER_cert_to_PEM_cert(leaf) + of_no_known_kind(issuer)).encode()
    assert key_flaw("k.pem", KEY_PEM, own_chain("c.pem", pem).chain) is None
    other = CA.issue_cert("other.example").private_key_pem.bytes()
    why = "k.pem does not belong to the certificate"
    assert key_flaw("k.pem", other, own_chain("c.pem", pem).chain) == why


def test_a_pkcs12_file_without_a_key_that_tls_uses_says_so() -> None:
    """What opens is shown in tests/service/test_known_keys.py, where it is used."""
    own = x509.load_pem_x509_certificate(trustme.CA().issue_cert("us@partner.test").cert_chain_pems[0].bytes())
    alone = pkcs12.serialize_key_and_certificates(b"us", None, own, None, serialization.NoEncryption())
    for data, says in ((alone, "holds no certificate with its RSA, EC or EdDSA key"), (b"\x30", "password opens")):
        with pytest.raises(BadChain, match=f"us.p12.*{says}"):
            opened("us.p12", data, b"")
