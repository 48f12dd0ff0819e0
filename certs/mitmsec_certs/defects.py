"""How an origin's certificate fails, in our words: the kind that a client is shown, and the text for the record."""

from __future__ import annotations

from collections.abc import Iterable

from mitmsec.core.messages import Flaw
from mitmsec.core.model import Value

X509_V_OK = 0

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
    24: (Flaw.UNTRUSTED, "an issuer's key cannot be read"),
    25: (Flaw.UNTRUSTED, "a CA's path length is exceeded"),
    26: (Flaw.UNTRUSTED, "the certificate is not meant for servers"),
    27: (Flaw.UNTRUSTED, "the root is not trusted for servers"),
    28: (Flaw.UNTRUSTED, "the root is marked as rejected"),
    32: (Flaw.UNTRUSTED, "an issuer may not sign certificates"),
    34: (Flaw.UNTRUSTED, "a critical extension is unknown"),
    47: (Flaw.UNTRUSTED, "a CA's name constraints do not permit this name"),
    48: (Flaw.UNTRUSTED, "a CA's name constraints exclude this name"),
    51: (Flaw.UNTRUSTED, "a CA's name constraints are of an unknown kind"),
    52: (Flaw.UNTRUSTED, "a CA's name constraints cannot be read"),
    53: (Flaw.UNTRUSTED, "a name in the certificate cannot be read"),
    66: (Flaw.UNTRUSTED, "the certificate's key is too weak"),
    67: (Flaw.UNTRUSTED, "a CA's key is too weak"),
    68: (Flaw.UNTRUSTED, "a signature's digest is too weak"),
    79: (Flaw.UNTRUSTED, "an issuer is no CA"),
}
# A client that may not go on with the first must not be shown the second only.
_GRAVITY = (Flaw.UNTRUSTED, Flaw.WRONG_NAME, Flaw.EXPIRED, Flaw.NOT_YET_VALID)


class Defect(Value, frozen=True):
    """How an origin's certificate failed: the kind that a client is shown, and the words for the record."""

    flaw: Flaw
    text: str


def untrusted(text: str) -> Defect:
    """A defect that no client may take for a date or a name that is a little off."""
    return Defect(flaw=Flaw.UNTRUSTED, text=text)


def classify(code: int) -> Defect | None:
    """The defect that an OpenSSL verification result (X509_V_ERR_…) stands for; None for X509_V_OK."""
    if code == X509_V_OK:
        return None
    flaw, text = _KNOWN.get(code, (Flaw.UNTRUSTED, f"the certificate cannot be verified (OpenSSL code {code})"))
    return Defect(flaw=flaw, text=text)


def gravest(defects: Iterable[Defect]) -> Defect | None:
    """The one defect to show where several were found, the first of its kind; None where there is none."""
    return min(defects, key=lambda defect: _GRAVITY.index(defect.flaw), default=None)


def of_codes(codes: Iterable[int]) -> tuple[Defect, ...]:
    """Each of OpenSSL's verification errors, in their order."""
    return tuple(defect for code in codes if (defect := classify(code)) is not None)
