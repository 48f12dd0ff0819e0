"""Whom a certificate says to ask about itself, and the question."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509 import ocsp
from cryptography.x509.oid import AuthorityInformationAccessOID

from mitmsec.core.model import Value
from mitmsec_certs.origin_chain import certificate_of, link_of

EACH_LIMIT = 3  # of what one certificate names
URL_LIMIT_CHARACTERS = 1024
CERTIFICATES_LIMIT = 1024


class Sources(Value, frozen=True):
    """http addresses. By https nothing could be asked without asking again; other schemes are not spoken."""

    ocsp: tuple[str, ...] = ()
    crl: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.ocsp or self.crl)


@lru_cache(CERTIFICATES_LIMIT)
def sources_of(der: bytes) -> Sources:
    """None of both for what cannot be read."""
    try:
        extensions = certificate_of(der).extensions
        return Sources(ocsp=_usable(_responders(extensions)), crl=_usable(_lists(extensions)))
    except Exception:  # whatever a parser thinks of hostile bytes
        return Sources()


def _usable(urls: list[str]) -> tuple[str, ...]:
    fit = [url for url in urls if url.startswith("http://") and url.isascii() and url.isprintable()]
    return tuple(url for url in fit if len(url) <= URL_LIMIT_CHARACTERS)[:EACH_LIMIT]


def _responders(extensions: x509.Extensions) -> list[str]:
    try:
        access = extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    except x509.ExtensionNotFound:
        return []
    places = [one.access_location for one in access if one.access_method == AuthorityInformationAccessOID.OCSP]
    return [place.value for place in places if isinstance(place, x509.UniformResourceIdentifier)]


def _lists(extensions: x509.Extensions) -> list[str]:
    """Of points that are whole, and the issuer's own."""
    try:
        points = extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    except x509.ExtensionNotFound:
        return []
    names = [name for point in points if not point.reasons and not point.crl_issuer for name in point.full_name or ()]
    return [name.value for name in names if isinstance(name, x509.UniformResourceIdentifier)]


def ocsp_question(der: bytes, issuer_der: bytes) -> bytes:
    """An OCSP request (DER). It names by SHA-1, which every responder knows. Raises BadCertificate."""
    builder = ocsp.OCSPRequestBuilder()
    builder = builder.add_certificate(certificate_of(der), certificate_of(issuer_der), hashes.SHA1())  # noqa: S303
    return builder.build().public_bytes(serialization.Encoding.DER)


def is_certified(chain: tuple[bytes, ...], roots: frozenset[bytes]) -> bool:
    """Whether each certificate (DER) was signed by the next, a CA, and the last is one of `roots`.

    No verification for a handshake (dates, names): only that CAs that are trusted have signed what they say. Anybody
    can have a leaf of theirs, and sign with its key.
    """
    if len(chain) < 2 or chain[-1] not in roots:
        return False
    try:
        if not all(issuer.is_ca and issuer.may_sign is not False for issuer in map(link_of, chain[1:-1])):
            return False
        certificates = [certificate_of(der) for der in chain]
        for one, issuer in pairwise(certificates):
            one.verify_directly_issued_by(issuer)
    except Exception:  # hostile bytes again, and InvalidSignature
        return False
    return True
