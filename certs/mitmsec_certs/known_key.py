"""A service's own certificate and key, as an operator names them: what they are, or why they cannot be used."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import pkcs12

from mitmsec.core.model import Value
from mitmsec.core.names import parse_name
from mitmsec_certs.authority import validity_of
from mitmsec_certs.bundle import BadBundle, all_certificates

_ENCRYPTED = (b"-----BEGIN ENCRYPTED PRIVATE KEY-----", b"Proc-Type: 4,ENCRYPTED")
_KINDS = (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey, ed25519.Ed25519PrivateKey, ed448.Ed448PrivateKey)


class BadChain(ValueError):
    """The text says why."""


class OwnChain(Value, frozen=True):
    """A service's certificate and those above it."""

    chain: tuple[bytes, ...]
    """DER, the service's own first."""
    names: tuple[str, ...]
    """Whom it is for: names, `*.` for exactly one label more, addresses. Comparable (mitmsec.core.names)."""
    sha256: str
    not_after_s: int


def own_chain(name: str, pem: bytes) -> OwnChain:
    """What the file `name` holds. Raises BadChain."""
    if b"PRIVATE KEY-----" in pem:
        raise BadChain(f"{name} holds a private key as well: certificates have to stand in a file of their own")
    try:
        chain = all_certificates(name, pem)
        leaf = x509.load_der_x509_certificate(chain[0])
        leaf.public_key()
        return OwnChain(
            chain=chain,
            names=_names(leaf),
            sha256=hashlib.sha256(chain[0]).hexdigest(),
            not_after_s=validity_of(leaf).not_after_s,
        )
    except BadBundle as error:
        raise BadChain(str(error)) from None
    except (ValueError, OverflowError, x509.InvalidVersion, UnsupportedAlgorithm) as error:
        raise BadChain(f"{name}: the first certificate cannot be read: {error}") from None


def _names(leaf: x509.Certificate) -> tuple[str, ...]:
    try:
        general = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    names = [_comparable(name) for name in general.get_values_for_type(x509.DNSName)]
    addresses = [str(address) for address in general.get_values_for_type(x509.IPAddress)]
    return tuple(dict.fromkeys([*filter(None, names), *addresses]))


def _comparable(name: str) -> str:
    """Empty for what is no host's name."""
    mark = "*." if name.startswith("*.") else ""
    bare = parse_name(name.removeprefix("*."))
    return mark + bare if bare else ""


def key_flaw(name: str, pem: bytes, chain: tuple[bytes, ...]) -> str | None:
    """Why the key in the file `name` cannot be used with `chain`; None where it can. Never quotes the key.

    Without a chain only whether it is a key is looked at.
    """
    if any(mark in pem for mark in _ENCRYPTED):
        return f"{name} is encrypted, and nobody can be asked: write it in clear: openssl pkey -in FILE -out NEW"
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return f"{name}: no private key in PEM form in it"
    if not isinstance(key, _KINDS):
        return f"{name}: RSA, EC and EdDSA keys are known here"
    return _mismatch(name, _spki(key), chain)


def _mismatch(name: str, public: bytes, chain: tuple[bytes, ...]) -> str | None:
    for place, der in enumerate(chain):
        if _spki_of(der) == public:
            if place == 0:
                return None
            return f"{name} belongs to certificate {place + 1} of the chain: the service's own has to be the first"
    return f"{name} does not belong to the certificate" if chain else None


def _spki_of(der: bytes) -> bytes | None:
    """None: its key is of a kind that is not known here, so it is not ours."""
    try:
        return _spki(x509.load_der_x509_certificate(der))
    except (ValueError, UnsupportedAlgorithm):
        return None


def _spki(
    holder: x509.Certificate
    | rsa.RSAPrivateKey
    | ec.EllipticCurvePrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey,
) -> bytes:
    return holder.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def opened(name: str, data: bytes, password: bytes) -> tuple[bytes, bytes]:
    """Key and chain, PEM both, of the PKCS#12 file `name`; the key in clear. Raises BadChain."""
    try:
        key, own, others = pkcs12.load_key_and_certificates(data, password or None)
    except (ValueError, UnsupportedAlgorithm):
        raise BadChain(f"{name}: no PKCS#12 file that this password opens") from None
    if key is None or own is None or not isinstance(key, _KINDS):
        raise BadChain(f"{name} holds no certificate with its RSA, EC or EdDSA key")
    encoding = serialization.Encoding.PEM
    pem = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem, b"".join(one.public_bytes(encoding) for one in _from_own(own, others))


def _from_own(own: x509.Certificate, others: Sequence[x509.Certificate]) -> list[x509.Certificate]:
    """Its own first, then who issued it, and so on, without a root: in the file they stand anyhow."""
    chain, left = [own], [one for one in others if one.issuer != one.subject]
    while above := next((one for one in left if one.subject == chain[-1].issuer), None):
        left.remove(above)
        chain.append(above)
    return chain
