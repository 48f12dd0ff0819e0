"""Answers of issuers, real ones: read, verified, and worth nothing where anything is wrong."""

from __future__ import annotations

import time

import pytest
from badssl_certificates import SERVER, Shape, ec_key, root, rsa_key
from badssl_revocation import ocsp_answer, revocation_list
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core.origin_proof import Standing, Status
from mitmsec_certs.revocation import by_crl, by_ocsp

pytestmark = pytest.mark.checklist("U7")

CA = root()
STRANGER = root("the root of a stranger")
LEAF, OTHER = CA.leaf("www.origin.test"), CA.leaf("other.origin.test")
OCSP_SIGNING = (ExtendedKeyUsageOID.OCSP_SIGNING,)
RESPONDER = CA.issue(Shape(common_name="a responder", purposes=OCSP_SIGNING))
URL = "http://crl.test/list"
DAY_S = 86400


def asked(answer: bytes, days: float = 0, ca: object = CA) -> Status:
    return by_ocsp(answer, LEAF.der, ca.der, int(time.time() + days * DAY_S))  # type: ignore[attr-defined]


def listed(crl: bytes, url: str = URL, days: float = 0) -> Status:
    return by_crl(crl, LEAF.der, CA.der, url, int(time.time() + days * DAY_S))


# --- OCSP -------------------------------------------------------------------------------------------------------------
def test_good_and_revoked() -> None:
    good = asked(ocsp_answer(LEAF, CA))
    assert (good.standing, good.text) == (Standing.GOOD, "OCSP")
    assert 0.9 * DAY_S < good.until_s - time.time() <= DAY_S
    assert asked(ocsp_answer(LEAF, CA, revoked=True)).standing is Standing.REVOKED
    assert "does not know" in asked(ocsp_answer(LEAF, CA, unknown=True)).text


@pytest.mark.parametrize("algorithm", [hashes.SHA1(), hashes.SHA384()])
def test_certificates_are_named_by_any_hash(algorithm: hashes.HashAlgorithm) -> None:
    assert asked(ocsp_answer(LEAF, CA, algorithm=algorithm)).standing is Standing.GOOD


def test_an_rsa_issuer_signs_too() -> None:
    ca = root("RSA", key=rsa_key())
    leaf = ca.leaf("www.origin.test")
    assert by_ocsp(ocsp_answer(leaf, ca), leaf.der, ca.der, int(time.time())).standing is Standing.GOOD


def test_whom_the_issuer_has_given_its_word_may_sign() -> None:
    assert asked(ocsp_answer(LEAF, CA, signer=RESPONDER, enclosed=[RESPONDER])).standing is Standing.GOOD


@pytest.mark.parametrize(
    "signer",
    [
        STRANGER,
        STRANGER.issue(Shape(common_name="a responder", purposes=OCSP_SIGNING)),
        OTHER,
        CA.issue(Shape(common_name="no purpose", purposes=None)),
        CA.issue(Shape(common_name="ended", purposes=OCSP_SIGNING, not_after_days=-1)),
        root().issue(Shape(common_name="of a root with the same name", purposes=OCSP_SIGNING)),
    ],
)
def test_nobody_else_may(signer: object) -> None:
    answer = ocsp_answer(LEAF, CA, signer=signer, enclosed=[signer])  # type: ignore[arg-type, list-item]
    assert asked(answer).text == "an OCSP answer that the issuer has not signed"


def test_whoever_encloses_many_certificates_is_not_read_to_the_end() -> None:
    """Origins staple answers; each certificate in one costs a millisecond of everybody's."""
    others = [STRANGER.issue(Shape(common_name="a responder", purposes=OCSP_SIGNING))] * 3
    assert asked(ocsp_answer(LEAF, CA, signer=RESPONDER, enclosed=[*others, RESPONDER])).standing is Standing.GOOD
    answer = ocsp_answer(LEAF, CA, signer=RESPONDER, enclosed=[*others, *others, RESPONDER])
    assert asked(answer).text == "an OCSP answer that the issuer has not signed"


def test_a_responder_whose_certificate_is_signed_weakly_may_not() -> None:
    ca = root("RSA", key=rsa_key())
    leaf = ca.leaf("www.origin.test")
    weak = ca.issue(Shape(common_name="weak", purposes=OCSP_SIGNING, digest="sha1"))
    answer = ocsp_answer(leaf, ca, signer=weak, enclosed=[weak])
    assert "not signed" in by_ocsp(answer, leaf.der, ca.der, int(time.time())).text


def test_an_answer_about_another_certificate_says_nothing() -> None:
    assert "another certificate" in asked(ocsp_answer(OTHER, CA)).text
    same_number = STRANGER.issue(Shape(serial=LEAF.certificate.serial_number))
    assert "another certificate" in asked(ocsp_answer(same_number, STRANGER)).text


@pytest.mark.parametrize(("begun", "ends"), [(-3, -1), (1, 2), (-3, None)])
def test_an_answer_out_of_its_time_says_nothing(begun: float, ends: float | None) -> None:
    assert "out of date" in asked(ocsp_answer(LEAF, CA, begun_days=begun, ends_days=ends)).text


def test_an_answer_without_an_end_is_believed_for_a_day() -> None:
    assert asked(ocsp_answer(LEAF, CA, begun_days=-0.5, ends_days=None)).standing is Standing.GOOD


def test_a_responder_that_will_not_say() -> None:
    refused = ocsp.OCSPResponseBuilder.build_unsuccessful(ocsp.OCSPResponseStatus.TRY_LATER)
    assert asked(refused.public_bytes(serialization.Encoding.DER)).text == "the OCSP responder says: try later"


def test_an_answer_that_is_too_large_is_not_read() -> None:
    assert "64 KiB" in asked(bytes(65537)).text


def test_keys_that_sign_differently() -> None:
    """Ed25519 has no digest of its own; X.509 of a kind that cannot sign OCSP is no signer."""
    key = ed25519.Ed25519PrivateKey.generate()
    subject = LEAF.certificate.issuer
    now = CA.certificate
    ca = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(1).not_valid_before(now.not_valid_before_utc).not_valid_after(now.not_valid_after_utc)
        .sign(key, None)
    )  # fmt: skip
    builder = ocsp.OCSPResponseBuilder().add_response(
        cert=LEAF.certificate, issuer=ca, algorithm=hashes.SHA256(), cert_status=ocsp.OCSPCertStatus.GOOD,
        this_update=now.not_valid_before_utc, next_update=now.not_valid_after_utc, revocation_time=None,
        revocation_reason=None,
    )  # fmt: skip
    signed = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, ca).sign(key, None)
    der = ca.public_bytes(serialization.Encoding.DER)
    answer = signed.public_bytes(serialization.Encoding.DER)
    assert by_ocsp(answer, LEAF.der, der, int(time.time())).standing is Standing.GOOD
    other = root(key=ec_key())  # the same name, another kind of key
    assert by_ocsp(answer, LEAF.der, other.der, int(time.time())).standing is Standing.UNKNOWN


ANSWER = ocsp_answer(LEAF, CA, revoked=True)


@given(st.data())
def test_damaged_answers_are_never_good(data: st.DataObject) -> None:
    damaged = bytearray(ANSWER)
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    cut = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    assert {asked(bytes(damaged)).standing, asked(cut).standing} <= {Standing.UNKNOWN, Standing.REVOKED}


# --- lists ------------------------------------------------------------------------------------------------------------
def point(**more: object) -> tuple[x509.ExtensionType, bool]:
    usual: dict[str, object] = dict.fromkeys(("full_name", "relative_name", "only_some_reasons"))
    flags = ("only_contains_user_certs", "only_contains_ca_certs", "indirect_crl", "only_contains_attribute_certs")
    return x509.IssuingDistributionPoint(**{**usual, **dict.fromkeys(flags, False), **more}), True  # type: ignore[arg-type]


def at(url: str) -> dict[str, object]:
    return {"full_name": [x509.UniformResourceIdentifier(url)]}


def test_a_list_with_it_and_without_it() -> None:
    good = listed(revocation_list(CA, OTHER))
    assert (good.standing, good.text) == (Standing.GOOD, "CRL")
    assert 0.9 * DAY_S < good.until_s - time.time() <= DAY_S
    assert listed(revocation_list(CA, OTHER, LEAF)).standing is Standing.REVOKED


@pytest.mark.parametrize("more", [at(URL), {"only_contains_user_certs": True}])
def test_a_list_for_such_certificates(more: dict[str, object]) -> None:
    assert listed(revocation_list(CA, LEAF, more=[point(**more)])).standing is Standing.REVOKED


@pytest.mark.parametrize(
    "more",
    [
        at("http://crl.test/another"),
        {"only_contains_ca_certs": True},
        {"indirect_crl": True},
        {"only_contains_attribute_certs": True},
        {"only_some_reasons": frozenset({x509.ReasonFlags.key_compromise})},
    ],
)
def test_a_list_for_others_says_nothing(more: dict[str, object]) -> None:
    assert "other certificates" in listed(revocation_list(CA, more=[point(**more)])).text


def test_a_list_of_issuers_is_for_issuers() -> None:
    ca = CA.intermediate()
    crl = revocation_list(CA, ca, more=[point(only_contains_ca_certs=True)])
    assert by_crl(crl, ca.der, CA.der, URL, int(time.time())).standing is Standing.REVOKED
    silent = CA.issue(Shape(is_ca=None, purposes=SERVER))
    assert "other" in by_crl(crl, silent.der, CA.der, URL, int(time.time())).text


def test_a_list_of_another_issuer_or_signed_by_another() -> None:
    assert "another issuer" in listed(revocation_list(STRANGER, LEAF)).text
    assert "not signed" in listed(revocation_list(CA, LEAF, signer=STRANGER)).text


def test_a_list_out_of_its_time() -> None:
    assert "out of date" in listed(revocation_list(CA, LEAF), days=2).text
    assert "out of date" in listed(revocation_list(CA, LEAF), days=-2).text


def test_a_list_that_tells_only_what_has_changed() -> None:
    for critical in (True, False):
        answer = listed(revocation_list(CA, more=[(x509.DeltaCRLIndicator(1), critical)]))
        assert (answer.standing, answer.text) == (
            Standing.UNKNOWN,
            "a revocation list that tells only what has changed",
        )
    assert listed(revocation_list(CA, LEAF, more=[(x509.CRLNumber(1), False)])).standing is Standing.REVOKED


CRL = revocation_list(CA, LEAF)


@given(st.data())
def test_damaged_lists_are_never_good(data: st.DataObject) -> None:
    damaged = bytearray(CRL)
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    cut = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    assert {listed(bytes(damaged)).standing, listed(cut).standing} <= {Standing.UNKNOWN, Standing.REVOKED}
