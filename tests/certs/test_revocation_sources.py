"""Whom certificates say to ask."""

from __future__ import annotations

import pytest
from badssl_certificates import Shape, root, rsa_key
from cryptography import x509
from cryptography.x509 import ocsp
from cryptography.x509.oid import AuthorityInformationAccessOID
from hypothesis import given
from hypothesis import strategies as st
from issuer_stage import chain_of, naming

from mitmsec_certs.revocation_sources import EACH_LIMIT, Sources, is_certified, ocsp_question, sources_of

CA = root()
OCSP, CRL = "http://ocsp.test", "http://crl.test/list"


def of(*more: tuple[x509.ExtensionType, bool]) -> Sources:
    return sources_of(CA.leaf("www.origin.test", more=more).der)


def test_a_responder_and_a_list() -> None:
    found = of(*naming(OCSP, CRL))
    assert (found.ocsp, found.crl, bool(found)) == ((OCSP,), (CRL,), True)
    assert bool(of(*naming(crl=CRL)))
    assert not of()
    assert not sources_of(b"nonsense")


@pytest.mark.parametrize(
    "url", ["https://ocsp.test", "ldap://ocsp.test", "file:///etc/passwd", "http://x/" + "y" * 1024]
)
def test_what_is_not_spoken_is_not_asked(url: str) -> None:
    assert not of(*naming(url, url))


def test_no_more_than_a_few() -> None:
    points = [
        x509.DistributionPoint([x509.UniformResourceIdentifier(f"{CRL}{number}")], None, None, None)
        for number in range(10)
    ]
    assert len(of((x509.CRLDistributionPoints(points), False)).crl) == EACH_LIMIT


def test_points_of_others_and_for_some_reasons_are_left_out() -> None:
    name = [x509.UniformResourceIdentifier(CRL)]
    some = x509.DistributionPoint(name, None, frozenset({x509.ReasonFlags.key_compromise}), None)
    others = x509.DistributionPoint(name, None, None, [x509.DirectoryName(CA.certificate.subject)])
    issuers = x509.AccessDescription(AuthorityInformationAccessOID.CA_ISSUERS, x509.UniformResourceIdentifier(OCSP))
    odd = x509.AccessDescription(AuthorityInformationAccessOID.OCSP, x509.DNSName("ocsp.test"))
    lists, access = x509.CRLDistributionPoints([some, others]), x509.AuthorityInformationAccess([issuers, odd])
    assert not of((lists, False), (access, False))


def test_the_question_names_the_certificate() -> None:
    leaf = CA.leaf("www.origin.test")
    asked = ocsp.load_der_ocsp_request(ocsp_question(leaf.der, CA.der))
    assert asked.serial_number == leaf.certificate.serial_number


def test_certified_is_what_a_trusted_root_has_signed_link_by_link() -> None:
    ca = CA.intermediate()
    leaf, roots = ca.leaf("www.origin.test"), frozenset({CA.der})
    assert is_certified(chain_of(leaf, ca, CA), roots)
    assert is_certified(chain_of(ca, CA), roots)
    assert not is_certified(chain_of(leaf, ca, CA), frozenset())
    assert not is_certified(chain_of(leaf, CA), roots), "a link is missing"
    assert not is_certified(chain_of(CA), roots)
    assert not is_certified((), roots)
    assert not is_certified((b"nonsense", CA.der), roots)
    false_one = root(key=rsa_key()).issue(Shape(names=["www.origin.test"]))
    assert not is_certified(chain_of(false_one, CA), roots), "the root's name, another key"


def test_who_is_no_ca_certifies_nobody() -> None:
    """Anybody can have a leaf of a public CA; what its key signs would else say whom we ask."""
    leaf, unable = CA.leaf("evil.test"), CA.intermediate(signs=False)
    for issuer in (leaf, unable):
        forged = issuer.leaf("www.origin.test", more=naming("http://127.0.0.1"))
        assert not is_certified(chain_of(forged, issuer, CA), frozenset({CA.der}))


DER = CA.leaf("www.origin.test", more=naming(OCSP, CRL)).der


@given(st.data())
def test_damaged_certificates_name_http_or_nobody(data: st.DataObject) -> None:
    damaged = bytearray(DER)
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    found = sources_of(bytes(damaged))
    assert all(url.startswith("http://") for url in (*found.ocsp, *found.crl))
    assert not is_certified((bytes(damaged), CA.der), frozenset({CA.der})) or bytes(damaged) == DER
