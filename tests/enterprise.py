"""An enterprise's CA that certifies issuing CAs: good ones, and each kind of bad one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

PEM, DER = serialization.Encoding.PEM, serialization.Encoding.DER
NOW = datetime.fromtimestamp(int(time.time()), UTC)
LIMIT = x509.NameConstraints([x509.DNSName("corp.example")], None)


def p256() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@dataclass(frozen=True)
class Made:
    """A CA with its key."""

    certificate: x509.Certificate
    key: Any

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(PEM)

    @property
    def spki(self) -> bytes:
        return self.key.public_key().public_bytes(DER, serialization.PublicFormat.SubjectPublicKeyInfo)

    def key_pem(self, passphrase: bytes | None = None) -> bytes:
        secret = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
        return self.key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, secret)

    def p12(self, above: Sequence[Made], passphrase: bytes) -> bytes:
        secret = serialization.BestAvailableEncryption(passphrase)
        others = [one.certificate for one in above]
        return pkcs12.serialize_key_and_certificates(b"sub", self.key, self.certificate, others, secret)


def certified(
    name: str,
    by: Made | None,
    *,
    key: Any = None,
    public_key: Any = None,
    path_length: int | None = 0,
    is_ca: bool = True,
    usage: bool = True,
    purposes: Sequence[x509.ObjectIdentifier] | None = (ExtendedKeyUsageOID.SERVER_AUTH,),
    limit: x509.NameConstraints | None = LIMIT,
    days: tuple[int, int] = (-1, 364),
    digest: Any = None,
    more: Sequence[tuple[x509.ExtensionType, bool]] = (),
    has_key_identifier: bool = True,
) -> Made:
    """A certificate for `name`, signed by `by`, or by itself."""
    key = key or p256()
    public = public_key or key.public_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by else subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + timedelta(days=days[0]))
        .not_valid_after(NOW + timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=path_length if is_ca else None), critical=True)
        .add_extension(_usage(signs=usage), critical=True)
    )
    if has_key_identifier:
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    if purposes is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    if limit is not None:
        builder = builder.add_extension(limit, critical=True)
    for extension, critical in more:
        builder = builder.add_extension(extension, critical)
    return Made(builder.sign(by.key if by else key, digest or hashes.SHA256()), key)


def root(name: str = "Corp Root", **options: Any) -> Made:
    usual = {"path_length": None, "purposes": None, "limit": None, "days": (-400, 4000)}
    return certified(name, None, **(usual | options))


def between(by: Made, name: str = "Corp Policy CA", **options: Any) -> Made:
    usual = {"path_length": 1, "purposes": None, "limit": None, "days": (-100, 2000)}
    return certified(name, by, **(usual | options))


def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


def answer_to(request_pem: bytes, by: Made) -> bytes:
    """What the enterprise makes of a request: it copies what is asked for."""
    request = x509.load_pem_x509_csr(request_pem)
    assert request.is_signature_valid
    builder = (
        x509.CertificateBuilder()
        .subject_name(request.subject)
        .issuer_name(by.certificate.subject)
        .public_key(request.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=300))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(request.public_key()), critical=False)
    )
    for extension in request.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    return builder.sign(by.key, hashes.SHA256()).public_bytes(PEM)


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )
