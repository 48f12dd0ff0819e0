"""Certificates of an origin, read as far as the rules for chains ask."""

from __future__ import annotations

import hashlib
import warnings
from datetime import UTC, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from mitmsec_certs.authority import spki_of
from mitmsec_certs.chain_rules import Link

CERTIFICATE_LIMIT_BYTES = 1 << 20
STAMPED_BEFORE = timedelta(days=2)

_KINDS = {
    "1.3.101.112": "Ed25519",
    "1.3.101.113": "Ed448",
    "1.2.840.10040.4.1": "DSA",
    "2.16.840.1.101.3.4.3.17": "ML-DSA",  # FIPS 204
    "2.16.840.1.101.3.4.3.18": "ML-DSA",
    "2.16.840.1.101.3.4.3.19": "ML-DSA",
}
_OWN_DIGEST = frozenset(_KINDS) - {"1.2.840.10040.4.1"}  # signature and key have the same identifier there


class BadCertificate(ValueError):
    """Bytes that are no X.509 certificate."""


def certificate_of(der: bytes) -> x509.Certificate:
    """Raises BadCertificate."""
    if len(der) > CERTIFICATE_LIMIT_BYTES:
        raise BadCertificate("a certificate of more than 1 MiB")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about oddities that old roots have
            return x509.load_der_x509_certificate(der)
    except Exception as error:  # whatever a parser thinks of hostile bytes: KeyError is among it
        raise BadCertificate(f"{type(error).__name__}: {error}") from None


def link_of(der: bytes) -> Link:
    """Raises BadCertificate for what cannot be read, and for extensions that contradict themselves."""
    certificate = certificate_of(der)
    try:
        extensions = certificate.extensions
        key, bits, exponent, curve = _key(certificate)
        usage = _of(extensions, x509.KeyUsage)
        constraints = _of(extensions, x509.BasicConstraints)
        purposes = _of(extensions, x509.ExtendedKeyUsage)
        return Link(
            common_name=_common_name(certificate),
            sha256=hashlib.sha256(der).hexdigest(),
            key_sha256=key_sha256(certificate),
            key=key,
            bits=bits,
            exponent=exponent,
            curve=curve,
            digest=_digest(certificate),
            is_ca=constraints.ca if constraints is not None else None,
            may_sign=usage.key_cert_sign if usage is not None else None,
            may_shake_hands=_may_shake_hands(usage),
            purposes=tuple(purpose.dotted_string for purpose in purposes) if purposes is not None else None,
            must_staple=x509.TLSFeatureType.status_request in (_of(extensions, x509.TLSFeature) or ()),
            logs=_logs(certificate, _of(extensions, x509.PrecertificateSignedCertificateTimestamps)),
        )
    except Exception as error:
        raise BadCertificate(f"{type(error).__name__}: {error}") from None


def key_sha256(certificate: x509.Certificate) -> str:
    """Of the SubjectPublicKeyInfo, hex; empty for a key of an unknown kind."""
    try:
        return hashlib.sha256(spki_of(certificate.public_key())).hexdigest()
    except (UnsupportedAlgorithm, ValueError):
        return ""


def _key(certificate: x509.Certificate) -> tuple[str, int, int, str]:
    """Kind, bits, exponent, curve."""
    kind = certificate.public_key_algorithm_oid.dotted_string
    if kind in _KINDS:
        return _KINDS[kind], 0, 0, ""
    try:
        key = certificate.public_key()
    except UnsupportedAlgorithm:
        return kind, 0, 0, ""
    if isinstance(key, rsa.RSAPublicKey):
        return "RSA", key.key_size, key.public_numbers().e, ""
    if isinstance(key, ec.EllipticCurvePublicKey):
        return "EC", key.key_size, 0, key.curve.name
    return kind, 0, 0, ""


def _digest(certificate: x509.Certificate) -> str:
    """Of the issuer's signature; empty where it is unknown."""
    if certificate.signature_algorithm_oid.dotted_string in _OWN_DIGEST:
        return "none"
    try:
        digest = certificate.signature_hash_algorithm
    except (UnsupportedAlgorithm, ValueError):
        return ""
    return digest.name if digest is not None else ""


def _common_name(certificate: x509.Certificate) -> str:
    """The last of them; empty where there is none."""
    names = [str(one.value) for one in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return names[-1] if names else ""


def _may_shake_hands(usage: x509.KeyUsage | None) -> bool | None:
    if usage is None:
        return None
    return usage.digital_signature or usage.key_encipherment or usage.key_agreement


def _logs(certificate: x509.Certificate, stamps: x509.PrecertificateSignedCertificateTimestamps | None) -> int:
    """A log stamps a certificate while it is being made: shortly before it is valid, at most, and not after its end."""
    earliest, latest = certificate.not_valid_before_utc - STAMPED_BEFORE, certificate.not_valid_after_utc
    return len({one.log_id for one in stamps or () if earliest <= one.timestamp.replace(tzinfo=UTC) <= latest})


def _of[T: x509.ExtensionType](extensions: x509.Extensions, kind: type[T]) -> T | None:
    try:
        return extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
