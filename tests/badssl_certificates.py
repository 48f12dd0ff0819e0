"""Certificates with one thing wrong, or nothing: what the hosts of badssl.com show, made here.

`cryptography` will not sign with MD5 or SHA-1, so such a signature is made apart: their identifiers are as long as that
of SHA-256, so a certificate that was signed with that is changed in two bytes and signed anew.
"""

from __future__ import annotations

import datetime
import ipaddress
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

type Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

DATA = Path(__file__).parent / "data/badssl"
DAY = datetime.timedelta(days=1)
SERVER = (ExtendedKeyUsageOID.SERVER_AUTH,)
CLIENT = (ExtendedKeyUsageOID.CLIENT_AUTH,)
UNHEARD_OF = ObjectIdentifier("1.3.6.1.4.1.55555.1")
TLS_FEATURE_STAPLE = x509.TLSFeature([x509.TLSFeatureType.status_request])


def ec_key(curve: ec.EllipticCurve | None = None) -> Key:
    return ec.generate_private_key(curve or ec.SECP256R1())


@cache
def rsa_key(bits: int = 2048, number: int = 0) -> Key:
    """`number`: another one of the same size. The larger take their time (RSA-8192 15 s), so they are kept in files."""
    kept = DATA / f"rsa{bits}-{number}.key"
    if kept.exists():  # good ones: to prove the primes takes six seconds
        key = serialization.load_pem_private_key(kept.read_bytes(), None, unsafe_skip_rsa_key_validation=True)
        assert isinstance(key, rsa.RSAPrivateKey)
        return key
    return rsa.generate_private_key(65537, bits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a certificate says. The defaults are those of a good leaf but for its names."""

    common_name: str | None = None
    names: Sequence[str] = ()  # host names, and addresses
    key: Key = field(default_factory=ec_key)
    not_before_days: int = -30
    not_after_days: int = 60
    is_ca: bool | None = False  # None: no basicConstraints
    path_length: int | None = None
    signs: bool | None = False  # keyCertSign; None: no keyUsage
    shakes_hands: bool = True  # digitalSignature
    purposes: Sequence[ObjectIdentifier] | None = SERVER
    constraints: x509.NameConstraints | None = None
    digest: str = "sha256"
    more: Sequence[tuple[x509.ExtensionType, bool]] = ()
    serial: int = 0


@dataclass(frozen=True, slots=True)
class Certified:
    """A certificate with its key. It can issue others, whether it may or not."""

    certificate: x509.Certificate
    key: Key
    digest: str = "sha256"

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def issue(self, shape: Shape) -> Certified:
        return _made(shape, self.certificate.subject, self.key, self.certificate)

    def leaf(self, *names: str, **more: object) -> Certified:
        return self.issue(Shape(names=names, common_name=names[0], **more))  # type: ignore[arg-type]

    def intermediate(self, common_name: str = "an intermediate", **more: object) -> Certified:
        return self.issue(_ca_shape(common_name, more))


def root(common_name: str = "the root of the tests", **more: object) -> Certified:
    return self_signed(_ca_shape(common_name, more))


def self_signed(shape: Shape) -> Certified:
    return _made(shape, _named(shape.common_name), shape.key, None)


def _ca_shape(common_name: str, more: dict[str, object]) -> Shape:
    usual: dict[str, object] = {"is_ca": True, "signs": True, "shakes_hands": False, "purposes": None}
    lasts = {"not_before_days": -365, "not_after_days": 365}
    return Shape(common_name=common_name, **{**usual, **lasts, **more})  # type: ignore[arg-type]


def _made(shape: Shape, issuer: x509.Name, signing: Key, above: x509.Certificate | None) -> Certified:
    now = datetime.datetime.now(datetime.UTC)
    public = shape.key.public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(_named(shape.common_name))
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(shape.serial or secrets.randbits(127) | 1)
        .not_valid_before(now + shape.not_before_days * DAY)
        .not_valid_after(now + shape.not_after_days * DAY)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )
    if above is not None:
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(above.public_key())  # type: ignore[arg-type]
        builder = builder.add_extension(identifier, critical=False)
    for extension, critical in _extensions(shape):
        builder = builder.add_extension(extension, critical)
    certificate = builder.sign(signing, hashes.SHA256())
    if shape.digest != "sha256":
        assert isinstance(signing, rsa.RSAPrivateKey)
        certificate = _signed_weakly(certificate, signing, shape.digest)
    return Certified(certificate, shape.key)


def _extensions(shape: Shape) -> list[tuple[x509.ExtensionType, bool]]:
    made: list[tuple[x509.ExtensionType, bool]] = list(shape.more)
    if shape.names:
        made.append((x509.SubjectAlternativeName([_general(name) for name in shape.names]), not shape.common_name))
    if shape.is_ca is not None:
        made.append((x509.BasicConstraints(ca=shape.is_ca, path_length=shape.path_length), True))
    if shape.signs is not None:
        made.append((_usage(shape), True))
    if shape.purposes is not None:
        made.append((x509.ExtendedKeyUsage(shape.purposes), False))
    if shape.constraints is not None:
        made.append((shape.constraints, True))
    return made


def _usage(shape: Shape) -> x509.KeyUsage:
    signs = bool(shape.signs)
    return x509.KeyUsage(
        digital_signature=shape.shakes_hands,
        content_commitment=not shape.shakes_hands and not signs,  # one bit must be set
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _named(common_name: str | None) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])


_WITH_RSA = bytes.fromhex("06092a864886f70d0101")  # pkcs-1; the byte that follows says which digest
_DIGESTS: dict[str, tuple[int, hashes.HashAlgorithm]] = {"md5": (4, hashes.MD5()), "sha1": (5, hashes.SHA1())}


def _signed_weakly(certificate: x509.Certificate, key: rsa.RSAPrivateKey, digest: str) -> x509.Certificate:
    number, algorithm = _DIGESTS[digest]
    der = certificate.public_bytes(serialization.Encoding.DER)
    before = certificate.tbs_certificate_bytes
    tbs = before.replace(_WITH_RSA + b"\x0b", _WITH_RSA + bytes((number,)), 1)
    signature = key.sign(tbs, padding.PKCS1v15(), algorithm)
    der = der.replace(before, tbs).replace(_WITH_RSA + b"\x0b", _WITH_RSA + bytes((number,)))
    return x509.load_der_x509_certificate(der[: -len(signature)] + signature)
