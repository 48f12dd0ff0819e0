"""Profile + keys + serial → certificate. No clock, no file, no decision: who may have what is decided elsewhere."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mitmsec_certs.profile import UNTRUSTED_ISSUER, IssuingProfile, LeafProfile, Name, RootProfile, Validity

type LeafKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
type Extensions = Sequence[tuple[x509.ExtensionType, bool]]

PUBLIC_KEY_LIMIT_BYTES = 1200  # a little more than RSA-8192 needs
RSA_BITS = range(2048, 8193)
RSA_EXPONENT = 65537


class KeyRefused(ValueError):
    """A public key that no leaf may carry; the text says why."""


class Authority:
    """The issuing CA with its key. `issue` costs one P-256 signature."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, issuing: x509.Certificate) -> None:
        """Raises ValueError when `key` does not belong to `issuing`."""
        self.public_key = spki_of(key.public_key())
        if self.public_key != spki_of(issuing.public_key()):
            raise ValueError("the key does not belong to the issuing certificate")
        self._key = key
        self._subject = issuing.subject
        self._key_identifier = _authority_identifier(issuing)
        self.certificate = issuing.public_bytes(serialization.Encoding.DER)
        self.validity = validity_of(issuing)

    def require_foreign(self, public_key: LeafKey) -> None:
        """Raises KeyRefused for the CA's own key."""
        if spki_of(public_key) == self.public_key:
            raise KeyRefused("a leaf never carries the CA's own key")

    def issue(self, profile: LeafProfile, public_key: LeafKey, serial: int) -> tuple[bytes, ...]:
        """The chain for `profile` as DER: leaf, issuing CA. Raises KeyRefused for the CA's own key."""
        self.require_foreign(public_key)
        if not profile.by_ca:
            raise ValueError("an untrusted leaf is not the CA's to sign")
        builder = _leaf(profile, public_key, serial, self._subject, self._key_identifier)
        return _der(builder.sign(self._key, hashes.SHA256())), self.certificate


def untrusted_chain(profile: LeafProfile, public_key: LeafKey, serial: int) -> tuple[bytes, ...]:
    """A leaf whose issuer exists nowhere: signed with a key that is made for it and dropped. Needs no CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    identifier = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(_key_identifier(key.public_key()))
    builder = _leaf(profile, public_key, serial, _named(UNTRUSTED_ISSUER), identifier)
    return (_der(builder.sign(key, hashes.SHA256())),)


def make_root(profile: RootProfile, key: ec.EllipticCurvePrivateKey, serial: int) -> x509.Certificate:
    """The self-signed root for `key`, which must be P-384."""
    assert isinstance(key.curve, ec.SECP384R1)
    subject = _named(profile.common_name)
    builder = _begun(subject, subject, key.public_key(), serial, profile.validity, _ca_extensions(profile.path_length))
    return builder.sign(key, hashes.SHA384())


def make_issuing(
    profile: IssuingProfile,
    root: x509.Certificate,
    root_key: ec.EllipticCurvePrivateKey,
    public_key: ec.EllipticCurvePublicKey,
    serial: int,
) -> x509.Certificate:
    """The issuing CA's certificate for `public_key`, which must be P-256, signed by the root."""
    assert isinstance(public_key.curve, ec.SECP256R1)
    extensions = (
        *_ca_extensions(profile.path_length),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        (_authority_identifier(root), False),
    )
    subject = _named(profile.common_name)
    builder = _begun(subject, root.subject, public_key, serial, profile.validity, extensions)
    return builder.sign(root_key, hashes.SHA384())


def parse_leaf_key(data: bytes) -> LeafKey:
    """Parse a SubjectPublicKeyInfo (DER): P-256, or RSA of 2048 bits and more. Raises KeyRefused."""
    if len(data) > PUBLIC_KEY_LIMIT_BYTES:
        raise KeyRefused("the public key is too large")
    try:
        key = serialization.load_der_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise KeyRefused("not a SubjectPublicKeyInfo that can be read") from None
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    if isinstance(key, rsa.RSAPublicKey) and key.key_size in RSA_BITS and key.public_numbers().e == RSA_EXPONENT:
        return key
    raise KeyRefused("a leaf key is P-256, or RSA with 2048 to 8192 bits and exponent 65537")


def spki_of(key: CertificatePublicKeyTypes) -> bytes:
    """`key` as SubjectPublicKeyInfo, DER, in the one canonical form."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def validity_of(certificate: x509.Certificate) -> Validity:
    """The validity of `certificate` in Unix seconds."""
    return Validity(
        not_before_s=int(certificate.not_valid_before_utc.timestamp()),
        not_after_s=int(certificate.not_valid_after_utc.timestamp()),
    )


def serial_of(random: bytes) -> int:
    """A positive serial number of exactly 128 bits from 16 random bytes (RFC 5280, 4.1.2.2)."""
    return int.from_bytes(random[:16]) | 1 << 127


def _leaf(
    profile: LeafProfile, key: LeafKey, serial: int, issuer: x509.Name, identifier: x509.AuthorityKeyIdentifier
) -> x509.CertificateBuilder:
    common_name = profile.name.common_name
    extensions = (
        (x509.SubjectAlternativeName([_general_name(profile.name)]), common_name is None),  # RFC 5280, 4.1.2.6
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_key_usage(digital_signature=True), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        (identifier, False),
    )
    return _begun(_named(common_name), issuer, key, serial, profile.validity, extensions)


def _begun(
    subject: x509.Name,
    issuer: x509.Name,
    key: LeafKey,
    serial: int,
    validity: Validity,
    extensions: Extensions,
) -> x509.CertificateBuilder:
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(serial)
        .not_valid_before(datetime.fromtimestamp(validity.not_before_s, UTC))
        .not_valid_after(datetime.fromtimestamp(validity.not_after_s, UTC))
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.add_extension(_key_identifier(key), critical=False)


def _ca_extensions(path_length: int) -> Extensions:
    return (
        (x509.BasicConstraints(ca=True, path_length=path_length), True),
        (_key_usage(key_cert_sign=True), True),
    )


def _key_usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=key_cert_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _key_identifier(key: LeafKey) -> x509.SubjectKeyIdentifier:
    """SHA-256 of the SubjectPublicKeyInfo, cut to 160 bits (after RFC 7093): no SHA-1 anywhere."""
    return x509.SubjectKeyIdentifier(hashlib.sha256(spki_of(key)).digest()[:20])


def _authority_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _general_name(name: Name) -> x509.GeneralName:
    return x509.IPAddress(ipaddress.ip_address(name.text)) if name.is_address else x509.DNSName(name.text)


def _named(common_name: str | None) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)
