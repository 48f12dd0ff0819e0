"""What certificates that came by QUIC are worth: as in a TLS handshake."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import crypto

from mitmsec.engine.chains import CHAIN_LIMIT, TOO_LONG, proof_of

NAME = "www.origin.test"
UNTRUSTED, EXPIRED, WRONG_NAME, WRONG_ADDRESS, WRONG_PURPOSE = 20, 10, 62, 64, 26  # X509_V_ERR_…


def shown(ca: trustme.CA, *names: str, **more: Any) -> list[x509.Certificate]:
    issued = ca.issue_cert(*(names or (NAME,)), **more)
    return [x509.load_pem_x509_certificate(blob.bytes()) for blob in issued.cert_chain_pems]


def roots(*authorities: trustme.CA) -> list[crypto.X509]:
    return [crypto.load_certificate(crypto.FILETYPE_PEM, ca.cert_pem.bytes()) for ca in authorities]


def test_one_that_holds_comes_with_its_root() -> None:
    ca = trustme.CA()
    chain = shown(ca)
    proof = proof_of(chain, NAME, roots(trustme.CA(), ca))
    root = x509.load_pem_x509_certificate(ca.cert_pem.bytes())
    assert (proof.errors, proof.staple, proof.resumed) == ((), b"", False)
    assert proof.chain == (chain[0].public_bytes(Encoding.DER), root.public_bytes(Encoding.DER))


def test_an_issuer_that_the_origin_sends_along_is_used_and_not_trusted() -> None:
    ca = trustme.CA()
    child = ca.create_child_ca()
    chain = shown(child)
    assert len(chain) == 2
    assert proof_of(chain, NAME, roots(ca)).errors == ()
    assert len(proof_of(chain, NAME, roots(ca)).chain) == 3
    assert proof_of(chain[:1], NAME, roots(ca)).errors == (UNTRUSTED,)
    assert proof_of(chain, NAME, []).errors == (UNTRUSTED,)


def test_a_name_and_an_address_are_compared() -> None:
    ca = trustme.CA()
    by_name, by_address = shown(ca), shown(ca, "192.0.2.1")
    assert proof_of(by_name, "other.test", roots(ca)).errors == (WRONG_NAME,)
    assert proof_of(by_address, "192.0.2.1", roots(ca)).errors == ()
    assert proof_of(by_address, "192.0.2.2", roots(ca)).errors == (WRONG_ADDRESS,)
    assert proof_of(shown(ca, "*.origin.test"), NAME, roots(ca)).errors == ()
    with pytest.raises(ValueError, match="does not accept"):
        proof_of(by_name, "a\0b", roots(ca))


def test_what_has_expired_or_is_for_something_else_does_not_hold() -> None:
    ca = trustme.CA()
    old = shown(ca, not_after=datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC))
    proof = proof_of(old, NAME, roots(ca))
    assert (proof.errors, proof.chain[0]) == ((EXPIRED,), old[0].public_bytes(Encoding.DER))
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, NAME)])
    now = datetime.datetime.now(datetime.UTC)
    mail = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    assert proof_of([mail], NAME, [crypto.X509.from_cryptography(mail)]).errors == (WRONG_PURPOSE,)


def test_none_and_too_many_are_no_proof() -> None:
    ca = trustme.CA()
    assert proof_of([], NAME, roots(ca)).chain == ()
    proof = proof_of(shown(ca) * (CHAIN_LIMIT + 1), NAME, roots(ca))
    assert (proof.errors, len(proof.chain)) == ((TOO_LONG,), 1)
