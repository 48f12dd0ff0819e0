"""What an origin's certificate is worth: OpenSSL's verification codes in our words, and facts about a certificate."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from cryptography import x509

from mitmsec.core.messages import Flaw
from mitmsec.core.model import Value
from mitmsec_certs.authority import validity_of

X509_V_OK = 0
CERTIFICATE_LIMIT_BYTES = 1 << 20

# OpenSSL's X509_V_ERR_… numbers are part of its stable interface.
_KNOWN: dict[int, tuple[Flaw, str]] = {
    9: (Flaw.NOT_YET_VALID, "the certificate is not valid yet"),
    10: (Flaw.EXPIRED, "the certificate has expired"),
    62: (Flaw.WRONG_NAME, "the certificate is for another host"),
    63: (Flaw.WRONG_NAME, "the certificate is for another e-mail address"),
    64: (Flaw.WRONG_NAME, "the certificate is for another IP address"),
    2: (Flaw.UNTRUSTED, "an issuer's certificate is missing"),
    7: (Flaw.UNTRUSTED, "a signature in the chain is wrong"),
    18: (Flaw.UNTRUSTED, "the certificate is self-signed"),
    19: (Flaw.UNTRUSTED, "the chain ends in a root that is not trusted"),
    20: (Flaw.UNTRUSTED, "the issuer is unknown"),
    21: (Flaw.UNTRUSTED, "the chain is incomplete"),
    22: (Flaw.UNTRUSTED, "the chain is too long"),
    23: (Flaw.UNTRUSTED, "the certificate was revoked"),
    24: (Flaw.UNTRUSTED, "an issuer is no CA"),
    25: (Flaw.UNTRUSTED, "a CA's path length is exceeded"),
    26: (Flaw.UNTRUSTED, "the certificate is not meant for servers"),
    27: (Flaw.UNTRUSTED, "the root is not trusted for servers"),
    28: (Flaw.UNTRUSTED, "the root is marked as rejected"),
    47: (Flaw.UNTRUSTED, "a CA's name constraints forbid this name"),
    66: (Flaw.UNTRUSTED, "the certificate's key is too weak"),
    67: (Flaw.UNTRUSTED, "a CA's key is too weak"),
    68: (Flaw.UNTRUSTED, "a signature's digest is too weak"),
}
# A client that may not go on with the first must not be shown the second only.
_GRAVITY = (Flaw.UNTRUSTED, Flaw.WRONG_NAME, Flaw.EXPIRED, Flaw.NOT_YET_VALID)


class BadCertificate(ValueError):
    """Bytes that are no X.509 certificate."""


class Defect(Value, frozen=True):
    """How an origin's certificate failed: the kind that a client is shown, and the words for the record."""

    flaw: Flaw
    text: str


def classify(code: int) -> Defect | None:
    """The defect that an OpenSSL verification result (X509_V_ERR_…) stands for; None for X509_V_OK."""
    if code == X509_V_OK:
        return None
    flaw, text = _KNOWN.get(code, (Flaw.UNTRUSTED, f"the certificate cannot be verified (OpenSSL code {code})"))
    return Defect(flaw=flaw, text=text)


def gravest(codes: Iterable[int]) -> Defect | None:
    """The one defect to show when verification met several errors; None when it met none."""
    defects = [defect for code in codes if (defect := classify(code)) is not None]
    return min(defects, key=lambda defect: _GRAVITY.index(defect.flaw), default=None)


def not_after_of(der: bytes) -> int:
    """The end of a certificate's validity in Unix seconds. Raises BadCertificate."""
    if len(der) > CERTIFICATE_LIMIT_BYTES:
        raise BadCertificate("a certificate of more than 1 MiB")
    try:
        return validity_of(x509.load_der_x509_certificate(der)).not_after_s
    except (ValueError, OverflowError, x509.InvalidVersion) as error:
        raise BadCertificate(str(error)) from None


def sha256_of(der: bytes) -> str:
    """The fingerprint of a certificate, hex."""
    return hashlib.sha256(der).hexdigest()
