"""Profile + keys + serial → certificate. No clock, no file, no decision: who may have what is decided elsewhere."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mitmsec.core.crl_place import crl_path, crl_url
from mitmsec_certs.constraint_extension import constraints_of, extension_of, limits_subjects
from mitmsec_certs.constraints import Constraints
from mitmsec_certs.profile import UNTRUSTED_ISSUER, IssuingProfile, LeafProfile, Name, RootProfile, Validity

type LeafKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
type CaKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
type Extensions = Sequence[tuple[x509.ExtensionType, bool]]


LIST_BACKDATED_S = 3600  # for clocks that are behind


class KeyRefused(ValueError):
    """A public key that no leaf may carry; the text says why."""


class NameRefused(ValueError):
    """A name that the CA's constraints keep it from; the text says so."""


class Authority:
    """The issuing CA with its key. `issue` costs one signature."""

    def __init__(
        self, key: CaKey, issuing: x509.Certificate, above: Sequence[x509.Certificate] = (), *, has_list: bool = True
    ) -> None:
        """`above`: the CAs above it, the nearest first, the root among them or not. `has_list`: leaves say where its
        revocation list is, if it may sign one.

        Raises ValueError when `key` does not belong to `issuing`.
        """
        self.public_key = spki_of(key.public_key())
        if self.public_key != spki_of(issuing.public_key()):
            raise ValueError("the key does not belong to the issuing certificate")
        self._key = key
        self._list_url = _list_url(issuing) if has_list else None
        self._digest: hashes.SHA256 | hashes.SHA384 = hashes.SHA256() if _is_short(key) else hashes.SHA384()
        self._subject = issuing.subject
        self._key_identifier = authority_identifier(issuing)
        self._line = (issuing, *above)
        self._without_subject = any(map(limits_subjects, self._line))
        self.constraints = tuple(constraints_of(ca) for ca in self._line)
        self._are_constrained = not all(limit.are_none for limit in self.constraints)
        self.certificate = _der(issuing)
        self.sent = tuple(_der(ca) for ca in self._line if ca.subject != ca.issuer)
        self.validity = validity_of(issuing)

    def require_foreign(self, public_key: bytes) -> None:
        """Raises KeyRefused for the CA's own key (SPKI, DER)."""
        if public_key == self.public_key:
            raise KeyRefused("a leaf never carries the CA's own key")

    def require_allowed(self, name: Name) -> None:
        """Raises NameRefused for a name that a verifier would not take from this CA."""
        if self._are_constrained and not all(limit.allow(name.text) for limit in self.constraints):
            raise NameRefused(
                f"{name.text} is outside the names that this CA may speak for; `mitmsec ca show` has them"
            )

    def issue(self, profile: LeafProfile, public_key: LeafKey, serial: int) -> tuple[bytes, ...]:
        """The chain for `profile` as DER: leaf, issuing CA, and what is between that and its root.

        Raises KeyRefused for the CA's own key, NameRefused.
        """
        self.require_foreign(spki_of(public_key))
        self.require_allowed(profile.name)
        if not profile.by_ca:
            raise ValueError("an untrusted leaf is not the CA's to sign")
        common_name = None if self._hides_subject(profile.name) else profile.name.common_name
        builder = _leaf(profile, common_name, public_key, serial, self._subject, self._key_identifier)
        if self._list_url is not None:
            builder = builder.add_extension(_list_at(self._list_url), critical=False)
        return _der(builder.sign(self._key, self._digest)), *self.sent

    def crl(self, now_s: int) -> tuple[str, bytes] | None:
        """The path and the list (DER) of the leaves that it has revoked, which are none: they are not trusted for long.

        None where its own certificate lets it sign no list.
        """
        if self._list_url is None:
            return None
        span = Validity(not_before_s=now_s - LIST_BACKDATED_S, not_after_s=self.validity.not_after_s)
        identifier = self._line[0].extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
        return crl_path(identifier), empty_list(self._key, self._line[0], span)

    def _hides_subject(self, name: Name) -> bool:
        """Verifiers hold a common name that looks like a host's, as an address does, against the names' constraints."""
        return self._without_subject or (name.is_address and self._are_constrained)


def _is_short(key: CaKey) -> bool:
    """SHA-256 is as strong as it."""
    return isinstance(key, rsa.RSAPrivateKey) or key.curve.key_size <= 256


def untrusted_chain(profile: LeafProfile, public_key: LeafKey, serial: int) -> tuple[bytes, ...]:
    """A leaf whose issuer exists nowhere: signed with a key that is made for it and dropped. Needs no CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    identifier = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(_key_identifier(key.public_key()))
    builder = _leaf(profile, profile.name.common_name, public_key, serial, _named(UNTRUSTED_ISSUER), identifier)
    return (_der(builder.sign(key, hashes.SHA256())),)


def make_root(profile: RootProfile, key: ec.EllipticCurvePrivateKey, serial: int) -> x509.Certificate:
    """The self-signed root for `key`, which must be P-384."""
    assert isinstance(key.curve, ec.SECP384R1)
    subject = _named(profile.common_name)
    extensions = _ca_extensions(profile.path_length, profile.constraints)
    builder = _begun(subject, subject, key.public_key(), serial, profile.validity, extensions)
    return builder.sign(key, hashes.SHA384())


def empty_list(key: CaKey, issuer: x509.Certificate, span: Validity) -> bytes:
    """A CRL (DER) of `issuer`, whose key is `key`, with nothing on it, good for `span`."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(datetime.fromtimestamp(span.not_before_s, UTC))
        .next_update(datetime.fromtimestamp(span.not_after_s, UTC))
        .add_extension(x509.CRLNumber(span.not_before_s), critical=False)
        .add_extension(authority_identifier(issuer), critical=False)
    )
    digest = hashes.SHA256() if _is_short(key) else hashes.SHA384()
    return builder.sign(key, digest).public_bytes(serialization.Encoding.DER)


def make_issuing(
    profile: IssuingProfile,
    root: x509.Certificate,
    root_key: ec.EllipticCurvePrivateKey,
    public_key: ec.EllipticCurvePublicKey,
    serial: int,
    *,
    has_list: bool = False,
) -> x509.Certificate:
    """The issuing CA's certificate for `public_key`, which must be P-256, signed by the root.

    `has_list`: the root has signed a revocation list, which is found where ours are.
    """
    assert isinstance(public_key.curve, ec.SECP256R1)
    list_url = _list_url(root) if has_list else None
    extensions = (
        *_ca_extensions(profile.path_length, profile.constraints),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        (authority_identifier(root), False),
        *([] if list_url is None else [(_list_at(list_url), False)]),
    )
    subject = _named(profile.common_name)
    builder = _begun(subject, root.subject, public_key, serial, profile.validity, extensions)
    return builder.sign(root_key, hashes.SHA384())


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


def _list_url(issuer: x509.Certificate) -> str | None:
    """None where `issuer` may sign no list."""
    try:
        usage = issuer.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return None
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    return crl_url(identifier) if usage.crl_sign else None


def _list_at(url: str) -> x509.CRLDistributionPoints:
    place = x509.DistributionPoint([x509.UniformResourceIdentifier(url)], None, None, None)
    return x509.CRLDistributionPoints([place])


def _leaf(
    profile: LeafProfile,
    common_name: str | None,
    key: LeafKey,
    serial: int,
    issuer: x509.Name,
    identifier: x509.AuthorityKeyIdentifier,
) -> x509.CertificateBuilder:
    extensions = (
        (x509.SubjectAlternativeName([_general_name(profile.name)]), common_name is None),  # RFC 5280, 4.1.2.6
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (key_usage(digital_signature=True), True),
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


def _ca_extensions(path_length: int, constraints: Constraints) -> Extensions:
    usual = (
        (x509.BasicConstraints(ca=True, path_length=path_length), True),
        (key_usage(key_cert_sign=True), True),
    )
    names = extension_of(constraints)
    return usual if names is None else (*usual, (names, True))


def key_usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    """For signatures in a handshake, or for certificates and CRLs, and for nothing else."""
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


def authority_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """How what `issuer` signs names its key."""
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _general_name(name: Name) -> x509.GeneralName:
    return x509.IPAddress(ipaddress.ip_address(name.text)) if name.is_address else x509.DNSName(name.text)


def _named(common_name: str | None) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)
