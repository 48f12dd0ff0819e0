"""What an issuer says about a certificate: OCSP answers (RFC 6960), revocation lists (RFC 5280, 5), read and verified.

Bytes come from anywhere: what is not signed by the issuer, or by whom it has given that to, not about this certificate,
or out of date, says nothing. Time is an argument (Unix seconds).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from mitmsec.core.origin_proof import Standing, Status
from mitmsec_certs.chain_rules import DIGESTS
from mitmsec_certs.origin_chain import certificate_of

SKEW_S = 300
UNDATED_S = 86_400  # how long an answer without an end is believed
ANSWER_LIMIT_BYTES = 64 << 10
ENCLOSED_LIMIT = 4  # certificates of an answer: an origin staples what it likes, and reading 200 takes 0.3 s


def _unknown(text: str) -> Status:
    return Status(standing=Standing.UNKNOWN, text=text)


def by_ocsp(answer: bytes, der: bytes, issuer_der: bytes, now_s: int) -> Status:
    """What an OCSP response (DER) says about the certificate `der` of `issuer_der`."""
    if len(answer) > ANSWER_LIMIT_BYTES:
        return _unknown("an OCSP answer of more than 64 KiB")
    try:
        certificate, issuer = certificate_of(der), certificate_of(issuer_der)
        response = ocsp.load_der_ocsp_response(answer)
        if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            return _unknown(f"the OCSP responder says: {response.response_status.name.lower().replace('_', ' ')}")
        single = _about(response, certificate, issuer)
        if single is None:
            return _unknown("an OCSP answer about another certificate")
        if not any(_signed(response, signer) for signer in _signers(response, issuer, now_s)):
            return _unknown("an OCSP answer that the issuer has not signed")
        return _dated(single, now_s)
    except Exception as error:  # whatever a parser thinks of hostile bytes
        return _unknown(f"an OCSP answer that cannot be read ({type(error).__name__})")


def _about(
    response: ocsp.OCSPResponse, certificate: x509.Certificate, issuer: x509.Certificate
) -> ocsp.OCSPSingleResponse | None:
    for single in response.responses:
        if single.serial_number != certificate.serial_number:
            continue
        builder = ocsp.OCSPRequestBuilder().add_certificate(certificate, issuer, single.hash_algorithm)
        wanted = builder.build()
        if (single.issuer_name_hash, single.issuer_key_hash) == (wanted.issuer_name_hash, wanted.issuer_key_hash):
            return single
    return None


def _dated(single: ocsp.OCSPSingleResponse, now_s: int) -> Status:
    begun_s = _seconds(single.this_update_utc)
    ends_s = _seconds(single.next_update_utc) if single.next_update_utc is not None else begun_s + UNDATED_S
    if not begun_s - SKEW_S <= now_s <= ends_s + SKEW_S:
        return _unknown("an OCSP answer that is out of date")
    match single.certificate_status:
        case ocsp.OCSPCertStatus.GOOD:
            return Status(standing=Standing.GOOD, text="OCSP", until_s=ends_s)
        case ocsp.OCSPCertStatus.REVOKED:
            return Status(standing=Standing.REVOKED, text="OCSP", until_s=ends_s)
        case _:
            return _unknown("the OCSP responder does not know the certificate")


def _signers(response: ocsp.OCSPResponse, issuer: x509.Certificate, now_s: int) -> Iterator[x509.Certificate]:
    """The issuer, and those certificates in the answer whom it has given its word (RFC 6960, 4.2.2.2)."""
    yield issuer
    now = datetime.fromtimestamp(now_s, UTC)
    for one in response.certificates[:ENCLOSED_LIMIT]:
        is_in_time = one.not_valid_before_utc <= now <= one.not_valid_after_utc
        if is_in_time and one.issuer == issuer.subject and _is_for_ocsp(one) and _issued(one, issuer):
            yield one


def _is_for_ocsp(certificate: x509.Certificate) -> bool:
    try:
        purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return False
    return ExtendedKeyUsageOID.OCSP_SIGNING in purposes


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    digest = certificate.signature_hash_algorithm
    if digest is not None and digest.name not in DIGESTS:
        return False
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _signed(response: ocsp.OCSPResponse, signer: x509.Certificate) -> bool:
    digest = response.signature_hash_algorithm
    if digest is not None and digest.name not in DIGESTS:
        return False
    key = signer.public_key()
    try:
        match key, digest:
            case rsa.RSAPublicKey(), hash_ if hash_ is not None:
                key.verify(response.signature, response.tbs_response_bytes, padding.PKCS1v15(), hash_)
            case ec.EllipticCurvePublicKey(), hash_ if hash_ is not None:
                key.verify(response.signature, response.tbs_response_bytes, ec.ECDSA(hash_))
            case ((ed25519.Ed25519PublicKey() | ed448.Ed448PublicKey()), None):
                key.verify(response.signature, response.tbs_response_bytes)
            case _:
                return False
    except (InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


# --- lists ------------------------------------------------------------------------------------------------------------
def by_crl(crl_der: bytes, der: bytes, issuer_der: bytes, url: str, now_s: int) -> Status:
    """What the revocation list at `url` says about the certificate `der` of `issuer_der`."""
    try:
        certificate, issuer = certificate_of(der), certificate_of(issuer_der)
        crl = x509.load_der_x509_crl(crl_der)
        if (why := _no_list(crl, certificate, issuer, url, now_s)) is not None:
            return _unknown(why)
        entry = crl.get_revoked_certificate_by_serial_number(certificate.serial_number)
        standing = Standing.GOOD if entry is None else Standing.REVOKED
        return Status(standing=standing, text="CRL", until_s=_list_end_s(crl))
    except Exception as error:
        return _unknown(f"a revocation list that cannot be read ({type(error).__name__})")


def _no_list(
    crl: x509.CertificateRevocationList, certificate: x509.Certificate, issuer: x509.Certificate, url: str, now_s: int
) -> str | None:
    """Why the list says nothing about the certificate."""
    if crl.issuer != issuer.subject:
        return "a revocation list of another issuer"
    digest = crl.signature_hash_algorithm
    if (digest is not None and digest.name not in DIGESTS) or not crl.is_signature_valid(issuer.public_key()):  # type: ignore[arg-type]
        return "a revocation list that the issuer has not signed"
    if not _seconds(crl.last_update_utc) - SKEW_S <= now_s <= _list_end_s(crl) + SKEW_S:
        return "a revocation list that is out of date"
    for extension in crl.extensions:
        if isinstance(extension.value, x509.IssuingDistributionPoint):
            if not _covers(extension.value, certificate, url):
                return "a revocation list for other certificates"
        elif isinstance(extension.value, x509.DeltaCRLIndicator):  # critical or, against RFC 5280, 5.2.4, not
            return "a revocation list that tells only what has changed"
        elif extension.critical:
            return "a revocation list with an unknown critical extension"
    return None


def _covers(point: x509.IssuingDistributionPoint, certificate: x509.Certificate, url: str) -> bool:
    is_ca = _is_ca(certificate)
    if point.indirect_crl or point.only_contains_attribute_certs or point.only_some_reasons or point.relative_name:
        return False
    if (point.only_contains_ca_certs and not is_ca) or (point.only_contains_user_certs and is_ca):
        return False
    names = point.full_name
    return names is None or url in {name.value for name in names if isinstance(name, x509.UniformResourceIdentifier)}


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _list_end_s(crl: x509.CertificateRevocationList) -> int:
    if crl.next_update_utc is None:
        return _seconds(crl.last_update_utc) + UNDATED_S
    return _seconds(crl.next_update_utc)


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())
