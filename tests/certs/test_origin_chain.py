"""Real certificates, read for the rules."""

from __future__ import annotations

import hashlib

import pytest
from badssl_certificates import SERVER, Certified, Shape, ec_key, root, rsa_key, self_signed
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, x25519
from hypothesis import given
from hypothesis import strategies as st

from mitmsec_certs.chain_rules import Link
from mitmsec_certs.origin_chain import BadCertificate, certificate_of, link_of

HOST = "www.origin.test"


def test_what_a_leaf_and_its_issuers_say() -> None:
    above = root()
    ca = above.intermediate("an intermediate")
    leaf, issuer = (link_of(one.der) for one in (ca.leaf(HOST), ca))
    assert leaf.common_name == HOST
    assert (leaf.key, leaf.bits, leaf.curve, leaf.digest) == ("EC", 256, "secp256r1", "sha256")
    assert (leaf.is_ca, leaf.may_sign, leaf.may_shake_hands) == (False, False, True)
    assert leaf.purposes == tuple(one.dotted_string for one in SERVER)
    assert (issuer.is_ca, issuer.may_sign, issuer.may_shake_hands, issuer.purposes) == (True, True, False, None)


def test_it_is_known_by_two_hashes() -> None:
    one = root()
    link = link_of(one.der)
    key = one.certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert (link.sha256, link.key_sha256) == (hashlib.sha256(one.der).hexdigest(), hashlib.sha256(key).hexdigest())


def test_what_is_not_said_is_none() -> None:
    link = link_of(self_signed(Shape(is_ca=None, signs=None, purposes=None)).der)
    assert (link.is_ca, link.may_sign, link.may_shake_hands, link.purposes) == (None, None, None, None)
    assert link.common_name == ""


@pytest.mark.parametrize("digest", ["md5", "sha1"])
def test_weak_digests_are_named(digest: str) -> None:
    made = root(key=rsa_key()).leaf(HOST, key=rsa_key(1024), digest=digest)
    link = link_of(made.der)
    assert (link.key, link.bits, link.exponent, link.digest) == ("RSA", 1024, 65537, digest)


def test_weak_curves_are_named() -> None:
    assert link_of(root(key=ec_key(ec.SECP192R1())).der).curve == "secp192r1"


def _of_key(public: object) -> Link:
    """A certificate for a key of a kind that the tests' servers have not."""
    one = root()
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(one.certificate.subject)
        .public_key(public)  # type: ignore[arg-type]
        .serial_number(1)
        .not_valid_before(one.certificate.not_valid_before_utc)
        .not_valid_after(one.certificate.not_valid_after_utc)
    )
    return link_of(Certified(builder.sign(one.key, one.certificate.signature_hash_algorithm), one.key).der)  # type: ignore[arg-type]


def test_other_kinds_of_keys_are_named() -> None:
    assert _of_key(dsa.generate_private_key(1024).public_key()).key == "DSA"
    assert _of_key(ed25519.Ed25519PrivateKey.generate().public_key()).key == "Ed25519"
    assert _of_key(x25519.X25519PrivateKey.generate().public_key()).key == "1.3.101.110"


def test_a_scheme_with_its_own_digest() -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    name = x509.Name([])
    one = root().certificate
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(one.not_valid_before_utc).not_valid_after(one.not_valid_after_utc).sign(key, None)
    )  # fmt: skip
    assert link_of(made.public_bytes(serialization.Encoding.DER)).digest == "none"


def test_a_kind_of_key_that_nobody_knows_has_no_hash_and_is_named_by_its_number() -> None:
    der = root().der
    unheard = der.replace(bytes.fromhex("06072a8648ce3d0201"), bytes.fromhex("06072a8648ce3d0209"))
    link = link_of(unheard)
    assert (link.key, link.key_sha256) == ("1.2.840.10045.2.9", "")


def test_a_signature_that_nobody_knows_has_no_digest() -> None:
    der = root().der
    unheard = der.replace(bytes.fromhex("06082a8648ce3d040302"), bytes.fromhex("06082a8648ce3d040309"))
    assert link_of(unheard).digest == ""


def test_an_oversized_certificate_is_not_parsed() -> None:
    with pytest.raises(BadCertificate, match="1 MiB"):
        certificate_of(bytes((1 << 20) + 1))


DER = root().leaf(HOST).der


@given(st.data())
def test_damaged_certificates_are_read_or_bad(data: st.DataObject) -> None:
    """Hostile bytes: never another exception."""
    der = bytearray(DER)
    for _ in range(data.draw(st.integers(1, 3))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(der[: data.draw(st.integers(0, len(der)))])
    for damaged in (bytes(der), cut):
        try:
            assert isinstance(link_of(damaged), Link)
        except BadCertificate:
            continue
