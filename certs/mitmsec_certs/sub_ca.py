"""A CA below an enterprise's root, as it was brought: is it one that this product may use, and under which root?

    refused    what could not work, or would not be safe: no CA, another key, a broken chain, ended, weak
    doubted    what works, but gives the signer more than it needs: an operator has to accept that by word
               (no path length 0, other purposes than TLS servers, no name constraints, more than a year)

Every reason is told at once, in words that can be sent to whoever runs the enterprise's CA.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from mitmsec.core.model import Value
from mitmsec_certs.authority import spki_of, validity_of
from mitmsec_certs.ca_folder import PEM
from mitmsec_certs.constraint_extension import constraints_of
from mitmsec_certs.profile import CA_LIFETIME_S, DAY_S

RSA_LEAST_BITS = 2048
ABOVE_LIMIT = 8
ENDS_TOO_SOON_S = 14 * DAY_S
DIGESTS = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
UNDERSTOOD = (
    x509.BasicConstraints,
    x509.KeyUsage,
    x509.ExtendedKeyUsage,
    x509.NameConstraints,
    x509.CertificatePolicies,
)


class Unsuitable(Exception):
    """Why it cannot be used; each reason is a sentence."""

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = tuple(reasons)


class SubCa(Value, frozen=True):
    """What is to be kept, as PEM: the issuing CA and those above it, the nearest first, and the root."""

    chain: tuple[bytes, ...]
    root: bytes
    doubts: tuple[str, ...]


def sub_ca(brought: Sequence[x509.Certificate], public_key: bytes, known: Iterable[bytes], now_s: int) -> SubCa:
    """The CA whose key is `public_key` (SPKI, DER), among what was `brought`, in any order, under a root of that or
    of the `known` ones (DER). Raises Unsuitable.
    """
    candidates = [one for one in brought if _spki(one) == public_key]
    issuing = max(candidates, key=lambda one: one.not_valid_after_utc, default=None)
    if issuing is None:
        raise Unsuitable(["none of the certificates belongs to the key" if brought else "no certificate was brought"])
    if issuing.subject == issuing.issuer:
        raise Unsuitable(["it is a root itself: what stays online has to be a CA below it"])
    above, root = _line(issuing, brought, known)
    reasons = [reason for place, ca in enumerate((issuing, *above)) for reason in _flaws(ca, place, now_s)]
    reasons += _purpose_flaws(issuing, now_s)
    if now_s > validity_of(root).not_after_s:
        reasons.append(f"{_named(root)}, its root, has ended")
    if reasons:
        raise Unsuitable(reasons)
    chain = tuple(one.public_bytes(PEM) for one in (issuing, *above))
    return SubCa(chain=chain, root=root.public_bytes(PEM), doubts=tuple(_doubts(issuing, above)))


# --- the chain --------------------------------------------------------------------------------------------------------
def _line(
    issuing: x509.Certificate, brought: Sequence[x509.Certificate], known: Iterable[bytes]
) -> tuple[list[x509.Certificate], x509.Certificate]:
    """The CAs between `issuing` and its root, and the root. Raises Unsuitable."""
    above: list[x509.Certificate] = []
    below = issuing
    while True:
        issuer = _issuer(below, brought) or _issuer(below, _readable(known))
        if issuer is None:
            raise Unsuitable([_unfound(below, brought)])
        if issuer.subject == issuer.issuer:
            return above, issuer
        if issuer in (issuing, *above):
            raise Unsuitable(["the chain goes in a circle"])
        if len(above) == ABOVE_LIMIT:
            raise Unsuitable(
                [f"more than {ABOVE_LIMIT} CAs lie between it and its root: no verifier would go that far"]
            )
        above.append(issuer)
        below = issuer


def _issuer(below: x509.Certificate, among: Iterable[x509.Certificate]) -> x509.Certificate | None:
    for one in among:
        if one.subject == below.issuer and one != below and _signed(below, one):
            return one
    return None


def _unfound(below: x509.Certificate, brought: Sequence[x509.Certificate]) -> str:
    what = f"{_named(below)} is signed by {below.issuer.rfc4514_string()}, which was not brought"
    if any(one.subject == below.issuer for one in brought):
        return f"{what}: the one of that name that was brought has another key"
    return what


def _signed(below: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        if isinstance(below.signature_hash_algorithm, hashes.SHA1 | hashes.MD5):
            return True  # cryptography verifies these no more, and it is refused for them
        below.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True


def _readable(known: Iterable[bytes]) -> Iterator[x509.Certificate]:
    for der in known:
        one = _read(der)
        if one is not None and one.subject == one.issuer:
            yield one


def _read(der: bytes) -> x509.Certificate | None:
    with contextlib.suppress(ValueError, x509.InvalidVersion), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about oddities that old roots have
        return x509.load_der_x509_certificate(der)
    return None


# --- what each has to be ----------------------------------------------------------------------------------------------
def _flaws(ca: x509.Certificate, place: int, now_s: int) -> Iterator[str]:
    """Of a CA that has `place` others between itself and the leaves."""
    name = _named(ca)
    basic = _extension(ca, x509.BasicConstraints)
    usage = _extension(ca, x509.KeyUsage)
    if basic is None or not basic.ca:
        yield f"{name} is no CA (CA:TRUE is missing)"
    elif basic.path_length is not None and basic.path_length < place:
        yield f"{name} allows a path length of {basic.path_length}, and {place} would be needed"
    if usage is not None and not usage.key_cert_sign:
        yield f"{name} may not sign certificates (keyCertSign is missing)"
    if not validity_of(ca).not_before_s <= now_s <= validity_of(ca).not_after_s:
        span = f"{ca.not_valid_before_utc:%Y-%m-%d} to {ca.not_valid_after_utc:%Y-%m-%d}"
        yield f"{name} is not valid now, but from {span}"
    if not isinstance(ca.signature_hash_algorithm, DIGESTS):
        yield f"{name} is not signed with SHA-256 or better"
    if (weakness := _weakness(ca)) is not None:
        yield f"{name} {weakness}"


def _purpose_flaws(issuing: x509.Certificate, now_s: int) -> Iterator[str]:
    """Of the one that signs leaves."""
    purposes = _extension(issuing, x509.ExtendedKeyUsage)
    if purposes is not None and not {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & {
        *purposes
    }:
        yield "it is not for TLS servers (serverAuth is missing)"
    if _extension(issuing, x509.SubjectKeyIdentifier) is None:
        yield "it has no subject key identifier, by which leaves name their issuer"
    if 0 <= validity_of(issuing).not_after_s - now_s < ENDS_TOO_SOON_S:
        yield f"it ends on {issuing.not_valid_after_utc:%Y-%m-%d}, within two weeks"
    for extension in issuing.extensions:
        if extension.critical and not isinstance(extension.value, UNDERSTOOD):
            yield f"it has a critical extension that is not understood here ({extension.oid.dotted_string})"


def _weakness(ca: x509.Certificate) -> str | None:
    try:
        key = ca.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return "has a key of a kind that is not known here"
    if isinstance(key, rsa.RSAPublicKey):
        return None if key.key_size >= RSA_LEAST_BITS else f"has an RSA key of {key.key_size} bits only"
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1 | ec.SECP521R1):
        return None
    return "has a key that is neither RSA nor of the curves P-256, P-384 and P-521"


def _doubts(issuing: x509.Certificate, above: Sequence[x509.Certificate]) -> Iterator[str]:
    basic = _extension(issuing, x509.BasicConstraints)
    if basic is None or basic.path_length != 0:
        yield "it may have CAs below it (path length 0 is missing)"
    purposes = _extension(issuing, x509.ExtendedKeyUsage)
    if purposes is None or set(purposes) != {ExtendedKeyUsageOID.SERVER_AUTH}:
        yield "it may sign for more than TLS servers (extended key usage should be serverAuth alone)"
    if all(constraints_of(ca).are_none for ca in (issuing, *above)):
        yield "it may speak for every name (name constraints are missing)"
    validity = validity_of(issuing)
    if validity.not_after_s - validity.not_before_s > CA_LIFETIME_S + DAY_S:
        yield "it lives for more than a year"


def _extension[Kind: x509.ExtensionType](ca: x509.Certificate, kind: type[Kind]) -> Kind | None:
    try:
        return ca.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _spki(one: x509.Certificate) -> bytes | None:
    try:
        return spki_of(one.public_key())
    except (ValueError, UnsupportedAlgorithm):
        return None


def _named(ca: x509.Certificate) -> str:
    return ca.subject.rfc4514_string() or "a CA without a name"
